"""From a circuit to a plan of the native kernel: small state vectors, whose amplitudes never move.

The program of :mod:`qpeft.simulators.lowering` is rewritten in three ways before the kernel sees it:

* *Frames.* A permutation of basis states (CNOT, X, SWAP) is affine over GF(2), so it only changes which amplitude a
  place in memory (a slot) stands for. Later rotations then act on pairs ``(s, s ^ flip)`` whose first element is told
  by a parity of ``s``, later phases have other masks, and measured strings have other signs; the permutation is gone,
  and phases on both sides of it add up.
* *Chains.* Gates on a wire that nothing has entangled yet act on that wire's two amplitudes alone.
* *Parts.* Wires which no remaining step connects are independent: a measured string is the product of its parts on
  them. A circuit may also be cut into the light cones of its observables, if that costs less.
* *Polynomials.* Where inputs enter through chains alone, what is measured on a part may be a polynomial in the
  expectations of single wires (:mod:`qpeft.simulators.polynomials`), if that costs less than its state.

The native sources (``native/src/plan.h``) say what the numbers of a plan mean. Wire 0 is the most significant bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qpeft.circuits import Circuit, Gate, Observable
from qpeft.simulators.lightcone import find_cone
from qpeft.simulators.lowering import (
    ControlledTurn,
    Expression,
    PauliMask,
    Permutation,
    Phase,
    Program,
    Turn,
    lower_gates,
)
from qpeft.simulators.polynomials import PauliRotation, PolynomialGroup, expand_all

# Up to here lanes are samples, although such a block outgrows the cache from 12 qubits on: with 16 samples it measured
# 2.3 times faster at 13 qubits, 2.1 at 14, 1.5 at 15. One choice for all batches keeps their results the same bits.
SAMPLE_QUBITS = 14
_HISTORY_BYTES = 4 << 20  # states that the backward pass of one thread may keep

_SIGNS, _TABLE, _LANE_PHASE, _PASS, _CONTROLLED = range(5)
_CHAIN_TURN, _CHAIN_PHASE = range(2)


@dataclass(frozen=True)
class KernelSizes:
    """What a plan needs to know about the kernel that will run it."""

    vector_bytes: int
    max_radix: int


@dataclass
class _Rotation:
    """RY by ``angle`` on pairs ``(s, s ^ flip)``; first is the element with ``parity(s & parity) == odd``."""

    angle: Expression
    flip: int
    parity: int
    odd: int


@dataclass
class _Rotations:
    """Rotations of different wires, which commute."""

    turns: list[_Rotation]


@dataclass
class _Controlled:
    """A rotation where ``parity(s & control) != control_odd``."""

    turn: _Rotation
    control: int
    control_odd: int


@dataclass
class _Phases:
    """``exp(i sum_m terms[m] (-1)^{parity(s & m)})``."""

    terms: dict[int, Expression]


_Step = _Rotations | _Controlled | _Phases


def make_plan(
    circuit: Circuit, sizes: KernelSizes, probabilities: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The numbers of a circuit's plan.

    Args:
        circuit: The circuit.
        sizes: Of the kernel that will run it.
        probabilities: Whether the outputs are the ``2**n_qubits`` probabilities instead of the observables.

    Returns:
        Whole numbers and real numbers, for ``qpeft_plan_create``.
    """
    measured: Sequence[Observable] = circuit.observables
    if probabilities:  # the program may end before a permutation; these strings then tell which one
        measured = [Observable(f"Z{wire}") for wire in range(circuit.n_qubits)]
    program = lower_gates(circuit.n_qubits, circuit.gates, measured)
    whole = _Pieces(circuit.n_qubits, program, probabilities)
    everything = list(range(circuit.n_observables))
    chosen = [(whole, everything)]
    if not probabilities:
        whole.expand()
        cones = _cones(circuit)
        if sum(pieces.cost() for pieces, _ in cones) < whole.cost():
            chosen = cones
    states = [part.n_bits for pieces, _ in chosen for part in pieces.parts if part.polynomials is None]
    by_amplitudes = max(states, default=0) > SAMPLE_QUBITS
    if by_amplitudes:  # one state vector at a time; cones and parts do not pay where the largest of them is that large
        chosen = [(_Pieces(circuit.n_qubits, program, probabilities, split=False), everything)]
    return _Writer(circuit, sizes, by_amplitudes, probabilities, chosen).write()


