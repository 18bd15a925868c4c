"""Where copies of one circuit stand side by side on a chip, and which sample runs on which of them.

Places differ in quality, so a sample that always ran at the same place would always be off by the same amount. Rows of
a batch therefore move on by one block from step to step: with B blocks, row r of step s runs on block

    (order[r mod B] + s) mod B,    order: a permutation from the seed,

so every row has been on every block after B steps, and place by place the biases average out.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from qpeft.chips.template import NativeTemplate
from qpeft.errors import InputError

T = TypeVar("T")


class Neighbours(NamedTuple):
    """Two blocks that stand next to each other.

    Args:
        blocks: Numbers of the two blocks.
        qubits: One qubit of each that a coupler of the chip, working or not, joins.
    """

    blocks: tuple[int, int]
    qubits: tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Blocks on disjoint qubits, the best first.

    Args:
        templates: The circuit compiled for each block.
        scores: Expected fidelity of each block, between 0 and 1.
        snapshot: Id of the chip snapshot that it was made for.
        buffer: Idle qubits between two blocks.
        neighbours: Every coupler between two different blocks; crosstalk acts there.
        seed: Of the rotation of samples over blocks.
        proven: Whether no better layout exists (the exact solver says so).
    """

    templates: tuple[NativeTemplate, ...]
    scores: tuple[float, ...]
    snapshot: str
    buffer: int = 0
    neighbours: tuple[Neighbours, ...] = ()
    seed: int = 0
    proven: bool = False

    @property
    def n_blocks(self) -> int:
        """How many circuits run side by side."""
        return len(self.templates)

    def n_circuits(self, n_rows: int) -> int:
        """Packed circuits that ``n_rows`` samples need."""
        return -(-n_rows // self.n_blocks)

    def assign(self, n_rows: int, step: int = 0) -> list[list[tuple[int, int]]]:
        """Give every sample a circuit and a block.

        Args:
            n_rows: Samples of the batch.
            step: Number of the optimiser's step, 0 or more; it moves all samples on by one block.

        Returns:
            Of every packed circuit its pairs ``(row, block)`` by block; only the last circuit may have gaps.

        Raises:
            InputError: A negative number.

        Example:
            >>> layout = Layout(templates=("a", "b", "c"), scores=(0.9, 0.8, 0.7), snapshot="")
            >>> layout.assign(n_rows=4, step=0)
            [[(2, 0), (0, 1), (1, 2)], [(3, 1)]]
            >>> layout.assign(n_rows=4, step=1)
            [[(1, 0), (2, 1), (0, 2)], [(3, 2)]]
        """
        if n_rows < 0 or step < 0:
            raise InputError(f"rows and step must be 0 or more (got {n_rows} and {step}).")
        size = self.n_blocks
        order = random.Random(self.seed).sample(range(size), size)
        circuits = []
        for first in range(0, n_rows, size):
            last = min(first + size, n_rows)
            blocks = {(order[row % size] + step) % size: row for row in range(first, last)}
            circuits.append([(blocks[block], block) for block in sorted(blocks)])
        return circuits

    def unpack(self, results: Sequence[Sequence[T]], n_rows: int, step: int = 0) -> list[T]:
        """Undo :meth:`assign`: bring what came back circuit by circuit, block by block, into the order of the rows.

        Args:
            results: Of every packed circuit one result for each of its pairs ``(row, block)``, in their order.
            n_rows: As it was given to :meth:`assign`.
            step: As it was given to :meth:`assign`.

        Returns:
            One result per row.

        Raises:
            InputError: Circuits or results are missing or too many.
        """
        circuits = self.assign(n_rows, step)
        given = [len(circuit) for circuit in results]
        if given != [len(circuit) for circuit in circuits]:
            raise InputError(
                f"{n_rows} samples make {len(circuits)} circuits of at most {self.n_blocks} blocks; the results have "
                f"{len(given)} circuits of {given[:8]} blocks and cannot be told apart."
            )
        pairs = zip((pair for circuit in circuits for pair in circuit), (r for c in results for r in c), strict=True)
        by_row = {row: result for (row, _), result in pairs}
        return [by_row[row] for row in range(n_rows)]

    def classical_bits(self, circuit: Sequence[tuple[int, int]]) -> list[range]:
        """Classical bits that the wires of each block of a packed circuit are measured into.

        Blocks follow each other in the circuit's order, and within a block the wires; all measurements stand after
        one barrier, so that short blocks wait in |0> and not after their last gate.

        Example:
            >>> from types import SimpleNamespace
            >>> templates = tuple(SimpleNamespace(qubits=(q, q + 1)) for q in (0, 2))
            >>> Layout(templates, (0.9, 0.8), "").classical_bits([(0, 0), (1, 1)])
            [range(0, 2), range(2, 4)]
        """
        bits, first = [], 0
        for _, block in circuit:
            last = first + len(self.templates[block].qubits)
            bits.append(range(first, last))
            first = last
        return bits
