"""From a circuit to a short program of fused steps.

Every gate is a product of four primitives: a diagonal phase, a rotation RY, a controlled RY, a permutation of basis
states that is affine over GF(2). Constants aside (signs are exact, global phases dropped)::

    H = RY(π/2) Z        Y = X Z         S, T, RZ, Z, CZ, CRZ: phases       X, CNOT, SWAP: permutations
    RX(θ) = RZ(-π/2) RY(θ) RZ(π/2)       CRX(θ) likewise around CRY(θ)      (rightmost acts first)

The point of that set: RY and permutations keep a real state real, phases of a run of gates add up to one vector, and
RY angles on one wire add up to one angle, whether they come from inputs or from weights. So a gate is merged into the
earliest step that takes it, if it commutes with every step in between.

Phases are kept in the parity basis: ``φ(b) = Σ_m a_m (-1)^{|b & m|}``, one angle ``a_m`` for each mask ``m``. Wire 0
is the most significant bit of ``b``.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from qpeft.circuits import Circuit, Gate, Input, Observable, Weight


@dataclass
class Expression:
    """An angle ``constant + Σ inputs[i] x_i + Σ weights[k] w_k`` in radians."""

    constant: float = 0.0
    inputs: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    weights: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: Expression, factor: float = 1.0) -> None:
        self.constant += factor * other.constant
        for index, coefficient in other.inputs.items():
            self.inputs[index] += factor * coefficient
        for index, coefficient in other.weights.items():
            self.weights[index] += factor * coefficient

    @property
    def is_constant(self) -> bool:
        return not self.inputs and not self.weights


@dataclass
class Turn:
    """RY on several wires at once: wire -> angle."""

    angles: dict[int, Expression]


@dataclass
class ControlledTurn:
    """RY on ``target`` where ``control`` is 1."""

    control: int
    target: int
    angle: Expression


@dataclass
class Phase:
    """The diagonal ``exp(iφ(b))``, ``φ(b) = Σ_m terms[m] (-1)^{|b & m|}``."""

    terms: dict[int, Expression]

    @property
    def is_sign(self) -> bool:
        """Whether the diagonal is known to be ±1, as for Z and CZ, so that a real state stays real."""
        return all(e.is_constant for e in self.terms.values()) and all(
            math.isclose(math.sin(value), 0.0, abs_tol=1e-12) for value in self._corner_values()
        )

    def _corner_values(self) -> list[float]:
        # No mask has more than two bits, so φ is quadratic in the bits, and it is a multiple of π everywhere if and
        # only if it is one wherever at most two bits are set.
        masks = [mask for mask in self.terms if mask]
        bits = sorted({1 << i for mask in masks for i in range(mask.bit_length()) if mask >> i & 1})
        corners = [0, *bits, *(a | b for k, a in enumerate(bits) for b in bits[:k])]
        return [
            sum(e.constant * (-1) ** (corner & mask).bit_count() for mask, e in self.terms.items())
            for corner in corners
        ]


@dataclass
class Permutation:
    """``new_state[b'] = state[b]`` with ``b' = images of the bits of b, combined by exclusive or, xor offset``."""

    columns: list[int]  # image of the basis vector with only bit i set
    offset: int

    def then(self, other: Permutation) -> Permutation:
        columns = [other.linear(column) for column in self.columns]
        return Permutation(columns, other.linear(self.offset) ^ other.offset)

    def linear(self, bits: int) -> int:
        image = 0
        for i, column in enumerate(self.columns):
            if bits >> i & 1:
                image ^= column
        return image

    def pull_back(self, mask: int) -> tuple[int, int]:
        """The parity ``mask`` after the permutation as ``(mask, sign)`` before it."""
        before = sum(1 << i for i, column in enumerate(self.columns) if (column & mask).bit_count() % 2)
        return before, -1 if (self.offset & mask).bit_count() % 2 else 1


Step = Turn | ControlledTurn | Phase | Permutation


@dataclass(frozen=True)
class PauliMask:
    """A Pauli string as bit masks: ``flips`` where it has X or Y, ``signs`` where it has Z or Y."""

    flips: int
    signs: int
    n_y: int
    sign: int = 1


@dataclass(frozen=True)
class Program:
    """Product state ``Π RY(initial_i) |0>``, then steps in order, then the observables."""

    n_qubits: int
    initial: tuple[Expression, ...]
    steps: tuple[Step, ...]
    observables: tuple[PauliMask, ...]


def lower(circuit: Circuit) -> Program:
    """Lower a circuit to its program."""
    return lower_gates(circuit.n_qubits, circuit.gates, circuit.observables)


def lower_gates(n_qubits: int, gates: Sequence[Gate], observables: Sequence[Observable]) -> Program:
    """Lower any part of a circuit; its inputs and weights keep their numbers."""
    lowering = _Lowering(n_qubits)
    for gate in gates:
        lowering.gate(gate)
    steps = [step for step, _ in lowering.steps]
    initial = steps.pop(0)
    assert isinstance(initial, Turn)
    masks = [_pauli_mask(o, n_qubits) for o in observables]
    if all(o.is_diagonal for o in observables):
        # What is diagonal or a permutation just before a measurement in Z is bookkeeping, not work.
        while steps and isinstance(steps[-1], (Phase, Permutation)):
            last = steps.pop()
            if isinstance(last, Permutation):
                pulled = [(o, *last.pull_back(o.signs)) for o in masks]
                masks = [PauliMask(0, mask, 0, o.sign * sign) for o, mask, sign in pulled]
    return Program(
        n_qubits,
        tuple(initial.angles.get(wire, Expression()) for wire in range(n_qubits)),
        tuple(steps),
        tuple(masks),
    )


def _pauli_mask(observable: Observable, n_qubits: int) -> PauliMask:
    masks = {"X": 0, "Y": 0, "Z": 0}
    for letter, wire in observable.paulis:
        masks[letter] |= 1 << (n_qubits - 1 - wire)
    return PauliMask(masks["X"] | masks["Y"], masks["Z"] | masks["Y"], masks["Y"].bit_count())


def _expression(gate: Gate) -> Expression:
    expression = Expression()
    if isinstance(gate.angle, Input):
        expression.inputs[gate.angle.index] += gate.angle.scale
    elif isinstance(gate.angle, Weight):
        expression.weights[gate.angle.index] += gate.angle.scale
    elif gate.angle is not None:
        expression.constant = gate.angle
    return expression


@dataclass
class _Reach:
    """On which wires a step is diagonal, and on which it is not: what decides whether two steps commute."""

    diagonal: int = 0
    other: int = 0

    def commutes(self, later: _Reach) -> bool:
        return not (self.other & (later.diagonal | later.other) or later.other & self.diagonal)


class _Lowering:
    def __init__(self, n_qubits: int) -> None:
        self.n_qubits = n_qubits
        self.steps: list[tuple[Step, _Reach]] = [(Turn({}), _Reach())]

    def bit(self, wire: int) -> int:
        return 1 << (self.n_qubits - 1 - wire)

    def gate(self, gate: Gate) -> None:
        name, wires = gate.name, gate.wires
        angle = _expression(gate)
        match name:
            case "H":
                self.phase_on_one(wires[0], Expression(math.pi / 2))
                self.turn(wires[0], Expression(math.pi / 2))
            case "X":
                self.permute([1 << i for i in range(self.n_qubits)], self.bit(wires[0]), 0)
            case "Y":
                self.phase_on_one(wires[0], Expression(math.pi / 2))
                self.permute([1 << i for i in range(self.n_qubits)], self.bit(wires[0]), 0)
            case "Z" | "S" | "T" | "SDG" | "TDG":
                turn = {"Z": 1.0, "S": 0.5, "T": 0.25, "SDG": -0.5, "TDG": -0.25}[name]
                self.phase_on_one(wires[0], Expression(turn * math.pi / 2))
            case "RZ":
                self.phase({self.bit(wires[0]): (angle, -0.5)})
            case "RY":
                self.turn(wires[0], angle)
            case "RX" | "CRX":
                self.phase({self.bit(wires[-1]): (Expression(math.pi / 2), -0.5)})
                if name == "RX":
                    self.turn(wires[0], angle)
                else:
                    self.controlled_turn(wires[0], wires[1], angle)
                self.phase({self.bit(wires[-1]): (Expression(-math.pi / 2), -0.5)})
            case "CRY":
                self.controlled_turn(wires[0], wires[1], angle)
            case "CRZ":  # -θ/2 (-1)^target (1 - (-1)^control) / 2
                control, target = map(self.bit, wires)
                self.phase({target: (angle, -0.25), control | target: (angle, 0.25)})
            case "CZ":  # π (1 - (-1)^a)(1 - (-1)^b) / 4
                a, b = map(self.bit, wires)
                quarter = Expression(math.pi / 4)
                self.phase({0: (quarter, 1.0), a: (quarter, -1.0), b: (quarter, -1.0), a | b: (quarter, 1.0)})
            case "CNOT":
                control, target = map(self.bit, wires)
                columns = [1 << i for i in range(self.n_qubits)]
                columns[control.bit_length() - 1] |= target
                self.permute(columns, 0, control, target)
            case "SWAP":
                a, b = map(self.bit, wires)
                columns = [1 << i for i in range(self.n_qubits)]
                columns[a.bit_length() - 1], columns[b.bit_length() - 1] = b, a
                self.permute(columns, 0, 0, a | b)
            case _:
                raise AssertionError(f"gate {name} has no lowering")

    def phase_on_one(self, wire: int, half: Expression) -> None:
        """``exp(2i half)`` where the wire is 1; the constant term keeps Z at exactly ±1."""
        self.phase({0: (half, 1.0), self.bit(wire): (half, -1.0)})

    def phase(self, terms: dict[int, tuple[Expression, float]]) -> None:
        mask = 0
        for term in terms:
            mask |= term
        touched = 0
        for _, reach in self.steps:
            touched |= reach.diagonal | reach.other
        if mask.bit_count() == 1 and not mask & touched:
            return  # a phase on |0> is global
        reach = _Reach(diagonal=mask)
        step = self.find(Phase, reach)
        if step is None:
            step = Phase({})
            self.steps.append((step, reach))
        assert isinstance(step, Phase)
        for term, (expression, factor) in terms.items():
            step.terms.setdefault(term, Expression()).add(expression, factor)

    def turn(self, wire: int, angle: Expression) -> None:
        reach = _Reach(other=self.bit(wire))
        step = self.find(Turn, reach)
        if step is None:
            step = Turn({})
            self.steps.append((step, reach))
        assert isinstance(step, Turn)
        step.angles.setdefault(wire, Expression()).add(angle)

    def controlled_turn(self, control: int, target: int, angle: Expression) -> None:
        reach = _Reach(diagonal=self.bit(control), other=self.bit(target))
        step = self.find(ControlledTurn, reach, (control, target))
        if step is None:
            step = ControlledTurn(control, target, Expression())
            self.steps.append((step, reach))
        assert isinstance(step, ControlledTurn)
        step.angle.add(angle)

    def permute(self, columns: list[int], offset: int, diagonal: int, other: int = 0) -> None:
        reach = _Reach(diagonal, other or offset)
        addition = Permutation(columns, offset)
        step = self.find(Permutation, reach)
        if step is None:
            self.steps.append((addition, reach))
        else:
            assert isinstance(step, Permutation)
            joined = step.then(addition)
            step.columns, step.offset = joined.columns, joined.offset

    def find(self, kind: type[Step], reach: _Reach, wires: tuple[int, int] | None = None) -> Step | None:
        """The earliest step of this kind that the new gate can be moved to; its reach grows by the gate's."""
        found = None
        for step, at in reversed(self.steps):
            fits = isinstance(step, kind)
            if fits and isinstance(step, ControlledTurn):
                fits = (step.control, step.target) == wires
            if fits:
                found = step, at
            if not at.commutes(reach):
                break
        if found is None:
            return None
        found[1].diagonal |= reach.diagonal
        found[1].other |= reach.other
        return found[0]
