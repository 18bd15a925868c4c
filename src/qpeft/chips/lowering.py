r"""A circuit as runs of one-qubit turns and interactions that commute, before anything is placed on a chip.

Every two-qubit gate is one-qubit gates and an interaction ``ZZ(φ) = exp(-i φ Z⊗Z / 2)``:

    CZ      = RZ(π/2)⊗RZ(π/2) · ZZ(-π/2)           CRZ(θ) = RZ_t(θ/2) · ZZ(-θ/2)
    CNOT    = H_t CZ H_t                            CRX(θ) = H_t CRZ(θ) H_t,   CRY(θ) = RX_t(-90°) CRZ(θ) RX_t(90°)

up to a phase, and SWAP only renames wires. Interactions commute with each other and with RZ. So a wire is a sequence
of *runs* (one-qubit turns) with a *segment* of interactions after each, in any order within a segment. On the way
interactions of the same pair in the same segments add up, those of a qubit in |0> become RZ, and those after which
both wires are only measured are left out, for Z is all that is measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qpeft.chips.turns import (
    HADAMARD,
    Affine,
    Turn,
    affine,
    constant,
    fixed,
    is_diagonal,
    plus,
    rx,
    simplify,
    turns_of,
    z,
)
from qpeft.circuits import Circuit
from qpeft.errors import InputError

_QUARTER = math.pi / 2


@dataclass(frozen=True)
class Interaction:
    """``ZZ(angle)`` on two wires, after the run of each wire with the number of its segment.

    Args:
        wires: The pair.
        segments: Of each of the two.
        angle: ``φ``; ``None`` for a plain CZ, whose RZ stand in the runs.
    """

    wires: tuple[int, int]
    segments: tuple[int, int]
    angle: Affine | None

    @property
    def n_cz(self) -> int:
        """CZ gates that it takes."""
        return 1 if self.angle is None else 2

    def segment_of(self, wire: int) -> int:
        """Its segment on one of its wires."""
        return self.segments[self.wires.index(wire)]


@dataclass(frozen=True)
class Lowered:
    """Runs and interactions of a circuit.

    Args:
        runs: Of every wire its runs, simplified.
        interactions: In an order that respects the segments.
        output: Wire that each qubit of the circuit is in the end.
    """

    runs: tuple[tuple[tuple[Turn, ...], ...], ...]
    interactions: tuple[Interaction, ...]
    output: tuple[int, ...]


class _Builder:
    def __init__(self, n_qubits: int) -> None:
        self.runs: list[list[list[Turn]]] = [[[]] for _ in range(n_qubits)]
        self.found: dict[tuple[int, int, int, int], Affine] = {}  # wires, segments -> angle

    def busy(self, wire: int) -> bool:
        """Whether something stands in the last segment of a wire."""
        last = len(self.runs[wire]) - 1
        return any((a == wire and s == last) or (b == wire and t == last) for a, b, s, t in self.found)

    def turn(self, wire: int, *turns: Turn) -> None:
        for turn in turns:
            if turn.axis == "Y" and self.busy(wire):
                self.runs[wire].append([])
            self.runs[wire][-1].append(turn)

    def settle(self, wire: int) -> None:
        """Simplify the last run; one that has no Y left moves before the segment that it follows."""
        runs = self.runs[wire]
        runs[-1] = simplify(runs[-1])
        if len(runs) > 1 and is_diagonal(runs[-1]):
            rest = runs.pop()
            runs[-1] = simplify([*runs[-1], *rest])

    def interact(self, first: int, second: int, angle: Affine) -> None:
        a, b = min(first, second), max(first, second)
        for wire, other in ((a, b), (b, a)):
            self.settle(wire)
            if len(self.runs[wire]) == 1 and is_diagonal(self.runs[wire][0]):  # still |0>, where Z is 1
                self.turn(other, z(angle))
                return
        key = (a, b, len(self.runs[a]) - 1, len(self.runs[b]) - 1)
        total = plus(self.found.pop(key, {}), angle)
        value = fixed(total)
        if value is not None and abs(value) == math.pi:  # ZZ(π) = RZ(π)⊗RZ(π)
            self.turn(a, z(math.pi))
            self.turn(b, z(math.pi))
        elif value != 0.0:
            self.found[key] = total if value is None else constant(value)


def lower(circuit: Circuit) -> Lowered:
    """Turn a circuit into runs and interactions.

    Raises:
        InputError: An observable with X or Y: a chip measures Z.
    """
    for observable in circuit.observables:
        if not observable.is_diagonal:
            raise InputError(
                f"the chip measures Z, but observable {observable} asks for more; append the gates that turn its X "
                f"and Y into Z (H for X; SDG, H for Y) and measure Z."
            )
    n = circuit.n_inputs
    build = _Builder(circuit.n_qubits)
    place = list(range(circuit.n_qubits))
    for gate in circuit.gates:
        wires = [place[wire] for wire in gate.wires]
        if len(wires) == 1:
            build.turn(wires[0], *turns_of(gate, n))
            continue
        control, target = wires
        if gate.name == "SWAP":
            first, second = gate.wires
            place[first], place[second] = place[second], place[first]
        elif gate.name in ("CZ", "CNOT"):
            around = HADAMARD if gate.name == "CNOT" else ()
            build.turn(target, *around)
            build.interact(control, target, constant(-_QUARTER))
            build.turn(control, z(_QUARTER))
            build.turn(target, z(_QUARTER), *around)
        else:
            before, after = {
                "CRX": (HADAMARD, HADAMARD),
                "CRY": (rx(_QUARTER), rx(-_QUARTER)),
                "CRZ": ((), ()),
            }[gate.name]
            build.turn(target, *before)
            build.interact(control, target, affine(gate, n, -0.5))
            build.turn(target, z(affine(gate, n, 0.5)), *after)
    for wire in range(circuit.n_qubits):
        build.settle(wire)
    measured = {place[wire] for observable in circuit.observables for _, wire in observable.paulis}
    _drop_what_is_not_seen(build, measured)
    return _finish(build, tuple(place))


def _drop_what_is_not_seen(build: _Builder, measured: set[int]) -> None:
    changed = True
    while changed:
        changed = False
        for wire, runs in enumerate(build.runs):
            while wire not in measured and any(runs) and not build.busy(wire):
                runs.pop()
                runs[:] = runs or [[]]
                changed = True
        for a, b, s, t in list(build.found):
            if s == len(build.runs[a]) - 1 and t == len(build.runs[b]) - 1:
                del build.found[a, b, s, t]
                changed = True


def _finish(build: _Builder, output: tuple[int, ...]) -> Lowered:
    """Write ZZ(±90°) as CZ, and put the interactions in an order of growing segments."""
    interactions = []
    for (a, b, s, t), angle in build.found.items():
        value = fixed(angle)
        plain = value is not None and abs(value) == _QUARTER
        if plain:  # ZZ(-π/2) = RZ(-π/2)⊗RZ(-π/2) CZ
            build.runs[a][s].append(z(angle))
            build.runs[b][t].append(z(angle))
        interactions.append(Interaction((a, b), (s, t), None if plain else angle))
    ordered: list[Interaction] = []
    waiting = interactions
    while waiting:
        ready = [i for i in waiting if not any(_before(other, i) for other in waiting)]
        ordered += ready
        waiting = [i for i in waiting if i not in ready]
    runs = tuple(tuple(tuple(simplify(run)) for run in wire) for wire in build.runs)
    return Lowered(runs, tuple(ordered), output)


def _before(first: Interaction, second: Interaction) -> bool:
    """Whether the first must act before the second."""
    shared = set(first.wires) & set(second.wires)
    return any(first.segment_of(wire) < second.segment_of(wire) for wire in shared)
