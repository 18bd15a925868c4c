"""OriginIR programs made ready for a virtual chip: cut into parts that no gate joins, each compiled for its qubits.

With mapping off, qubit numbers are those of the chip, and a two-qubit gate must act on a live coupler. With mapping on
they are names, and each part is compiled for the best connected place that is still free. Programs of native gates (RX
of multiples of 90 degrees, RZ, CZ) that differ in the angles of RZ alone, as those of one ansatz do, are read once.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache

import torch

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.chips.compiler import compile_circuit
from qpeft.circuits import Circuit, Gate, Input
from qpeft.circuits.originir import read_program
from qpeft.circuits.program_text import number_text
from qpeft.cloud.in_place import is_native, nativize
from qpeft.errors import InputError

_WORDS = re.compile(r"^[^\S\n]*(\w+)", re.MULTILINE)
_NATIVE_WORDS = {"QINIT", "CREG", "RX", "RZ", "CZ", "BARRIER", "MEASURE"}
_RZ = re.compile(r"^([^\S\n]*RZ +q\[\d+\] *, *)\( *([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?) *\)", re.MULTILINE | re.ASCII)


@dataclass(frozen=True)
class Part:
    """Some qubits that gates join, compiled.

    Args:
        template: The compiled part.
        free: Which free angles of the program are its inputs, in order.
        bits: Classical bit that each wire of the template is read into, -1 for a wire that is not read.
    """

    template: NativeTemplate
    free: tuple[int, ...]
    bits: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A program on a chip.

    Args:
        parts: On disjoint qubits of the chip.
        angles: Native angles of each part.
        reads: Qubit of the program that each classical bit reads; bits are numbered without gaps, in their order.
        text: The program that runs, as OriginIR.
    """

    parts: tuple[Part, ...]
    angles: tuple[tuple[float, ...], ...]
    reads: tuple[int, ...]
    text: str

    @property
    def n_bits(self) -> int:
        """How many classical bits are read."""
        return len(self.reads)

    def places(self) -> dict[int, int]:
        """Qubit of the chip that each bit reads."""
        return {
            bit: part.template.qubits[wire] for part in self.parts for wire, bit in enumerate(part.bits) if bit >= 0
        }


def plan_program(text: str, snapshot: ChipSnapshot, mapping: bool) -> Plan:
    """Make a program ready for a chip.

    Args:
        text: OriginIR.
        snapshot: The chip.
        mapping: Whether qubits of the program are only names.

    Raises:
        InputError: It cannot be read, measures nothing, or does not fit the chip.
    """
    values: tuple[float, ...] = ()
    skeleton = text
    words = _WORDS.findall(text)
    found = [float(angle) for _, angle in _RZ.findall(text)]
    if set(words) <= _NATIVE_WORDS and len(found) == words.count("RZ") and all(map(math.isfinite, found)):
        values = tuple(found)
        skeleton = _RZ.sub(r"\1(0)", text)
    parts, reads = _parts(skeleton, snapshot, mapping, len(values))
    angles = tuple(_angles(part, values) for part in parts)
    return Plan(parts, angles, reads, _written(parts, angles, snapshot, len(reads)) if mapping else text)


def _angles(part: Part, values: tuple[float, ...]) -> tuple[float, ...]:
    inputs = [values[number] for number in part.free]
    if part.template.bind is _as_given:
        return tuple(inputs)
    given = torch.tensor([inputs], dtype=torch.float64)
    return tuple(part.template.angles(given, torch.zeros(0, dtype=torch.float64))[0].tolist())


