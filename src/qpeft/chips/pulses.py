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


class Products:
    """Products of turns that are left to be multiplied out for each sample.

    Args:
        n_inputs: Inputs of the circuit.
        n_weights: Its weights.
    """

    def __init__(self, n_inputs: int, n_weights: int) -> None:
        self.n_inputs, self.n_weights = n_inputs, n_weights
        self.runs: list[tuple[Turn, ...]] = []

    def add(self, run: Sequence[Turn]) -> tuple[Affine, Affine, Affine]:
        """S, D and T of a product, for further use as angles."""
        first = 1 + self.n_inputs + self.n_weights + 3 * len(self.runs)
        self.runs.append(tuple(run))
        return {first: 1.0}, {first + 1: 1.0}, {first + 2: 1.0}

    def three(self, run: Sequence[Turn]) -> tuple[Affine, Affine, Affine]:
        """Angles of Z, Y, Z, first applied first, that a simplified run comes down to."""
        if tilts(run) > 1:
            total, difference, tilt = self.add(run)
            return plus(total, difference, -1.0), tilt, plus(total, difference)
        parts: list[Affine] = [{}, {}, {}]
        seen = False
        for turn in run:
            if turn.axis == "Y":
                parts[1], seen = turn.angle, True
            else:
                parts[2 if seen else 0] = turn.angle
        return parts[0], parts[1], parts[2]


Event = tuple[int, list[Turn]] | tuple[int, int]
"""A simplified run on a place, or CZ on two places."""


def write_pulses(events: Sequence[Event], products: Products) -> tuple[tuple[Gate, ...], NativeAngles]:
    """Write runs as pulses with RZ between them, and collect what the angles of the RZ are.

    Args:
        events: Runs and CZ gates, in order.
        products: Those that the angles of the runs refer to; runs with several turns about Y are added.
    """
    parts = [products.three(event[1]) if isinstance(event[1], list) else None for event in events]
    flat = constant_tilts(products.runs, products.n_inputs, products.n_weights)
    first = 1 + products.n_inputs + products.n_weights
    gates: list[Gate] = []
    angles: list[Affine] = []
    frames: dict[int, Affine] = {}
    touched: set[int] = set()

    def turn_frame(place: int, angle: Affine) -> None:
        value = fixed(angle)
        if value is None:
            gates.append(Gate("RZ", (place,), Input(len(angles))))
            angles.append(angle)
        elif round(value, DECIMALS):
            gates.append(Gate("RZ", (place,), round(value, DECIMALS)))

    for event, three in zip(events, parts, strict=True):
        place = event[0]
        if three is None:
            gates.append(Gate("CZ", event))  # type: ignore[arg-type]
            continue
        before, tilt, after = three
        known = fixed(tilt)
        product = [feature - first for feature in tilt if feature >= first]
        if len(tilt) == 1 and product and product[0] % 3 == 2 and tilt[first + product[0]] == 1.0:
            known = flat[product[0] // 3]
        before = plus(before, frames.get(place, {}))
        if known == 0.0:
            frames[place] = plus(before, after)
            continue
        if known == math.pi:
            gates.append(Gate("RX", (place,), math.pi))
            frames[place] = plus(plus(constant(math.pi), after), before, -1.0)
        elif known is not None and abs(known) == _QUARTER:
            if place in touched:
                turn_frame(place, plus(before, constant(-_QUARTER)))
            gates.append(Gate("RX", (place,), known))
            frames[place] = plus(after, constant(_QUARTER))
        else:
            if place in touched:
                turn_frame(place, before)
            gates.append(Gate("RX", (place,), _QUARTER))
            turn_frame(place, tilt)
            gates.append(Gate("RX", (place,), -_QUARTER))
            frames[place] = after
        touched.add(place)
    bind = NativeAngles(products.n_inputs, products.n_weights, tuple(products.runs), tuple(angles))
    return tuple(gates), bind
