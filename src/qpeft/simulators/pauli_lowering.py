r"""From a circuit with noise to few small matrices on Pauli coefficients, and to the part of it each observable needs.

1. Every gate becomes operations: ``Turn``, a Pauli rotation by an input (a controlled rotation is two of them), and
   ``Local``, a matrix on one or two wires that all samples share, with the noise after the gate multiplied in.
2. Operations fall into three stages. **Head**: what happens to single wires until their last input, a product state.
   **Tail**: what no input follows, so that observables are pulled back through it once for the whole batch.
   **Middle**: the rest, which exists only where inputs enter after a two-qubit gate; every sample goes through it.
3. Within a stage operations are fused: runs on single wires are multiplied together and into the next two-qubit
   operation (``Block``); constant two-qubit operations that permute Pauli strings, such as CNOT with depolarising
   noise, are collected (``Shuffle``).
4. For a set of observables, the axis of each wire is cut to the letters that occur (sizes 1 to 4, in the order I, Z,
   X, Y) between every two pieces: those that the pulled-back observables contain and that the states of the batch can
   have. Wires that keep size 1 are outside the light cone. What is left is a ``Cone``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from qpeft.circuits import Circuit, Input, Weight
from qpeft.simulators.noise import NoiseModel
from qpeft.simulators.pauli import (
    ONE_WIRE_FEATURES,
    TWO_WIRE_FEATURES,
    Matrix,
    channel_matrix,
    gate_parts,
    observable_vectors,
    turn_parts,
)

Bits = NDArray[np.bool_]
Sizes = tuple[int, ...]  # letters on the axis of every wire


@dataclass(frozen=True)
class Local:
    """A matrix on one or two wires: ``Σ_f parts[f] feature_f(scale * weights[weight])``, or just ``parts[0]``."""

    wires: tuple[int, ...]
    parts: tuple[Matrix, ...]
    weight: int | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Turn:
    """``exp(-i angle P / 2)`` with the angle ``scale * inputs[index]`` of every sample."""

    wires: tuple[int, ...]
    letters: str
    index: int
    scale: float


def _operations(circuit: Circuit, noise: NoiseModel) -> list[Local | Turn]:
    found: list[Local | Turn] = []
    for place, gate in enumerate(circuit.gates):
        after: Matrix = np.eye(4 ** len(gate.wires))
        for channel, wires in noise.channels_after(gate, place):
            matrix = channel_matrix(channel, len(wires))
            if len(wires) < len(gate.wires):
                first = wires[0] == gate.wires[0]
                matrix = _kron(matrix, np.eye(4)) if first else _kron(np.eye(4), matrix)
            after = matrix @ after
        angle = gate.angle
        if isinstance(angle, Input):
            letter = gate.name[-1]
            if len(gate.wires) == 1:
                found.append(Turn(gate.wires, letter, angle.index, angle.scale))
            else:
                found.append(Turn(gate.wires[1:], letter, angle.index, angle.scale / 2))
                found.append(Turn(gate.wires, "Z" + letter, angle.index, -angle.scale / 2))
            if not np.array_equal(after, np.eye(len(after))):
                found.append(Local(gate.wires, (after,)))
            continue
        parts = gate_parts(gate.name)
        if isinstance(angle, Weight):
            found.append(Local(gate.wires, tuple(after @ part for part in parts), angle.index, angle.scale))
            continue
        if angle is not None:
            one = (1.0, math.cos(angle), math.sin(angle))
            features = (
                one if len(parts) == ONE_WIRE_FEATURES else (1.0, math.cos(angle / 2), math.sin(angle / 2), *one[1:])
            )
            parts = (sum((f * part for f, part in zip(features, parts, strict=True)), np.zeros_like(parts[0])),)
        found.append(Local(gate.wires, (after @ parts[0],)))
    return found


def _stages(
    operations: Sequence[Local | Turn], n_qubits: int
) -> tuple[list[list[Local | Turn]], list[Local | Turn], list[Local]]:
    """Head (for each wire), middle and tail."""
    head: list[list[Local | Turn]] = [[] for _ in range(n_qubits)]
    entangled: set[int] = set()
    rest: list[Local | Turn] = []
    for operation in operations:
        if len(operation.wires) == 1 and operation.wires[0] not in entangled:
            head[operation.wires[0]].append(operation)
        else:
            entangled.update(operation.wires)
            rest.append(operation)
    shared: list[Local | Turn] = []  # from the heads: what comes after their last input
    for wire, own in enumerate(head):
        last = max((place for place, o in enumerate(own) if isinstance(o, Turn)), default=-1)
        head[wire] = own[: last + 1]
        shared += own[last + 1 :]
    middle: list[Local | Turn] = []
    tail: list[Local] = []
    awaited: set[int] = set()  # wires on which an input follows
    for operation in reversed(shared + rest):
        if isinstance(operation, Turn) or awaited.intersection(operation.wires):
            awaited.update(operation.wires)
            middle.append(operation)
        else:
            tail.append(operation)
    return head, middle[::-1], tail[::-1]


@dataclass(frozen=True)
class Block:
    """A fused matrix on one or two wires, number ``index`` of the table."""

    wires: tuple[int, ...]
    index: int
    pattern: Bits  # (4**k, 4**k): where it may differ from 0
    constant: Matrix | None  # its value, where no weight enters


@dataclass(frozen=True)
class Shuffle:
    """A constant matrix on two wires with at most one number in every row and column."""

    wires: tuple[int, ...]
    constant: Matrix

    @property
    def pattern(self) -> Bits:
        return self.constant != 0


@dataclass(frozen=True)
class Spin:
    """A :class:`Turn` and the row of its angle."""

    wires: tuple[int, ...]
    letters: str
    row: int

    @property
    def pattern(self) -> Bits:
        return np.any(turn_parts(self.letters), axis=0)


Piece = Block | Shuffle | Spin


@dataclass
class Table:
    """How the matrices of all blocks follow from the weights.

    A *factor* is ``Σ_f parts[f] feature_f(scale * weight)``. Runs are products of factors on one wire, and block ``i``
    is ``pair_factor[i] · (run a ⊗ run b)``, or the second factor alone where ``pairs[i]`` says so.
    """

    parts: list[Matrix] = field(default_factory=list)  # of one-wire factors (3, 4, 4); number 0 is the identity
    weights: list[tuple[int | None, float]] = field(default_factory=list)
    runs: list[list[int]] = field(default_factory=list)  # factors in the order of time; number 0 is empty
    pair_parts: list[Matrix] = field(default_factory=list)  # of two-wire factors (5, 16, 16)
    pair_weights: list[tuple[int | None, float]] = field(default_factory=list)
    blocks: list[tuple[int | None, int, int]] = field(default_factory=list)  # pair factor, run a, run b

    def __post_init__(self) -> None:
        self._factor(np.eye(4)[None], None, 1.0)
        self.runs.append([])

    def _factor(self, parts: Matrix, weight: int | None, scale: float) -> int:
        padded = np.zeros((ONE_WIRE_FEATURES, 4, 4))
        padded[: len(parts)] = parts
        self.parts.append(padded)
        self.weights.append((weight, scale))
        return len(self.parts) - 1

    def run(self, operations: Sequence[Local]) -> int:
        """Number of the run of these operations, constants multiplied into their neighbours."""
        if not operations:
            return 0
        factors: list[tuple[Matrix, int | None, float]] = []
        constant = np.eye(4)
        for operation in operations:
            parts = np.array(operation.parts)
            if operation.weight is None:
                constant = parts[0] @ constant
            else:
                factors.append((parts @ constant, operation.weight, operation.scale))
                constant = np.eye(4)
        if factors:
            parts, weight, scale = factors.pop()
            factors.append((constant @ parts, weight, scale))
        else:
            factors.append((constant[None], None, 1.0))
        self.runs.append([self._factor(*factor) for factor in factors])
        return len(self.runs) - 1

    def block(self, wires: tuple[int, ...], operation: Local | None, before: Sequence[Sequence[Local]]) -> Block:
        """A new block: runs on each of the wires, then the operation."""
        runs = [self.run(operations) for operations in before]
        pair = None
        if operation is not None:
            padded = np.zeros((TWO_WIRE_FEATURES, 16, 16))
            padded[: len(operation.parts)] = operation.parts
            self.pair_parts.append(padded)
            self.pair_weights.append((operation.weight, operation.scale))
            pair = len(self.pair_parts) - 1
        matrices = [self.pattern(run) for run in runs]
        pattern = matrices[0] if len(wires) == 1 else np.kron(matrices[0], matrices[1])
        known = [matrix for run in runs if (matrix := self._constant(run)) is not None]
        constant: Matrix | None = None
        if len(known) == len(wires):
            constant = known[0] if len(wires) == 1 else _kron(known[0], known[1])
        if operation is not None:
            pattern = _product(np.any(np.array(operation.parts), axis=0), pattern)
            constant = None if constant is None or operation.weight is not None else operation.parts[0] @ constant
        self.blocks.append((pair, runs[0], runs[1] if len(wires) == 2 else 0))
        return Block(wires, len(self.blocks) - 1, pattern, constant)

    def pattern(self, run: int) -> Bits:
        """Where the matrix of a run may differ from 0: (4, 4)."""
        pattern = np.eye(4, dtype=bool)
        for factor in self.runs[run]:
            pattern = _product(np.any(self.parts[factor], axis=0), pattern)
        return pattern

    def _constant(self, run: int) -> Matrix | None:
        constant = np.eye(4)
        for factor in self.runs[run]:
            if self.weights[factor][0] is not None:
                return None
            constant = self.parts[factor][0] @ constant
        return constant


def _kron(left: Matrix, right: Matrix) -> Matrix:
    return np.asarray(np.kron(left, right), dtype=np.float64)


def _product(left: Bits, right: Bits) -> Bits:
    return (left.astype(np.int64) @ right.astype(np.int64)) > 0


class _Fusion:
    """Collects operations of a stage into pieces."""

    def __init__(self, table: Table, spins: list[Turn]) -> None:
        self.table = table
        self.spins = spins
        self.pieces: list[Piece] = []
        self.pending: dict[int, list[Local]] = {}

    def add(self, operation: Local | Turn) -> None:
        wires = operation.wires
        if isinstance(operation, Turn):
            self.flush(wires)
            self.pieces.append(Spin(wires, operation.letters, len(self.spins)))
            self.spins.append(operation)
        elif len(wires) == 1:
            self.pending.setdefault(wires[0], []).append(operation)
        elif operation.weight is None and _is_monomial(operation.parts[0]):
            self.flush(wires)
            self.pieces.append(Shuffle(wires, operation.parts[0]))
        else:
            before = [self.pending.pop(wire, []) for wire in wires]
            self.pieces.append(self.table.block(wires, operation, before))

    def flush(self, wires: Iterable[int]) -> None:
        """Write down pending runs: of all wires, two by two, if any of these wires has one."""
        if not self.pending.keys() & set(wires):
            return
        left = sorted(self.pending)
        pairs = [tuple(left[place : place + 2]) for place in range(0, len(left), 2)]
        for pair in reversed(pairs):  # observables meet them in ascending order
            self.pieces.append(self.table.block(pair, None, [self.pending[wire] for wire in pair]))
        self.pending.clear()


def _is_monomial(matrix: Matrix) -> bool:
    filled = matrix != 0
    return bool(filled.sum(0).max() <= 1 and filled.sum(1).max() <= 1)


@dataclass(frozen=True)
class HeadStep:
    """One step of a head: a run of the table, or a rotation about ``letter`` by the angle of ``row``."""

    size: int  # of the axis afterwards
    run: int | None = None
    letter: str = ""
    row: int = 0


@dataclass(frozen=True)
class NoisyProgram:
    """A circuit with noise as pieces."""

    circuit: Circuit
    noise: NoiseModel
    table: Table
    spins: tuple[Turn, ...]  # their angles are the rows of what belongs to a sample
    head: tuple[tuple[HeadStep, ...], ...]  # for each wire
    head_sizes: Sizes
    middle: tuple[Piece, ...]
    tail: tuple[Piece, ...]


def lower_noisy(circuit: Circuit, noise: NoiseModel) -> NoisyProgram:
    """Lower a circuit with noise after its gates."""
    heads, middle, tail = _stages(_operations(circuit, noise), circuit.n_qubits)
    table = Table()
    spins: list[Turn] = []
    head: list[tuple[HeadStep, ...]] = []
    sizes: list[int] = []
    for operations in heads:
        steps: list[HeadStep] = []
        run: list[Local] = []
        size = 2  # |0>: I and Z
        for operation in operations:
            if isinstance(operation, Local):
                run.append(operation)
                continue
            if run:
                number = table.run(run)
                size = _grown((size,), table.pattern(number))[0]
                steps.append(HeadStep(size, run=number))
                run = []
            size = _grown((size,), np.any(turn_parts(operation.letters), axis=0))[0]
            steps.append(HeadStep(size, letter=operation.letters, row=len(spins)))
            spins.append(operation)
        head.append(tuple(steps))
        sizes.append(size)
    stages: list[tuple[Piece, ...]] = []
    for stage in (middle, tail):
        fusion = _Fusion(table, spins)
        for operation in stage:
            fusion.add(operation)
        fusion.flush(tuple(fusion.pending))
        stages.append(tuple(fusion.pieces))
    return NoisyProgram(circuit, noise, table, tuple(spins), tuple(head), tuple(sizes), stages[0], stages[1])


def _grown(sizes: Sizes, pattern: Bits) -> Sizes:
    """Sizes of the axes after a matrix with this pattern: the largest letter that can be reached on each wire."""
    k = len(sizes)
    present = np.zeros([4] * k, dtype=bool)
    present[tuple(slice(size) for size in sizes)] = True
    reached = pattern[:, present.ravel()].any(axis=1).reshape([4] * k)
    return tuple(1 + int(places.max(initial=0)) for places in np.nonzero(reached))


def _propagate(start: Sequence[int], pieces: Iterable[Piece], backward: bool) -> list[list[int]]:
    """Sizes of all wires before the first piece and after each."""
    sizes = [list(start)]
    for piece in pieces:
        now = list(sizes[-1])
        pattern = piece.pattern.T if backward else piece.pattern
        for wire, size in zip(piece.wires, _grown(tuple(now[w] for w in piece.wires), pattern), strict=True):
            now[wire] = size
        sizes.append(now)
    return sizes


@dataclass(frozen=True)
class ConeStep:
    """A piece on the axes of a cone. A wire outside the cone is ``None``; its sizes are 1."""

    piece: Piece
    axes: tuple[int | None, ...]
    before: Sizes  # sizes of its wires in the order of time
    after: Sizes


@dataclass(frozen=True)
class Cone:
    """What a set of observables depends on."""

    places: tuple[int, ...]  # of the observables among the outputs
    wires: tuple[int, ...]  # of the axes
    vectors: Matrix  # (observables, letters of all axes) after the last piece
    sizes: Sizes  # of the axes at the end of the circuit
    head_sizes: Sizes  # of the axes at the end of the heads
    cut_sizes: Sizes  # of the axes between middle and tail
    middle: tuple[ConeStep, ...]
    tail: tuple[ConeStep, ...]

    @property
    def elements(self) -> int:
        """Coefficients of one observable where they are most."""
        return max(_elements(self.sizes, [(step.axes, step.before) for step in reversed(self.tail)]))

    @property
    def state_elements(self) -> int:
        """Numbers of one sample in the middle stage where they are most."""
        return max(_elements(self.head_sizes, [(step.axes, step.after) for step in self.middle]))


def _elements(start: Sizes, changes: Iterable[tuple[tuple[int | None, ...], Sizes]]) -> list[int]:
    now = list(start)
    found = [math.prod(now)]
    for axes, sizes in changes:
        for axis, size in zip(axes, sizes, strict=True):
            if axis is not None:
                now[axis] = size
        found.append(math.prod(now))
    return found


def find_cone(program: NoisyProgram, places: Sequence[int]) -> Cone:
    """The part of a program that some of its observables depend on."""
    n = program.circuit.n_qubits
    readout = {w: error for w in range(n) if (error := program.noise.readout_of(w)) is not None}
    factors = [observable_vectors(program.circuit.observables[place], readout) for place in places]
    measured = [1] * n
    for vectors in factors:
        for wire, vector in vectors.items():
            measured[wire] = max(measured[wire], 1 + int(np.flatnonzero(vector).max(initial=0)))
    pieces = [*program.middle, *program.tail]
    states = _propagate(program.head_sizes, pieces, backward=False)
    wanted = _propagate(measured, reversed(pieces), backward=True)[::-1]
    sizes = [[min(a, b) for a, b in zip(s, w, strict=True)] for s, w in zip(states, wanted, strict=True)]
    inside = {wire for now in sizes for wire, size in enumerate(now) if size > 1}
    anchor = min((wire for vectors in factors for wire in vectors), default=0)
    wires = tuple(sorted(inside or {anchor}, key=lambda wire: (wire - anchor) % n))
    axis = {wire: place for place, wire in enumerate(wires)}
    steps = []
    for piece, before, after in zip(pieces, sizes, sizes[1:], strict=False):
        first, last = tuple(before[w] for w in piece.wires), tuple(after[w] for w in piece.wires)
        steps.append(ConeStep(piece, tuple(axis.get(w) for w in piece.wires), first, last))
    split = len(program.middle)
    kept = [[s for s in part if max(s.before + s.after) > 1] for part in (steps[:split], steps[split:])]
    final = tuple(sizes[-1][wire] for wire in wires)
    rows = []
    for vectors in factors:
        row = np.ones(1)
        for wire, size in zip(wires, final, strict=True):
            row = np.kron(row, vectors.get(wire, np.eye(4)[0])[:size])
        for wire, vector in vectors.items():
            if wire not in axis:
                row = row * vector[0]
        rows.append(row)
    start, cut = (tuple(sizes[place][wire] for wire in wires) for place in (0, split))
    return Cone(tuple(places), wires, np.array(rows), final, start, cut, tuple(kept[0]), tuple(kept[1]))