def _cones(circuit: Circuit) -> list[tuple[_Pieces, list[int]]]:
    """The light cones of the observables; observables with one and the same cone stay together."""
    groups: dict[tuple[tuple[int, ...], tuple[Gate, ...]], list[int]] = {}
    for place, observable in enumerate(circuit.observables):
        wires, gates = find_cone(circuit, observable)
        groups.setdefault((tuple(sorted(wires)), tuple(gates)), []).append(place)
    result = []
    for (cone, inside), places in groups.items():
        number = {wire: k for k, wire in enumerate(cone)}
        moved = [replace(gate, wires=tuple(number[wire] for wire in gate.wires)) for gate in inside]
        observables = [
            Observable(" ".join(f"{letter}{number[wire]}" for letter, wire in circuit.observables[place].paulis))
            for place in places
        ]
        result.append((_Pieces(len(number), lower_gates(len(number), moved, observables), False), places))
    return result


# --- frames -------------------------------------------------------------------------------------------------------


class _Frame:
    """Slots: logical bit ``i`` of slot ``s`` is ``parity(s & rows[i]) ^ odd[i]``."""

    def __init__(self, n_bits: int) -> None:
        self.n_bits = n_bits
        self.rows = [1 << i for i in range(n_bits)]
        self.odd = [0] * n_bits
        self.columns = [1 << i for i in range(n_bits)]  # flip of a slot that flips logical bit i

    def permute(self, step: Permutation) -> None:
        rows, odd = [0] * self.n_bits, [step.offset >> i & 1 for i in range(self.n_bits)]
        for j, image in enumerate(step.columns):
            for i in range(self.n_bits):
                if image >> i & 1:
                    rows[i] ^= self.rows[j]
                    odd[i] ^= self.odd[j]
        self.rows, self.odd, self.columns = rows, odd, _inverse_columns(rows)

    def parity(self, mask: int) -> tuple[int, int]:
        """The parity of logical bits as ``(mask, odd)`` of slots."""
        slots = odd = 0
        for i in _bits(mask):
            slots ^= self.rows[i]
            odd ^= self.odd[i]
        return slots, odd

    def rotation(self, wire: int, angle: Expression) -> _Rotation:
        bit = self.n_bits - 1 - wire
        return _Rotation(angle, self.columns[bit], self.rows[bit], self.odd[bit])

    def flip(self, mask: int) -> int:
        slots = 0
        for i in _bits(mask):
            slots ^= self.columns[i]
        return slots


def _bits(mask: int) -> Iterable[int]:
    return (i for i in range(mask.bit_length()) if mask >> i & 1)


def _combinations(vectors: list[int], start: int = 0) -> NDArray[np.int64]:
    """Exclusive ors of all subsets of ``vectors``, numbered by the bits of their place."""
    result = np.array([start], dtype=np.int64)
    for vector in vectors:
        result = np.concatenate([result, result ^ vector])
    return result


def _inverse_columns(rows: list[int]) -> list[int]:
    """Columns of the inverse over GF(2) of an invertible matrix given by its rows."""
    n = len(rows)
    work = [(row, 1 << i) for i, row in enumerate(rows)]
    for i in range(n):
        pivot = next(k for k in range(i, n) if work[k][0] >> i & 1)
        work[i], work[pivot] = work[pivot], work[i]
        for k in range(n):
            if k != i and work[k][0] >> i & 1:
                work[k] = (work[k][0] ^ work[i][0], work[k][1] ^ work[i][1])
    inverse_rows = [inverse for _, inverse in work]
    return [sum((inverse_rows[i] >> j & 1) << i for i in range(n)) for j in range(n)]


