"""Where a circuit runs on a chip: regions, and a compiled template for every measurement basis and region.

What is compiled is the circuit with an angle of its own for every gate. So a circuit and the shifted circuits of its
gradient have the same pulses at the same places and the same calibration, and differ in angles alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.chips.compiler import compile_circuit
from qpeft.chips.packing import Layout, plan_layout
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit, Observable
from qpeft.circuits.parameters import separated, sources
from qpeft.qpu.protocol import Block, Counts
from qpeft.simulators.bases import Setting, rotated, settings

Regions = tuple[tuple[int, ...], ...]
"""Qubits of the chip in each region."""


@dataclass(frozen=True)
class Plan:
    """A circuit, compiled for every basis and region.

    Args:
        circuit: The circuit.
        settings: Its measurement bases.
        templates: ``[setting][region]``; they measure Z.
        layout: The regions, best first, and which row runs where.
        shape: Key of what was compiled; equal for circuits that differ only in where angles come from.
    """

    circuit: Circuit
    settings: tuple[Setting, ...]
    templates: tuple[tuple[NativeTemplate, ...], ...]
    layout: Layout
    shape: str

    @property
    def regions(self) -> Regions:
        """Qubits of each region."""
        return tuple(template.qubits for template in self.layout.templates)

    def masks(self, setting: int, region: int) -> tuple[int, ...]:
        """Wires of each observable of a setting as bits over the wires of a region's template."""
        template = self.templates[setting][region]
        k = len(template.qubits)
        strings = [self.circuit.observables[place].paulis for place in self.settings[setting].places]
        return tuple(sum(1 << (k - 1 - template.readout[wire]) for _, wire in string) for string in strings)

    def rows_by_region(self, rows: int, step: int) -> list[list[int]]:
        """Rows that run on each region in a step, in their order."""
        found: list[list[int]] = [[] for _ in self.layout.templates]
        for circuit in self.layout.assign(rows, step):
            for row, region in circuit:
                found[region].append(row)
        return found

    def pack(self, inputs: Tensor, weights: Tensor, step: int) -> list[tuple[Block, ...]]:
        """Packed circuits of rows ``(rows, n_inputs)``, setting by setting; templates are numbered alike."""
        rows, free = len(inputs), self._free(inputs.detach(), weights.detach())
        assigned = self.layout.assign(rows, step)
        homes = self.rows_by_region(rows, step)
        circuits = []
        for place, templates in enumerate(self.templates):
            blocks: dict[int, Block] = {}
            for region, own in enumerate(homes):
                angles = templates[region].angles(free[own], free.new_zeros(0)).tolist()
                number = place * len(templates) + region
                blocks.update((row, Block(number, tuple(each))) for row, each in zip(own, angles, strict=True))
            circuits += [tuple(blocks[row] for row, _ in circuit) for circuit in assigned]
        return circuits

    def _free(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Angles of all gates, ``(rows, occurrences)``, float64; differentiable."""
        to_inputs, to_weights = sources(self.circuit, inputs.detach().double())
        return inputs.double() @ to_inputs.T + to_weights @ weights.double()

    def unpack(self, answer: Counts, rows: int, step: int) -> list[list[Tensor]]:
        """Counts ``[setting][row]`` from the answer to :meth:`pack`."""
        size = self.layout.n_circuits(rows)
        return [self.layout.unpack(answer[i * size : (i + 1) * size], rows, step) for i in range(len(self.settings))]

    def twin(self, chip: VirtualChip, region: int, inputs: Tensor, weights: Tensor, readout: bool) -> Tensor:
        """Exact expectations with a region's noise, differentiable.

        Args:
            chip: The chip's model.
            region: Which region.
            inputs: ``(rows, n_inputs)``.
            weights: ``(n_weights,)``.
            readout: Whether readout errors count too.

        Returns:
            ``(rows, n_observables)`` in the dtype of the inputs.
        """
        out, free = inputs.new_empty(len(inputs), self.circuit.n_observables), self._free(inputs, weights)
        for setting, templates in zip(self.settings, self.templates, strict=True):
            template = templates[region]
            angles = template.angles(free, free.new_zeros(0))  # (rows, n_angles)
            beside = [other for place, other in enumerate(templates) if place != region]
            read = _diagonal(self.circuit, setting)
            out[:, list(setting.places)] = chip.expectations(template, angles, read, beside, readout).to(out.dtype)
        return out


def _diagonal(circuit: Circuit, setting: Setting) -> tuple[Observable, ...]:
    """What is read in Z after the change of basis, for each observable of a setting."""
    strings = [circuit.observables[place].paulis for place in setting.places]
    return tuple(Observable(" ".join(f"Z{wire}" for _, wire in string)) for string in strings)


class Planner:
    """Plans circuits and remembers them for as long as the chip stays as it is.

    Args:
        options: Keyword arguments of :func:`qpeft.chips.packing.plan_layout`.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = dict(options)
        self._chip = ""
        self._plans: dict[str, Plan] = {}

    def plan(self, circuit: Circuit, snapshot: ChipSnapshot) -> Plan:
        """The plan of a circuit on a chip.

        Raises:
            InputError: The circuit fits nowhere.
        """
        if snapshot.id != self._chip:
            self._chip, self._plans = snapshot.id, {}
        if circuit.key not in self._plans:
            free = separated(circuit)
            if free.key not in self._plans:
                self._plans[free.key] = self._make(free, snapshot)
            self._plans[circuit.key] = replace(self._plans[free.key], circuit=circuit)
        return self._plans[circuit.key]

    def _make(self, circuit: Circuit, snapshot: ChipSnapshot) -> Plan:
        bases = settings(circuit.key)
        measured = [
            replace(rotated(circuit.key, setting.wires), observables=_diagonal(circuit, setting)) for setting in bases
        ]
        layout = plan_layout(measured[0], snapshot, **self.options)
        places = [template.qubits for template in layout.templates]
        more = (tuple(compile_circuit(basis, snapshot, qubits) for qubits in places) for basis in measured[1:])
        return Plan(circuit, bases, (layout.templates, *more), layout, circuit.key)
