r"""Runs of one-qubit gates as turns about Z and Y, simplified without knowing the angles.

Up to a global phase every one-qubit gate is a product of RZ and RY whose angles are affine in inputs and weights, so a
run of gates on one wire is a short list of :class:`Turn`, first applied first. Two Y with nothing between are one; the
rest of the algebra is

    RY(π) RZ(a) = RZ(-a) RY(π),   RY(b) RZ(π) = RZ(π) RY(-b),   RY(90°) RZ(a) RY(-90°) = RX(a) = RZ(-90°) RY(a) RZ(90°)

and constants multiply as quaternions. A run with one Y left is written with pulses of fixed length as

    RZ(c) RY(b) RZ(a) = RZ(c) · RX(-90°) RZ(b) RX(90°) · RZ(a),

two pulses; one if b is a constant quarter or half turn (RY(90°) = RZ(90°) RX(90°) RZ(-90°)), none if there is no Y.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from qpeft.circuits import Gate, Input, Weight

Affine = dict[int, float]
"""An angle: number of a feature -> coefficient. Feature 0 is 1, then come the inputs, then the weights."""

_TINY = 1e-11
_QUARTER = math.pi / 2


class Turn(NamedTuple):
    """``RZ`` or ``RY`` of an affine angle."""

    axis: str
    angle: Affine


def affine(gate: Gate, n_inputs: int, scale: float = 1.0) -> Affine:
    """The angle of a gate, times a scale."""
    angle = gate.angle
    if isinstance(angle, Input):
        return {1 + angle.index: scale * angle.scale}
    if isinstance(angle, Weight):
        return {1 + n_inputs + angle.index: scale * angle.scale}
    return constant(scale * float(angle or 0.0))


def constant(value: float) -> Affine:
    """A constant angle."""
    return {0: value} if value else {}


def plus(first: Affine, second: Affine, scale: float = 1.0) -> Affine:
    """``first + scale * second``; what cancels is left out."""
    total = dict(first)
    for feature, value in second.items():
        total[feature] = total.get(feature, 0.0) + scale * value
    return {feature: value for feature, value in total.items() if abs(value) > _TINY}


def fixed(angle: Affine) -> float | None:
    """The value in (-π, π] of a constant angle, multiples of 45° exactly; ``None`` for one that varies."""
    if any(angle.keys()):
        return None
    value = math.remainder(angle.get(0, 0.0), 2 * math.pi)
    eighth = round(value / (math.pi / 4))
    if abs(value - eighth * math.pi / 4) < _TINY:
        value = eighth * math.pi / 4
    return math.pi if value == -math.pi else value


def z(angle: Affine | float) -> Turn:
    """RZ."""
    return Turn("Z", angle if isinstance(angle, dict) else constant(angle))


def y(angle: Affine | float) -> Turn:
    """RY."""
    return Turn("Y", angle if isinstance(angle, dict) else constant(angle))


HADAMARD = (z(math.pi), y(_QUARTER))
_FIXED = {
    "H": HADAMARD,
    "X": (y(math.pi), z(math.pi)),
    "Y": (y(math.pi),),
    "Z": (z(math.pi),),
    "S": (z(_QUARTER),),
    "SDG": (z(-_QUARTER),),
    "T": (z(_QUARTER / 2),),
    "TDG": (z(-_QUARTER / 2),),
}


def rx(angle: Affine | float) -> tuple[Turn, ...]:
    """RX, as RZ(-90°) RY RZ(90°)."""
    return z(_QUARTER), y(angle), z(-_QUARTER)


def turns_of(gate: Gate, n_inputs: int) -> tuple[Turn, ...]:
    """A one-qubit gate as turns, first applied first."""
    if gate.name in _FIXED:
        return _FIXED[gate.name]
    angle = affine(gate, n_inputs)
    return {"RX": rx, "RY": lambda a: (y(a),), "RZ": lambda a: (z(a),)}[gate.name](angle)


def simplify(turns: Iterable[Turn]) -> list[Turn]:
    """The same run with as few turns as these rules find: Z and Y alternate, none is the identity."""
    run: list[Turn] = []
    for turn in turns:
        _push(run, turn)
    changed = True
    while changed:
        changed = _move_half_turn(run) or _fold_constants(run) or _turn_axis(run)
    return run


def _push(run: list[Turn], turn: Turn) -> None:
    if run and run[-1].axis == turn.axis:
        turn = Turn(turn.axis, plus(run.pop().angle, turn.angle))
    value = fixed(turn.angle)
    if value is not None:
        turn = Turn(turn.axis, constant(value))
    if turn.angle:
        run.append(turn)


def _replace(run: list[Turn], start: int, stop: int, turns: Sequence[Turn]) -> bool:
    rest = [*turns, *run[stop:]]
    del run[start:]
    for turn in rest:
        _push(run, turn)
    return True


def _move_half_turn(run: list[Turn]) -> bool:
    """Move a half turn out from between two turns of the other axis, which then are one."""
    for place in range(1, len(run) - 1):
        if fixed(run[place].angle) == math.pi:
            before, half, after = run[place - 1 : place + 2]
            both = Turn(before.axis, plus(before.angle, after.angle, -1.0))
            return _replace(run, place - 1, place + 2, [both, half])
    if len(run) > 2 and run[-1].axis == "Y" and fixed(run[-1].angle) == math.pi:
        return _replace(run, len(run) - 2, len(run), [run[-1], _negative(run[-2])])
    if len(run) > 2 and run[0].axis == "Y" and fixed(run[0].angle) == math.pi:
        return _replace(run, 0, 2, [_negative(run[1]), run[0]])
    return False


def _negative(turn: Turn) -> Turn:
    return Turn(turn.axis, plus({}, turn.angle, -1.0))


def _fold_constants(run: list[Turn]) -> bool:
    """Multiply out Y Z Y of constants."""
    for start in range(len(run) - 2):
        piece = run[start : start + 3]
        values = [fixed(turn.angle) for turn in piece]
        if run[start].axis == "Y" and None not in values:
            return _replace(run, start, start + 3, _euler(piece))
    return False


def _turn_axis(run: list[Turn]) -> bool:
    """Write Z between two quarter turns as RX: RY(±90°) RZ(a) RY(∓90°) = RX(±a)."""
    for start in range(len(run) - 2):
        first, middle, last = run[start : start + 3]
        if first.axis == "Y" and abs(fixed(first.angle) or 0.0) == abs(fixed(last.angle) or 0.0) == _QUARTER:
            sign = math.copysign(1.0, last.angle[0])
            turned = rx(plus({}, middle.angle, sign))
            return _replace(run, start, start + 3, [y(plus(first.angle, last.angle)), *turned])
    return False


def _euler(turns: Sequence[Turn]) -> list[Turn]:
    w, vx, vy, vz = 1.0, 0.0, 0.0, 0.0
    for turn in turns:
        half = (fixed(turn.angle) or 0.0) / 2
        c, s = math.cos(half), math.sin(half)
        if turn.axis == "Z":
            w, vx, vy, vz = c * w - s * vz, c * vx - s * vy, c * vy + s * vx, c * vz + s * w
        else:
            w, vx, vy, vz = c * w - s * vy, c * vx + s * vz, c * vy + s * w, c * vz - s * vx
    tilt = 2 * math.atan2(math.hypot(vx, vy), math.hypot(w, vz))
    total = math.atan2(vz, w) if tilt < math.pi - _TINY else 0.0
    difference = math.atan2(-vx, vy) if tilt > _TINY else 0.0
    return [z(total - difference), y(tilt), z(total + difference)]


def is_diagonal(run: Sequence[Turn]) -> bool:
    """Whether a simplified run only moves the frame."""
    return all(turn.axis == "Z" for turn in run)


def tilts(run: Sequence[Turn]) -> int:
    """How many turns about Y a simplified run has."""
    return sum(turn.axis == "Y" for turn in run)