class _Echelon:
    """Vectors over GF(2) that are independent."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def add(self, vector: int) -> bool:
        """Whether the vector is independent of those before it, which it joins then."""
        for row in self.rows:
            vector = min(vector, vector ^ row)
        if vector:
            self.rows.append(vector)
            self.rows.sort(reverse=True)
        return bool(vector)


# --- pieces -------------------------------------------------------------------------------------------------------


@dataclass
class _Part:
    n_bits: int
    chains: list[list[tuple[int, Expression]]]
    steps: list[_Step]
    values: list[PauliMask] = field(default_factory=list)
    order: NDArray[np.int64] | None = None  # for probabilities: slot of every basis state
    polynomials: list[PolynomialGroup] | None = None  # instead of a state

    def value(self, mask: PauliMask) -> int:
        """Number of a measured string in this part, which is added if it is new."""
        if mask not in self.values:
            self.values.append(mask)
        return self.values.index(mask)

    @property
    def complex_product(self) -> bool:
        return any(kind == _CHAIN_PHASE for chain in self.chains for kind, _ in chain)

    def expand(self) -> None:
        """Choose polynomials, if they cost less than the state."""
        rotations = [_pauli_rotations(step) for step in self.steps]
        if any(rotation.angle.inputs for step in rotations for rotation in step):
            return
        letters = [set() if not chain else {1, 2} for chain in self.chains]  # of a wire in |0> only Z, which is 1
        for chain, present in zip(self.chains, letters, strict=True):
            present |= {1} | ({3} if any(kind == _CHAIN_PHASE for kind, _ in chain) else set())
        limit = self.cost() - self._chains_cost()
        self.polynomials = expand_all(self.values, rotations, letters, limit)

    def _chains_cost(self) -> float:
        return 150.0 + 20 * sum(map(len, self.chains))

    def cost(self) -> float:
        """Vector operations of a forward pass, roughly."""
        if self.polynomials is not None:
            return self._chains_cost() + sum(group.cost() for group in self.polynomials)
        d = 1 << self.n_bits
        cost = self._chains_cost() + (8 if self.complex_product else 2) * d
        planes = 2 if self.complex_product else 1
        for step in self.steps:
            match step:
                case _Rotations():
                    sweeps = math.ceil(len(step.turns) / 4)
                    cost += planes * d * (len(step.turns) + 2 * sweeps) + 30 * sweeps
                case _Controlled():
                    cost += planes * d * 3 + 30
                case _Phases():
                    lanes = sum(1 for e in step.terms.values() if e.inputs)
                    cost += d * (6 + 6 * lanes) + 30
                    planes = 2
        return cost + 3 * planes * d


class _Pieces:
    """A program as parts, and each of its observables as a sign and factors ``(part, value)``."""

    def __init__(self, n_bits: int, program: Program, probabilities: bool, split: bool = True) -> None:
        frame = _Frame(n_bits)
        steps: list[_Step] = []
        for step in program.steps:
            match step:
                case Permutation():
                    frame.permute(step)
                case Phase():
                    phases = steps[-1] if steps and isinstance(steps[-1], _Phases) else _Phases({})
                    for mask, expression in step.terms.items():
                        slots, odd = frame.parity(mask)
                        if slots:  # the rest is a global phase
                            phases.terms.setdefault(slots, Expression()).add(expression, -1.0 if odd else 1.0)
                    if phases.terms and (not steps or steps[-1] is not phases):
                        steps.append(phases)
                case Turn():
                    turns = [frame.rotation(wire, e) for wire, e in sorted(step.angles.items(), reverse=True)]
                    if turns:
                        steps.append(_Rotations(turns))
                case ControlledTurn():
                    control = n_bits - 1 - step.control
                    turn = frame.rotation(step.target, step.angle)
                    steps.append(_Controlled(turn, frame.rows[control], frame.odd[control]))
        chains: list[list[tuple[int, Expression]]] = []
        for bit in range(n_bits):
            expression = program.initial[n_bits - 1 - bit]
            is_zero = expression.is_constant and expression.constant == 0.0
            chains.append([] if is_zero else [(_CHAIN_TURN, expression)])
        steps = _fold_chains(chains, steps)
        measured = [_in_frame(string, frame) for string in program.observables]
        components = [(1 << n_bits) - 1]
        if split and not probabilities:
            components = _components(n_bits, steps)
        self.parts: list[_Part] = []
        self.factors: list[list[tuple[int, int]]] = []  # of each observable: parts and numbers of values in them
        if probabilities:
            self.parts.append(_Part(n_bits, chains, steps, order=_slots_of_outcomes(measured)))
            return
        by_component: dict[int, int] = {}
        for string in measured:
            factors: list[tuple[int, int]] = []
            touched = [component for component in components if (string.flips | string.signs) & component]
            restricted = [(_squeeze(string.flips, c), _squeeze(string.signs, c)) for c in touched]
            # i^n_y is shared out so that each factor is a Pauli string; what is left over is a sign.
            left = string.n_y - sum((flips & signs).bit_count() for flips, signs in restricted)
            sign = -string.sign if left % 4 == 2 else string.sign
            for component, (flips, signs) in zip(touched, restricted, strict=True):
                if component not in by_component:
                    by_component[component] = len(self.parts)
                    self.parts.append(_restrict(component, n_bits, chains, steps))
                part = by_component[component]
                n_y = (flips & signs).bit_count() % 4
                factors.append((part, self.parts[part].value(PauliMask(flips, signs, n_y, sign))))
                sign = 1
            self.factors.append(factors)

    def cost(self) -> float:
        return sum(part.cost() for part in self.parts)

    def expand(self) -> None:
        for part in self.parts:
            part.expand()


def _pauli_rotations(step: _Step) -> list[PauliRotation]:
    """A step as rotations ``exp(-i angle/2 G)`` about Pauli strings, which commute."""
    match step:
        case _Rotations():
            return [_about_string(turn, 1.0) for turn in step.turns]
        case _Controlled():  # exp(-i angle/2 G (1 - Z)/2), Z of the control
            turn = _about_string(step.turn, 0.5)
            both = Expression()
            both.add(turn.angle, 1.0 if step.control_odd else -1.0)
            return [turn, PauliRotation(both, turn.power, turn.flips, turn.signs ^ step.control)]
        case _Phases():  # exp(ia Z)
            rotations = []
            for mask, expression in step.terms.items():
                angle = Expression()
                angle.add(expression, -2.0)
                if mask:
                    rotations.append(PauliRotation(angle, 0, 0, mask))
            return rotations


def _about_string(turn: _Rotation, factor: float) -> PauliRotation:
    angle = Expression()
    angle.add(turn.angle, factor)
    return PauliRotation(angle, 3 if turn.odd else 1, turn.flip, turn.parity)


def _slots_of_outcomes(wires: list[PauliMask]) -> NDArray[np.int64]:
    """Slot of every basis state, given the Z of every wire as a string on slots."""
    wires = wires[::-1]
    columns = _inverse_columns([wire.signs for wire in wires])
    start = 0
    for wire, column in zip(wires, columns, strict=True):
        start ^= column if wire.sign < 0 else 0
    return _combinations(columns, start)


def _in_frame(mask: PauliMask, frame: _Frame) -> PauliMask:
    signs, odd = frame.parity(mask.signs)
    return PauliMask(frame.flip(mask.flips), signs, mask.n_y, -mask.sign if odd else mask.sign)


def _fold_chains(chains: list[list[tuple[int, Expression]]], steps: list[_Step]) -> list[_Step]:
    """Move what acts on single wires that nothing has entangled yet into their chains; returns the rest."""
    open_bits = (1 << len(chains)) - 1
    rest: list[_Step] = []
    for step in steps:
        match step:
            case _Rotations():
                kept = [k for k, turn in enumerate(step.turns) if not _is_open(turn.flip | turn.parity, open_bits)]
                for k, turn in enumerate(step.turns):
                    if k not in kept:
                        angle = Expression()
                        angle.add(turn.angle, -1.0 if turn.odd else 1.0)
                        chains[turn.flip.bit_length() - 1].append((_CHAIN_TURN, angle))
                if not kept:
                    continue
                step = _Rotations([step.turns[k] for k in kept])
                for turn in step.turns:
                    open_bits &= ~(turn.flip | turn.parity)
            case _Controlled():
                open_bits &= ~(step.turn.flip | step.turn.parity | step.control)
            case _Phases():
                if all(_is_open(mask, open_bits) for mask in step.terms):
                    for mask, expression in step.terms.items():
                        chains[mask.bit_length() - 1].append((_CHAIN_PHASE, expression))
                    continue
                for mask in step.terms:
                    open_bits &= ~mask
        rest.append(step)
    return rest


def _is_open(mask: int, open_bits: int) -> bool:
    return mask.bit_count() == 1 and bool(mask & open_bits)


def _spread(part: _Part) -> _Part:
    """The part with its slots relabelled: upper bits are added to the lower ones.

    Slots that differ in upper bits alone would compete for the same few lines of a cache.
    """
    half = part.n_bits // 2
    lower = (1 << half) - 1

    def moved(turn: _Rotation) -> _Rotation:
        return replace(turn, flip=flips(turn.flip), parity=signs(turn.parity))

    def flips(mask: int) -> int:
        return mask ^ (mask >> half & lower)

    def signs(mask: int) -> int:
        return mask ^ (mask & lower) << half

    steps: list[_Step] = []
    for step in part.steps:
        match step:
            case _Rotations():
                steps.append(_Rotations([moved(turn) for turn in step.turns]))
            case _Controlled():
                steps.append(_Controlled(moved(step.turn), signs(step.control), step.control_odd))
            case _Phases():
                steps.append(_Phases({signs(mask): expression for mask, expression in step.terms.items()}))
    values = [replace(value, flips=flips(value.flips), signs=signs(value.signs)) for value in part.values]
    order = None if part.order is None else part.order ^ (part.order >> half & lower)
    return _Part(part.n_bits, part.chains, steps, values, order)


def _step_masks(step: _Step) -> list[int]:
    match step:
        case _Rotations():
            return [turn.flip | turn.parity for turn in step.turns]
        case _Controlled():
            return [step.turn.flip | step.turn.parity | step.control]
        case _Phases():
            return list(step.terms)


def _components(n_bits: int, steps: list[_Step]) -> list[int]:
    """Sets of bits that the steps connect, as masks."""
    components = [1 << i for i in range(n_bits)]
    for step in steps:
        for mask in _step_masks(step):
            joined = sum(component for component in components if component & mask)
            components = [component for component in components if not component & mask] + [joined]
    return sorted(components)


def _squeeze(mask: int, component: int) -> int:
    """The bits of a mask inside a component, moved together."""
    return sum((mask >> bit & 1) << k for k, bit in enumerate(_bits(component)))


def _restrict(component: int, n_bits: int, chains: list[list[tuple[int, Expression]]], steps: list[_Step]) -> _Part:
    if component == (1 << n_bits) - 1:
        return _Part(n_bits, chains, steps)

    def squeezed(turn: _Rotation) -> _Rotation:
        return replace(turn, flip=_squeeze(turn.flip, component), parity=_squeeze(turn.parity, component))

    kept: list[_Step] = []
    for step in steps:
        match step:
            case _Rotations():
                turns = [squeezed(turn) for turn in step.turns if turn.flip & component]
                if turns:
                    kept.append(_Rotations(turns))
            case _Controlled():
                if step.control & component:
                    kept.append(_Controlled(squeezed(step.turn), _squeeze(step.control, component), step.control_odd))
            case _Phases():
                terms = {_squeeze(mask, component): e for mask, e in step.terms.items() if mask & component}
                if terms:
                    kept.append(_Phases(terms))
    return _Part(component.bit_count(), [chains[bit] for bit in _bits(component)], kept)


# --- writing ------------------------------------------------------------------------------------------------------


@dataclass
class _Operation:
    """One operation of the kernel: its kind, whether the state is complex before and after it, and its numbers."""

    kind: int
    complex_in: bool
    complex_out: bool
    numbers: list[int]
    gradient_after: bool = False
    turns: list[_Rotation] = field(default_factory=list)  # of a pass
    bases: NDArray[np.int64] | None = None  # of a pass or a controlled rotation


@dataclass
class _Ending:
    """A last pass in which the backward pass begins: see ``ends_in_pass`` of the native sources."""

    bits: dict[int, int]  # by value
    order: NDArray[np.int64]
    bases: NDArray[np.int64]
    members: NDArray[np.int64]
    starts: NDArray[np.int64]


class _Writer:
    """Writes a plan in the order in which the kernel reads it."""

    def __init__(
        self,
        circuit: Circuit,
        sizes: KernelSizes,
        by_amplitudes: bool,
        probabilities: bool,
        chosen: list[tuple[_Pieces, list[int]]],
    ) -> None:
        self.circuit = circuit
        self.sizes = sizes
        self.by_amplitudes = by_amplitudes
        self.probabilities = probabilities
        self.chosen = chosen
        self.angles: dict[tuple[object, ...], Expression] = {}
        self.numbers_of_angles: dict[tuple[object, ...], int] = {}

    def write(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        self._parts()  # once to meet all angles; their numbers are known after that
        keys = sorted(self.angles, key=lambda key: bool(self.angles[key].inputs))
        self.numbers_of_angles = {key: number for number, key in enumerate(keys)}
        ints = [self.circuit.n_inputs, self.circuit.n_weights, self.by_amplitudes, self.probabilities]
        numbers: list[float] = []
        ints += [sum(1 for key in keys if not self.angles[key].inputs), len(keys)]
        for key in keys:
            angle = self.angles[key]
            numbers.append(angle.constant)
            for coefficients in (angle.inputs, angle.weights):
                ints += [len(coefficients), *coefficients]
                numbers += coefficients.values()
        ints += self._parts()
        ints += self._outputs()
        return np.array(ints, dtype=np.int64), np.array(numbers, dtype=np.float64)

    def _angle(self, expression: Expression, factor: float = 1.0) -> int:
        angle = Expression()
        angle.add(expression, factor)
        key = (angle.constant, tuple(sorted(angle.inputs.items())), tuple(sorted(angle.weights.items())))
        self.angles.setdefault(key, angle)
        return self.numbers_of_angles.get(key, 0)

    def _outputs(self) -> list[int]:
        if self.probabilities:
            return [1 << self.circuit.n_qubits, *[0] * (1 << self.circuit.n_qubits)]
        outputs: list[list[int]] = [[] for _ in range(self.circuit.n_observables)]
        first = 0
        for pieces, places in self.chosen:
            firsts = []
            for part in pieces.parts:
                firsts.append(first)
                first += len(part.values)
            for place, factors in zip(places, pieces.factors, strict=True):
                outputs[place] = [firsts[part] + value for part, value in factors]
        return [len(outputs), *(number for factors in outputs for number in (len(factors), *factors))]

    def _parts(self) -> list[int]:
        parts = [part for pieces, _ in self.chosen for part in pieces.parts]
        return [len(parts), *(number for part in parts for number in self._part(part))]

    def _part(self, part: _Part) -> list[int]:
        if part.polynomials is not None:
            return self._state(replace(part, steps=[])) + self._polynomials(part.polynomials)
        return [*self._state(part if self.by_amplitudes else _spread(part)), 0]

    def _polynomials(self, groups: list[PolynomialGroup]) -> list[int]:
        ints = [len(groups)]
        for group in groups:
            first = group.members[0]
            ints += [len(group.members), len(first.coefficients), first.n_slots, len(first.levels)]
            for level in first.levels:
                ints.append(len(level.runs))
                for letters, count in level.runs:
                    ints += [len(letters), *letters, count]
                ints += level.targets
            ints.append(len(first.pairs))
            for k, pairs in enumerate(first.pairs):
                ints += [len(pairs), *(slot for pair in pairs for slot in pair)]
                ints += [self._angle(member.angles[k]) for member in group.members]
            for member, value in zip(group.members, group.values, strict=True):
                ints += [value, member.sign < 0, *member.wires]
            ints += [number for c in first.coefficients for number in (abs(c) - 1, c < 0)]
        return ints

    def _state(self, part: _Part) -> list[int]:
        operations = self._operations(part)
        complex_end = operations[-1].complex_out if operations else part.complex_product
        ints = [part.n_bits, part.complex_product, complex_end]
        for chain in part.chains:
            ints.append(len(chain))
            for kind, expression in chain:
                ints += [kind, self._angle(expression, 0.5 if kind == _CHAIN_TURN else 1.0)]
        ending = self._ending(part, operations)
        if ending is not None:
            operations[-1].bases = ending.bases
        buffers = self._buffers(part, operations, ending is not None)
        ints.append(len(operations))
        for operation in operations:
            flags = [operation.kind, operation.complex_in, operation.complex_out, operation.gradient_after]
            ints += [*flags, *operation.numbers]
            if operation.bases is not None:
                ints += [len(operation.bases), *operation.bases.tolist()]
        ints += [*buffers, ending is not None]
        bits, order = ({}, part.order) if part.order is not None else _measuring_order(part)
        if ending is not None:
            bits, order = ending.bits, ending.order
        if part.polynomials is not None or (self.by_amplitudes and not self.probabilities):
            bits, order = {}, np.empty(0, dtype=np.int64)
        ints.append(len(part.values))
        for number, value in enumerate(part.values):
            ints += [value.flips, value.signs, value.n_y, value.sign < 0, bits.get(number, -1)]
        ends = [] if ending is None else [*ending.members.tolist(), *ending.starts.tolist()]
        return [*ints, len(bits), len(order), *order.tolist(), *ends]

    def _operations(self, part: _Part) -> list[_Operation]:
        operations: list[_Operation] = []
        is_complex = part.complex_product
        for step in part.steps:
            match step:
                case _Rotations():
                    for turns in self._sweeps(step.turns):
                        numbers = [len(turns), *(n for turn in turns for n in self._turn(turn))]
                        bases = self._bases(part.n_bits, turns)
                        operations.append(_Operation(_PASS, is_complex, is_complex, numbers, turns=turns, bases=bases))
                case _Controlled():
                    bases = self._bases(part.n_bits, [step.turn], step)
                    numbers = [1, *self._turn(step.turn), step.control, step.control_odd]
                    operations.append(_Operation(_CONTROLLED, is_complex, is_complex, numbers, bases=bases))
                case _Phases():
                    lanes = {mask: e for mask, e in step.terms.items() if e.inputs}
                    shared = {mask: e for mask, e in step.terms.items() if not e.inputs}
                    if shared and not lanes and (signs := _as_signs(part.n_bits, shared)):
                        operations.append(_Operation(_SIGNS, is_complex, is_complex, self._terms(signs)))
                        continue
                    for kind, terms in ((_TABLE, shared), (_LANE_PHASE, lanes)):
                        if terms:
                            operations.append(_Operation(kind, is_complex, True, self._terms(terms)))
                            is_complex = True
        return operations

    def _sweeps(self, turns: list[_Rotation]) -> list[list[_Rotation]]:
        """As few sweeps as hold them, of about equal size."""
        if self.by_amplitudes:
            return [turns]
        n_sweeps = math.ceil(len(turns) / self.sizes.max_radix)
        return [turns[len(turns) * k // n_sweeps : len(turns) * (k + 1) // n_sweeps] for k in range(n_sweeps)]

    def _ending(self, part: _Part, operations: list[_Operation]) -> _Ending | None:
        """How the backward pass can begin inside the last pass, if all that is measured are independent strings of Z.

        Their signs have to be bits of the place in an order that goes through one group after another.
        """
        if self.probabilities or self.by_amplitudes or not operations or not operations[-1].turns:
            return None
        turns = operations[-1].turns
        within: list[int] = []  # strings that change sign within groups, which of their turns change it, and the rest
        patterns = _Echelon()
        between: list[int] = []
        others = _Echelon()
        numbers: tuple[list[int], list[int]] = ([], [])
        for number, value in enumerate(part.values):
            pattern = sum(((value.signs & turn.flip).bit_count() & 1) << k for k, turn in enumerate(turns))
            if value.flips or not (patterns.add(pattern) if pattern else others.add(value.signs)):
                return None
            (within if pattern else between).append(value.signs)
            numbers[not pattern].append(number)
        within += [turn.parity for k, turn in enumerate(turns) if patterns.add(1 << k)]
        for bit in range(part.n_bits):
            row = 1 << bit
            for turn in turns:
                row ^= turn.parity if turn.flip >> bit & 1 else 0
            if others.add(row):
                between.append(row)
        columns = _inverse_columns(within + between)
        bits = {number: bit for bit, number in enumerate(numbers[0])}
        bits |= {number: len(turns) + bit for bit, number in enumerate(numbers[1])}
        order = _combinations(columns)
        places, starts = order[: 1 << len(turns)], order[:: 1 << len(turns)]
        bases = starts.copy()  # of each group: the member with all turns' parities
        members, start_members = np.zeros_like(places), np.zeros_like(starts)
        for k, turn in enumerate(turns):
            parities = _parities(part.n_bits, turn.parity)
            members |= parities[places] << k
            unlike = parities[starts] ^ turn.odd
            start_members |= unlike << k
            bases ^= unlike * turn.flip
        return _Ending(bits, order, bases, members, start_members)

    def _turn(self, turn: _Rotation) -> list[int]:
        return [self._angle(turn.angle, 0.5), turn.flip, turn.parity, turn.odd]

    def _terms(self, terms: dict[int, Expression]) -> list[int]:
        return [len(terms), *(n for mask, e in terms.items() for n in (mask, self._angle(e), 0))]

    def _bases(self, n_bits: int, turns: list[_Rotation], controlled: _Controlled | None = None) -> NDArray[np.int64]:
        if self.by_amplitudes:
            return np.empty(0, dtype=np.int64)
        chosen = np.ones(1 << n_bits, dtype=bool)
        for turn in turns:
            chosen &= _parities(n_bits, turn.parity) == turn.odd
        if controlled is not None:
            chosen &= _parities(n_bits, controlled.control) != controlled.control_odd
        return np.flatnonzero(chosen)

    def _buffers(self, part: _Part, operations: list[_Operation], ends_in_pass: bool) -> list[int]:
        """Decides which states the backward pass finds kept; boundary ``b`` is the state after ``b`` operations.

        An operation is differentiated with the state before it or the one after it, so about every second is kept.
        Where they are too many, the earliest are computed back.
        """
        last = len(operations) - ends_in_pass  # the backward pass begins with the state after so many operations
        stored = {0}  # the product state has memory of its own
        for i, operation in enumerate(operations):
            if operation.kind == _SIGNS:
                continue
            becomes_complex = operation.complex_out and not operation.complex_in
            operation.gradient_after = i not in stored and not becomes_complex and i < last
            stored.add(i + operation.gradient_after)
        stored.add(last)
        stored.discard(0)
        lanes = 1 if self.by_amplitudes else self.sizes.vector_bytes // 4
        most = max(2, _HISTORY_BYTES // (8 * lanes << part.n_bits))
        kept = sorted(stored)[-most:]
        places = []
        for boundary in range(last + 1):
            buffer = sum(1 for b in kept if b < boundary)  # of the next kept boundary
            places.append(buffer if boundary in kept else -1 - buffer)
        places += [-1] * ends_in_pass  # which is not there
        return [max(1, len(kept)), *places]


def _parities(n_bits: int, mask: int) -> NDArray[np.int64]:
    """``parity(s & mask)`` of all slots."""
    return _combinations([mask >> bit & 1 for bit in range(n_bits)])


def _as_signs(n_bits: int, terms: dict[int, Expression]) -> dict[int, Expression] | None:
    """The same phases with a global phase that makes all factors ±1, if there is one."""
    if n_bits > 16 or not all(e.is_constant for e in terms.values()):
        return None
    phases = np.zeros(1 << n_bits)
    for mask, expression in terms.items():
        phases += expression.constant * (1 - 2 * _parities(n_bits, mask))
    if not np.allclose(np.sin(phases - phases[0]), 0.0, atol=1e-12):
        return None
    return {**terms, 0: Expression(-float(phases[0]))}


def _measuring_order(part: _Part) -> tuple[dict[int, int], NDArray[np.int64]]:
    """Slots in an order in which measured Z strings are signs of single bits of the place.

    Returns the bit of each value that has one (as many as are independent), and the slots.
    """
    rows: list[int] = []
    bits: dict[int, int] = {}
    echelon = _Echelon()
    for number, value in enumerate(part.values):
        if not value.flips and echelon.add(value.signs):
            bits[number] = len(rows)
            rows.append(value.signs)
    if not rows:
        return {}, np.empty(0, dtype=np.int64)
    rows += [1 << bit for bit in range(part.n_bits) if echelon.add(1 << bit)]
    return bits, _combinations(_inverse_columns(rows))