def _as_given(inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return inputs


@lru_cache(maxsize=128)
def _parts(text: str, snapshot: ChipSnapshot, mapping: bool, n_free: int) -> tuple[tuple[Part, ...], tuple[int, ...]]:
    """Parts of a program, ``n_free`` (all or none) of whose RZ have free angles, and the qubit of each bit."""
    circuit, bits = read_program(text)
    if not bits:
        raise InputError("the program measures nothing; add MEASURE.")
    rank = {bit: place for place, bit in enumerate(sorted(bits))}
    reads: dict[int, int] = {}
    for bit, qubit in bits.items():
        if qubit in reads:
            raise InputError(f"qubit {qubit} is measured twice; measure it into one bit.")
        reads[qubit] = rank[bit]
    taken: set[int] = set()
    parts = []
    numbers = iter(range(n_free))
    free = [next(numbers, -1) if gate.name == "RZ" and n_free else -1 for gate in circuit.gates]
    for qubits, places in _components(circuit, list(reads)):
        gates = [circuit.gates[place] for place in places]
        local = {qubit: wire for wire, qubit in enumerate(qubits)}
        inputs = [free[place] for place in places if free[place] >= 0]
        order = iter(range(len(inputs)))
        small = Circuit(
            len(qubits),
            tuple(
                Gate(g.name, tuple(local[w] for w in g.wires), Input(next(order)) if free[place] >= 0 else g.angle)
                for place, g in zip(places, gates, strict=True)
            ),
        )
        template = _compiled(small, snapshot, qubits, mapping, taken)
        taken.update(template.qubits)
        read_by = {template.readout[local[qubit]]: reads.get(qubit, -1) for qubit in qubits}
        wires = tuple(read_by.get(wire, -1) for wire in range(len(template.qubits)))
        parts.append(Part(template, tuple(inputs), wires))
    return tuple(parts), tuple(bits[bit] for bit in sorted(bits))


def _components(circuit: Circuit, measured: list[int]) -> list[tuple[tuple[int, ...], list[int]]]:
    """Qubits that gates join, and the numbers of those gates; what is never read is left out."""
    parent = {qubit: qubit for gate in circuit.gates for qubit in gate.wires} | {qubit: qubit for qubit in measured}

    def root(qubit: int) -> int:
        while parent[qubit] != qubit:
            parent[qubit] = parent[parent[qubit]]
            qubit = parent[qubit]
        return qubit

    for gate in circuit.gates:
        for qubit in gate.wires[1:]:
            parent[root(qubit)] = root(gate.wires[0])
    members = defaultdict(list)
    for qubit in sorted(parent):
        members[root(qubit)].append(qubit)
    gates = defaultdict(list)
    for place, gate in enumerate(circuit.gates):
        gates[root(gate.wires[0])].append(place)
    read = {root(qubit) for qubit in measured}
    return [(tuple(qubits), gates[key]) for key, qubits in members.items() if key in read]


def _compiled(
    circuit: Circuit, snapshot: ChipSnapshot, qubits: tuple[int, ...], mapping: bool, taken: set[int]
) -> NativeTemplate:
    if mapping:
        return compile_circuit(circuit, snapshot, best_place(snapshot, circuit.n_qubits, taken))
    live = set(snapshot.live_qubits)
    wrong = [qubit for qubit in qubits if qubit not in live]
    if wrong:
        raise InputError(f"qubit {wrong[0]} is not available on chip {snapshot.name}.")
    pairs = {coupler.qubits for coupler in snapshot.live_couplers}
    for gate in circuit.gates:
        pair = tuple(sorted(qubits[wire] for wire in gate.wires))
        if len(pair) == 2 and pair not in pairs:
            raise InputError(f"{gate.name} acts on qubits {pair[0]} and {pair[1]}, which no live coupler joins.")
    native = circuit if all(is_native(gate) for gate in circuit.gates) else nativize(circuit)
    return NativeTemplate(native, qubits, tuple(range(len(qubits))), _as_given)


def best_place(snapshot: ChipSnapshot, size: int, taken: set[int] | frozenset[int] = frozenset()) -> tuple[int, ...]:
    """Connected qubits, none of them taken, with good couplers and readout: grown greedily from every start.

    Raises:
        InputError: There are none.
    """
    readout = {q.index: math.log(max(1 - (q.p10 + q.p01) / 2, 1e-9)) for q in snapshot.qubits}
    near: dict[int, dict[int, float]] = defaultdict(dict)
    for coupler in snapshot.live_couplers:
        a, b = coupler.qubits
        if a not in taken and b not in taken:
            near[a][b] = near[b][a] = math.log(coupler.fidelity)
    best: tuple[float, tuple[int, ...]] | None = None
    for start in snapshot.live_qubits:
        if start in taken:
            continue
        chosen, score = [start], readout[start]
        while len(chosen) < size:
            steps = [(w + readout[b], b) for a in chosen for b, w in near[a].items() if b not in chosen]
            if not steps:
                break
            gain, qubit = max(steps)
            chosen.append(qubit)
            score += gain
        if len(chosen) == size and (best is None or score > best[0]):
            best = score, tuple(sorted(chosen))
    if best is None:
        raise InputError(f"chip {snapshot.name} has no {size} connected qubits left; use fewer qubits.")
    return best[1]


def _written(
    parts: tuple[Part, ...], angles: tuple[tuple[float, ...], ...], snapshot: ChipSnapshot, n_bits: int
) -> str:
    """The program that runs, on the qubits of the chip."""
    lines = [f"QINIT {len(snapshot.qubits)}", f"CREG {n_bits}"]
    for part, values in zip(parts, angles, strict=True):
        for gate in part.template.circuit.bind(values).gates:
            wires = ",".join(f"q[{part.template.qubits[wire]}]" for wire in gate.wires)
            angle = f",({number_text(gate.angle)})" if isinstance(gate.angle, float) else ""
            lines.append(f"{gate.name} {wires}{angle}")
    for part in parts:
        for wire, bit in enumerate(part.bits):
            if bit >= 0:
                lines.append(f"MEASURE q[{part.template.qubits[wire]}],c[{bit}]")
    return "\n".join(lines) + "\n"
