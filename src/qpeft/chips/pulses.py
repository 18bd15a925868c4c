r"""Runs of turns as pulses of fixed length, and the frames of the qubits between them.

    RZ(c) RY(b) RZ(a)       = RZ(c) · RX(-90°) RZ(b) RX(90°) · RZ(a)          in general
    RZ(c) RY(±90°) RZ(a)    = RZ(c + 90°) · RX(±90°) · RZ(a - 90°)
    RZ(c) RY(180°) RZ(a)    = RZ(c + 180° - a) · RX(180°)

An RZ behind the last pulse is not written: it moves through CZ into the first RZ of the next run, and the last one of
all is dropped, for only Z is measured. So is RZ before the first pulse on a qubit, which is in |0>.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qpeft.chips.angles import DECIMALS, NativeAngles, constant_tilts
from qpeft.chips.turns import Affine, Turn, constant, fixed, plus, tilts
from qpeft.circuits import Gate, Input

_QUARTER = math.pi / 2

Event = tuple[int, list[Turn]] | tuple[int, int]
"""A simplified run on a place, or CZ on two places."""


def write_pulses(events: Sequence[Event], n_inputs: int, n_weights: int) -> tuple[tuple[Gate, ...], NativeAngles]:
    """Write runs as pulses with RZ between them, and collect what the angles of the RZ are."""
    hard = [tuple(event[1]) for event in events if isinstance(event[1], list) and tilts(event[1]) > 1]
    flat = constant_tilts(hard, n_inputs, n_weights)
    first = 1 + n_inputs + n_weights
    gates: list[Gate] = []
    angles: list[Affine] = []
    frames: dict[int, Affine] = {}
    touched: set[int] = set()

    def turn_frame(place: int, angle: Affine) -> None:
        value = fixed(angle)
        if value is None:
            gates.append(Gate("RZ", place, Input(len(angles))))
            angles.append(angle)
        elif round(value, DECIMALS):
            gates.append(Gate("RZ", place, round(value, DECIMALS)))

    number = 0
    for event in events:
        place, run = event
        if isinstance(run, int):
            gates.append(Gate("CZ", (place, run)))
            continue
        before, tilt, after = _three(run)
        known = fixed(tilt)
        if tilts(run) > 1:
            total, difference = first + 3 * number, first + 3 * number + 1
            before, after = {total: 1.0, difference: -1.0}, {total: 1.0, difference: 1.0}
            tilt, known = {first + 3 * number + 2: 1.0}, flat[number]
            number += 1
        before = plus(before, frames.get(place, {}))
        if known == 0.0:
            frames[place] = plus(before, after)
            continue
        if known == math.pi:
            gates.append(Gate("RX", place, math.pi))
            frames[place] = plus(plus(constant(math.pi), after), before, -1.0)
        elif known is not None and abs(known) == _QUARTER:
            if place in touched:
                turn_frame(place, plus(before, constant(-_QUARTER)))
            gates.append(Gate("RX", place, known))
            frames[place] = plus(after, constant(_QUARTER))
        else:
            if place in touched:
                turn_frame(place, before)
            gates.append(Gate("RX", place, _QUARTER))
            turn_frame(place, tilt)
            gates.append(Gate("RX", place, -_QUARTER))
            frames[place] = after
        touched.add(place)
    return tuple(gates), NativeAngles(n_inputs, n_weights, tuple(hard), tuple(angles))


def _three(run: Sequence[Turn]) -> tuple[Affine, Affine, Affine]:
    """Angles of Z, Y, Z of a run with at most one Y."""
    parts: list[Affine] = [{}, {}, {}]
    seen = False
    for turn in run:
        if turn.axis == "Y":
            parts[1], seen = turn.angle, True
        else:
            parts[2 if seen else 0] = turn.angle
    return parts[0], parts[1], parts[2]
