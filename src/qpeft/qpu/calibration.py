"""What an executor measures before it runs circuits: readout errors of all wires, and how noise scales observables.

The readout of all regions is measured at once, so that errors which neighbours cause are in it. Two circuits do: all
qubits prepared in 0, and all in 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.chips.compiler import compile_circuit
from qpeft.circuits import Circuit, Gate
from qpeft.qpu.mitigation import AffineFit, readout_flips
from qpeft.qpu.plans import Regions
from qpeft.qpu.protocol import Block, Counts

Send = Callable[[Sequence[NativeTemplate], Sequence[tuple[Block, ...]]], Counts]
"""Runs circuits for a calibration."""


@dataclass
class Calibration:
    """What was measured on a set of regions.

    Args:
        name: Id, for reports.
        made: When, in seconds.
        flips: p10 and p01 of each qubit, ``(2,)``; none where readout errors are left as they are.
        fits: For each shape of a circuit one fit a region.
    """

    name: str
    made: float
    flips: dict[int, Tensor]
    fits: dict[str, list[AffineFit]] = field(default_factory=dict)

    def of(self, template: NativeTemplate) -> Tensor | None:
        """Flip probabilities of a template's wires, ``(k, 2)``, or ``None``."""
        return torch.stack([self.flips[qubit] for qubit in template.qubits]) if self.flips else None


def measure_readout(snapshot: ChipSnapshot, regions: Regions, send: Send) -> dict[int, Tensor]:
    """p10 and p01 of each qubit of some regions, ``(2,)`` each.

    Raises:
        ProviderError: A qubit reads 0 and 1 alike, or the provider failed.
    """
    templates = [_prepared(snapshot, qubits, bit) for bit in (0, 1) for qubits in regions]
    blocks = [Block(number, _constant_angles(template)) for number, template in enumerate(templates)]
    size = len(regions)
    answers = send(templates, [tuple(blocks[:size]), tuple(blocks[size:])])
    ups = []
    for bit, answer in enumerate(answers):
        own = templates[bit * size : (bit + 1) * size]
        ups.append({q: up for template, counts in zip(own, answer, strict=True) for q, up in _ups(template, counts)})
    qubits = list(ups[0])
    zeros, ones = (torch.stack([up[qubit] for qubit in qubits]) for up in ups)
    flips = readout_flips(zeros, ones, names=qubits)
    return dict(zip(qubits, flips, strict=True))


def _ups(template: NativeTemplate, counts: Tensor) -> list[tuple[int, Tensor]]:
    """Share of shots in which each qubit was read as 1."""
    k = len(template.qubits)
    grid = counts.double().view([2] * k) / counts.sum()
    left = [[axis for axis in range(k) if axis != wire] for wire in range(k)]
    shares = [(grid.sum(axes) if axes else grid)[1] for axes in left]
    return list(zip(template.qubits, shares, strict=True))


@lru_cache(maxsize=1024)
def _prepared(snapshot: ChipSnapshot, qubits: tuple[int, ...], bit: int) -> NativeTemplate:
    """A circuit that leaves every qubit of a region in 0 or in 1."""
    k = len(qubits)
    return compile_circuit(Circuit(k, tuple(Gate("X", (wire,)) for wire in range(k) if bit)), snapshot, qubits)


def _constant_angles(template: NativeTemplate) -> tuple[float, ...]:
    return tuple(template.angles(torch.zeros(1, 0), torch.zeros(0))[0].tolist())
