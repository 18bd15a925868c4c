"""What the chip behind the cloud does with a task: run its programs, join their parts, correct the readout if asked.

Parts that no gate joins are simulated by themselves. Their shots are put together at random, each part's shots in an
order of its own, which is exact: parts are independent. Readout correction is the inverse of the tensor product of the
readout matrices ``A_q = [[1 - p10, p01], [p10, 1 - p01]]`` of the measured qubits,

    p = (A_1 ⊗ ··· ⊗ A_k)^-1 f,

of each part, negative frequencies cut off; what comes out is frequencies and no counts.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.cloud.program import Part, Plan, plan_program
from qpeft.errors import InputError
from qpeft.qpu.protocol import Block

MAX_JOINT_BITS = 14  # up to here corrected frequencies are those of all bit strings, above they are drawn again


class Chip(Protocol):
    """What runs templates: :class:`qpeft.chips.virtual.VirtualChip`, or a stand-in."""

    @property
    def snapshot(self) -> ChipSnapshot:
        """The chip that is simulated."""

    def run(
        self, templates: list[NativeTemplate], circuits: list[list[Block]], shots: int, seed: int
    ) -> list[list[Tensor]]:
        """Counts of every block of every circuit."""


@dataclass(frozen=True)
class Row:
    """Result of a program.

    Args:
        keys: Bit strings as hexadecimal text, bit 0 rightmost.
        values: Their counts, or frequencies where the readout was corrected.
        program: What ran.
        bits: Classical bits, in their order.
        qubits: Qubit of the program that each bit reads.
        places: Qubit of the chip that each bit reads.
    """

    keys: list[str]
    values: list[int] | list[float]
    program: str
    bits: list[int]
    qubits: list[int]
    places: list[int]


def run_programs(chip: Chip, programs: list[str], shots: int, settings: dict[str, Any], seed: int) -> list[Row]:
    """Run the programs of a task.

    Args:
        chip: Where.
        programs: OriginIR.
        shots: Shots of each.
        settings: ``mapping`` (move qubits), ``amend`` (correct the readout).
        seed: Equal tasks with equal seeds have equal results.

    Raises:
        InputError: A program that the chip cannot run; the message says which.
    """
    plans = []
    for number, text in enumerate(programs):
        try:
            plans.append(plan_program(text, chip.snapshot, settings["mapping"]))
        except InputError as error:
            raise InputError(f"program {number}: {error}") from error
    templates: dict[int, tuple[int, NativeTemplate]] = {}  # by identity: parts of equal programs share theirs
    circuits = []
    for plan in plans:
        blocks = []
        for part, angles in zip(plan.parts, plan.angles, strict=True):
            index, _ = templates.setdefault(id(part.template), (len(templates), part.template))
            blocks.append(Block(index, angles))
        circuits.append(blocks)
    counts = chip.run([template for _, template in templates.values()], circuits, shots, seed)
    rows = []
    for number, (plan, found) in enumerate(zip(plans, counts, strict=True)):
        words = hashlib.sha256(f"{seed} {number}".encode()).digest()
        random = np.random.default_rng(int.from_bytes(words[:8], "little"))
        measured = [_marginal(part, part_counts) for part, part_counts in zip(plan.parts, found, strict=True)]
        keys: list[str]
        values: list[int] | list[float]
        if settings["amend"]:
            keys, values = _amended(plan, measured, chip.snapshot, shots, random)
        else:
            keys, values = _joined(plan, measured, random)
        places = plan.places()
        bits = sorted(places)
        rows.append(Row(keys, values, plan.text, bits, [plan.reads[b] for b in bits], [places[b] for b in bits]))
    return rows


def _read_wires(part: Part) -> list[int]:
    return [wire for wire, bit in enumerate(part.bits) if bit >= 0]


def _marginal(part: Part, counts: Tensor) -> NDArray[np.int64]:
    """Counts of the wires that are read: (2,) * wires."""
    k = len(part.bits)
    unread = tuple(wire for wire, bit in enumerate(part.bits) if bit < 0)
    whole: NDArray[np.int64] = counts.numpy().astype(np.int64).reshape((2,) * k)
    return whole.sum(axis=unread)


def _joined(plan: Plan, measured: list[NDArray[np.int64]], random: np.random.Generator) -> tuple[list[str], list[int]]:
    """Whole bit strings of all shots, and how often each occurs."""
    bits = None
    for part, counts in zip(plan.parts, measured, strict=True):
        flat = counts.reshape(-1)
        outcomes = random.permutation(np.repeat(np.arange(flat.size), flat))  # (shots,)
        if bits is None:
            bits = np.zeros((len(outcomes), plan.n_bits), dtype=np.uint8)
        wires = _read_wires(part)
        for place, wire in enumerate(wires):
            bits[:, part.bits[wire]] = outcomes >> (len(wires) - 1 - place) & 1
    assert bits is not None
    packed = np.packbits(bits, axis=1, bitorder="little")[:, ::-1]  # (shots, bytes), bit 0 is the last
    width = packed.shape[1]
    whole = np.ascontiguousarray(packed).view(np.dtype((np.void, width)))[:, 0]
    strings, times = np.unique(whole, return_counts=True)
    text = strings.tobytes().hex()
    keys = [text[start : start + 2 * width].lstrip("0") or "0" for start in range(0, len(text), 2 * width)]
    return [f"0x{key}" for key in keys], times.tolist()


def _amended(
    plan: Plan, measured: list[NDArray[np.int64]], snapshot: ChipSnapshot, shots: int, random: np.random.Generator
) -> tuple[list[str], list[float]]:
    """Frequencies with the readout errors taken out."""
    qubits = {qubit.index: qubit for qubit in snapshot.qubits}
    corrected = []
    for part, counts in zip(plan.parts, measured, strict=True):
        frequency = counts / counts.sum()
        for axis, wire in enumerate(_read_wires(part)):
            qubit = qubits[part.template.qubits[wire]]
            inverse = np.linalg.inv([[1 - qubit.p10, qubit.p01], [qubit.p10, 1 - qubit.p01]])
            frequency = np.moveaxis(np.tensordot(inverse, frequency, axes=(1, axis)), 0, axis)
        frequency = np.maximum(frequency, 0.0)
        corrected.append(frequency / frequency.sum())
    if plan.n_bits > MAX_JOINT_BITS:
        drawn = [random.multinomial(shots, f.reshape(-1)).reshape(f.shape) for f in corrected]
        keys, counts_of = _joined(plan, drawn, random)
        return keys, [count / shots for count in counts_of]
    whole: dict[int, float] = {0: 1.0}
    for part, frequency in zip(plan.parts, corrected, strict=True):
        bits = [part.bits[wire] for wire in _read_wires(part)]
        flat = frequency.reshape(-1)
        here = {
            sum((int(i) >> (len(bits) - 1 - place) & 1) << bit for place, bit in enumerate(bits)): float(flat[i])
            for i in np.flatnonzero(flat > 1e-12)
        }
        whole = {a | b: p * q for a, p in whole.items() for b, q in here.items()}
    total = math.fsum(whole.values())
    return [hex(key) for key in sorted(whole)], [whole[key] / total for key in sorted(whole)]
