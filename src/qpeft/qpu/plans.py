"""Where a circuit runs on a chip: regions, and a compiled template for every measurement basis and region.

Regions are chosen once for circuits with the same gates on the same wires, whatever their angles come from: a circuit
and the shifted circuits of its gradient stand at the same places, under the same calibration.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.chips.compiler import compile_circuit
from qpeft.chips.packing import Layout, plan_layout
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit, Observable
from qpeft.qpu.protocol import Block, Counts
from qpeft.simulators.bases import Setting, rotated, settings

_ANGLE_DECIMALS = 8  # what programs for vendors hold

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
        shape: Gates, wires and observables without angles: what noise does to a circuit depends on little else.
    """

    circuit: Circuit
    settings: tuple[Setting, ...]
    templates: tuple[tuple[NativeTemplate, ...], ...]
    layout: Layout
    shape: tuple[Any, ...]

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
        rows = len(inputs)
        assigned = self.layout.assign(rows, step)
        homes = self.rows_by_region(rows, step)
        circuits = []
        for place, templates in enumerate(self.templates):
            blocks: dict[int, Block] = {}
            for region, own in enumerate(homes):
                angles = native_angles(templates[region], inputs[own], weights).tolist()
                number = place * len(templates) + region
                blocks.update((row, Block(number, tuple(each))) for row, each in zip(own, angles, strict=True))
            circuits += [tuple(blocks[row] for row, _ in circuit) for circuit in assigned]
        return circuits

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
        out = inputs.new_empty(len(inputs), self.circuit.n_observables)
        for setting, templates in zip(self.settings, self.templates, strict=True):
            template = templates[region]
            angles = template.angles(inputs, weights).to(inputs.dtype)  # (rows, n_angles)
            beside = [other for place, other in enumerate(templates) if place != region]
            read = _diagonal(self.circuit, setting)
            out[:, list(setting.places)] = chip.expectations(template, angles, read, beside, readout)
        return out


def native_angles(template: NativeTemplate, inputs: Tensor, weights: Tensor) -> Tensor:
    """Native angles as they are sent: from -π to π, with the decimals that programs hold, ``(rows, n_angles)``."""
    angles = template.angles(inputs.detach().double(), weights.detach().double())
    # RZ(θ + 2π) is RZ(θ) up to a phase of the whole state.
    return (angles - 2 * math.pi * torch.round(angles / (2 * math.pi))).round(decimals=_ANGLE_DECIMALS)


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
        self._layouts: dict[tuple[Any, ...], Layout] = {}

    def plan(self, circuit: Circuit, snapshot: ChipSnapshot) -> Plan:
        """The plan of a circuit on a chip.

        Raises:
            InputError: The circuit fits nowhere.
        """
        if snapshot.id != self._chip:
            self._chip, self._plans, self._layouts = snapshot.id, {}, {}
        if circuit.key not in self._plans:
            self._plans[circuit.key] = self._make(circuit, snapshot)
        return self._plans[circuit.key]

    def _make(self, circuit: Circuit, snapshot: ChipSnapshot) -> Plan:
        bases = settings(circuit.key)
        measured = [
            replace(rotated(circuit.key, setting.wires), observables=_diagonal(circuit, setting)) for setting in bases
        ]
        gates = tuple((gate.name, gate.wires) for gate in circuit.gates)
        shape = circuit.n_qubits, gates, circuit.observables
        if shape not in self._layouts:
            self._layouts[shape] = plan_layout(measured[0], snapshot, **self.options)
        layout = self._layouts[shape]
        places = [template.qubits for template in layout.templates]
        templates = tuple(tuple(compile_circuit(basis, snapshot, qubits) for qubits in places) for basis in measured)
        return Plan(circuit, bases, templates, layout, shape)
