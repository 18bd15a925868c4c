r"""From a circuit of real gates to a few orthogonal blocks: the plan by which :mod:`qpeft.tensornet.orthogonal` works.

Every real gate is a product of rotations RY and of signed permutations of the basis states, exactly::

    H = RY(π/2) Z        CRY(θ) = RY(θ/2) CZ RY(-θ/2) CZ        X, Z, CZ, CNOT, SWAP: signed permutations
    across a cut:        CNOT = H CZ H (H on the target)         SWAP = CNOT CNOT CNOT

(rightmost acts first). The wires are cut into groups of neighbours. Gates within one group multiply to one small
matrix of size ``2**width``, a *block*, as long as no gate across a cut comes in between; what acts across cuts are CZ
gates alone, a vector of signs. So a circuit becomes layers, each of one block per group (they commute) and one
diagonal ``D`` of signs: ``U = ... D_1 (B_11 ⊗ B_12 ⊗ ...) D_0 (B_01 ⊗ B_02 ⊗ ...)``. A block is such an alternation
again, of *moments*: ``B = K_m C_m ··· K_1 C_1 K_0`` with ``K`` a Kronecker product of 2 x 2 rotations and ``C`` a
signed permutation of the group.

A gate goes into the earliest layer (and moment) that dependencies allow, where gates that are diagonal on a shared
wire do not wait for each other. Wire 0 is the most significant bit of an index.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Gate, Input, Weight
from qpeft.errors import InputError

_FIXED = ("X", "Z", "CZ", "CNOT", "SWAP")
REAL_GATES = ("RY", "CRY", "H", *_FIXED)

# A product with blocks of 2**w costs about (2**w + 4) / 44 ns per number, for widths from 3 to 7, and a multiplication
# with signs 0.12 ns (one core with AVX-512, MKL, float32, vectors of 2048 to 16384 numbers). The last group's numbers
# are neighbours in memory: below 16 of them products and copies get slow.
_PASS = 4
_SIGNS = 5
_SMALLEST_GROUP, _LARGEST_GROUP = 3, 7
_SMALLEST_LAST_GROUP = 4


@dataclass
class Turn:
    """An RY angle in radians, ``constant + Σ weights[k] w_k``."""

    constant: float = 0.0
    weights: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, other: Turn) -> None:
        self.constant += other.constant
        for index, coefficient in other.weights.items():
            self.weights[index] += coefficient


@dataclass(frozen=True)
class Primitive:
    """RY with its angle, or one of the signed permutations X, Z, CZ, CNOT, SWAP."""

    name: str
    wires: tuple[int, ...]
    turn: Turn | None = None

    @property
    def changed(self) -> tuple[int, ...]:
        """The wires on which it is not diagonal."""
        return {"Z": (), "CZ": (), "CNOT": self.wires[1:]}.get(self.name, self.wires)


@dataclass(frozen=True)
class Moment:
    """A signed permutation of a group, then rotations: wire -> angle."""

    fixed: tuple[Primitive, ...]
    turns: dict[int, Turn]


@dataclass(frozen=True)
class Block:
    """All gates of one group in one layer: a matrix of size ``2**width`` on the wires from ``first`` on."""

    first: int
    width: int
    moments: tuple[Moment, ...]


@dataclass(frozen=True)
class Layer:
    """Blocks of different groups, then CZ gates across groups."""

    blocks: tuple[Block, ...]
    signs: tuple[Primitive, ...]


@dataclass(frozen=True)
class Plan:
    """A circuit as layers on groups of ``widths[i]`` neighbouring wires."""

    n_qubits: int
    n_weights: int
    widths: tuple[int, ...]
    layers: tuple[Layer, ...]

    @property
    def cost(self) -> int:
        """Estimated time per number of a vector, in units of a multiplication and addition."""
        blocks = sum((1 << block.width) + _PASS for layer in self.layers for block in layer.blocks)
        return blocks + _SIGNS * sum(bool(layer.signs) for layer in self.layers)


def make_plan(circuit: Circuit, widths: Sequence[int] | None = None) -> Plan:
    """The cheapest plan for a circuit without inputs, or the plan on groups of the given widths.

    Raises:
        InputError: A gate that is not real.
    """
    primitives = [primitive for gate in circuit.gates for primitive in _lower(gate)]
    candidates = [tuple(widths)] if widths is not None else _partitions(circuit.n_qubits)
    plans = (Plan(circuit.n_qubits, circuit.n_weights, groups, _layers(primitives, groups)) for groups in candidates)
    return min(plans, key=lambda plan: plan.cost)


def signed_permutation(gates: Sequence[Primitive], n_wires: int, first: int = 0) -> tuple[Tensor, Tensor]:
    """Gates as ``new[i] = sign[i] old[source[i]]`` on the wires from ``first`` on: (2**n,) int64, (2**n,) float64."""
    index = torch.arange(1 << n_wires, device="cpu")
    source, sign = index, torch.ones(1 << n_wires, dtype=torch.float64, device="cpu")
    for gate in gates:
        shifts = [n_wires - 1 - (wire - first) for wire in gate.wires]
        bits = [(index >> shift) & 1 for shift in shifts]
        match gate.name:
            case "Z":
                sign = sign * (1 - 2 * bits[0])
            case "CZ":
                sign = sign * (1 - 2 * (bits[0] & bits[1]))
            case _:
                if gate.name == "X":
                    moved = index ^ (1 << shifts[0])
                elif gate.name == "CNOT":
                    moved = index ^ (bits[0] << shifts[1])
                else:
                    differ = bits[0] ^ bits[1]
                    moved = index ^ (differ << shifts[0]) ^ (differ << shifts[1])
                source, sign = source[moved], sign[moved]
    return source, sign


def _lower(gate: Gate) -> list[Primitive]:
    if gate.name not in REAL_GATES:
        raise InputError(
            f"gate {gate.name} on {gate.wires} is not a real matrix, so the circuit is not orthogonal; "
            f"use the gates {' '.join(REAL_GATES)}."
        )
    if gate.name in _FIXED:
        return [Primitive(gate.name, gate.wires)]
    wire = gate.wires[-1]
    if gate.name == "H":
        return _hadamard(wire)
    if gate.name == "RY":
        return [Primitive("RY", (wire,), _turn(gate, 1.0))]
    flip = Primitive("CZ", gate.wires)
    back, forth = (Primitive("RY", (wire,), _turn(gate, factor)) for factor in (-0.5, 0.5))
    return [flip, back, flip, forth]


def _hadamard(wire: int) -> list[Primitive]:
    return [Primitive("Z", (wire,)), Primitive("RY", (wire,), Turn(math.pi / 2))]


def _across(primitive: Primitive) -> list[Primitive]:
    """A gate across a cut by gates within groups and CZ."""
    match primitive.name:
        case "CNOT":
            target = primitive.wires[1]
            return [*_hadamard(target), Primitive("CZ", primitive.wires), *_hadamard(target)]
        case "SWAP":
            there = _across(Primitive("CNOT", primitive.wires))
            back = _across(Primitive("CNOT", primitive.wires[::-1]))
            return [*there, *back, *there]
    return [primitive]


def _turn(gate: Gate, factor: float) -> Turn:
    turn = Turn()
    assert not isinstance(gate.angle, Input)
    if isinstance(gate.angle, Weight):
        turn.weights[gate.angle.index] += factor * gate.angle.scale
    elif gate.angle is not None:
        turn.constant = factor * gate.angle
    return turn


def _partitions(n_qubits: int) -> list[tuple[int, ...]]:
    """Ways to cut the wires into groups, all of them small, but the last not too small."""
    if n_qubits < _SMALLEST_GROUP + _SMALLEST_LAST_GROUP:
        return [(n_qubits,)]

    def cut(rest: int) -> Iterator[tuple[int, ...]]:
        if _SMALLEST_LAST_GROUP <= rest <= _LARGEST_GROUP:
            yield (rest,)
        for width in range(_SMALLEST_GROUP, _LARGEST_GROUP + 1):
            if rest - width >= _SMALLEST_LAST_GROUP:
                yield from ((width, *others) for others in cut(rest - width))

    return list(cut(n_qubits))


def _slots(primitives: Sequence[Primitive], is_local: Callable[[Primitive], bool]) -> list[list[Primitive]]:
    """Place each gate into the earliest slot that is allowed: even slots for local gates, odd ones for the others."""
    slots: list[list[Primitive]] = []
    last: dict[int, int] = defaultdict(int)  # the last slot in which a wire was touched
    changed: dict[int, int] = defaultdict(int)  # the last one in which it was touched by what is not diagonal on it
    for primitive in primitives:
        turned = primitive.changed
        slot = max(last[wire] if wire in turned else changed[wire] for wire in primitive.wires)
        slot += slot % 2 if is_local(primitive) else 1 - slot % 2
        while len(slots) <= slot:
            slots.append([])
        slots[slot].append(primitive)
        for wire in primitive.wires:
            last[wire] = max(last[wire], slot)
            if wire in turned:
                changed[wire] = slot
    return slots


def _layers(primitives: Sequence[Primitive], widths: Sequence[int]) -> tuple[Layer, ...]:
    group_of = [group for group, width in enumerate(widths) for _ in range(width)]
    firsts = [sum(widths[:group]) for group in range(len(widths))]

    def is_local(primitive: Primitive) -> bool:
        return len({group_of[wire] for wire in primitive.wires}) == 1

    expanded = [part for p in primitives for part in ([p] if is_local(p) else _across(p))]
    slots = _slots(expanded, is_local)
    layers = []
    for place in range(0, len(slots), 2):
        gates: dict[int, list[Primitive]] = defaultdict(list)
        for primitive in slots[place]:
            gates[group_of[primitive.wires[0]]].append(primitive)
        blocks = tuple(Block(firsts[g], widths[g], _moments(gates[g])) for g in sorted(gates))
        layers.append(Layer(blocks, tuple(slots[place + 1]) if place + 1 < len(slots) else ()))
    return tuple(layers)


def _moments(primitives: Sequence[Primitive]) -> tuple[Moment, ...]:
    slots = _slots(primitives, lambda p: p.turn is not None)
    moments = []
    for place in range(0, len(slots) + 1, 2):
        turns: dict[int, Turn] = {}
        for primitive in slots[place] if place < len(slots) else ():
            assert primitive.turn is not None
            turns.setdefault(primitive.wires[0], Turn()).add(primitive.turn)
        moments.append(Moment(tuple(slots[place - 1]) if place else (), turns))
    return tuple(moments)
