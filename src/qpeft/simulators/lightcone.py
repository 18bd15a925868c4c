r"""The fast simulator for circuits that read their inputs once: each expectation from its own light cone.

Written in the Heisenberg picture, an observable ``P`` grows backward through the gates only where gates do not commute
with it. If it ends on ``k`` qubits, and inputs enter only through the product state at the start, then::

    <P>(x, w) = ψ(x)ᵀ M(w) ψ(x),     ψ(x) = ⊗_{i in cone} RY(x_i)|0>,     M(w) = Re(U(w)† P U(w)),

with the real symmetric ``2**k x 2**k`` matrix ``M`` shared by the whole batch, and a sample costs one product with it.
One layer of QTHA has cones of five qubits, however many qubits there are: gates of the second ring that do not touch
qubit ``i`` commute with what has become of Z_i by then.

Cones that differ only in their wires and angles, as around a ring, are computed together: their common program runs
once on all columns of all their ``U``, each column with its own angles. ``U`` and ``M`` are computed in float64.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Gate, Observable
from qpeft.simulators.lowering import ControlledTurn, Expression, Permutation, Phase, Program, Step, Turn, lower_gates
from qpeft.simulators.statevector import chunk_samples
from qpeft.simulators.steps import Angles, Chunk, ProductState, Readout, linear_maps, make_steps
from qpeft.simulators.tables import Constant

_MAX_CONE = 6
# Measured: building the matrices costs about as much per step of a group as 24 amplitudes cost at 500 samples, and a
# sample of a cone about 4**k multiplications against some hundred per amplitude of the whole state.
_AMPLITUDES_PER_STEP = 24
_MULTIPLICATIONS_PER_AMPLITUDE = 512

_DIAGONAL = frozenset({"Z", "S", "SDG", "T", "TDG", "RZ", "CZ", "CRZ"})


def _diagonal_wires(gate: Gate) -> tuple[int, ...]:
    """Wires on which the gate commutes with Z."""
    if gate.name in _DIAGONAL:
        return gate.wires
    return gate.wires[:1] if len(gate.wires) == 2 and gate.name != "SWAP" else ()


def find_cone(circuit: Circuit, observable: Observable) -> tuple[list[int], list[Gate]]:
    """Wires (from the observable's first wire onward, cyclically) and gates that an expectation depends on."""
    support = {wire for _, wire in observable.paulis}
    diagonal = {wire for letter, wire in observable.paulis if letter == "Z"}  # where the operator commutes with Z
    gates: list[Gate] = []
    for gate in reversed(circuit.gates):
        shared = support.intersection(gate.wires)
        on_diagonal = set(_diagonal_wires(gate))
        if shared <= diagonal & on_diagonal:
            continue  # commutes with the operator, or does not meet it
        gates.append(gate)
        for wire in gate.wires:
            if wire not in on_diagonal:
                diagonal.discard(wire)
            elif wire not in support:
                diagonal.add(wire)
        support.update(gate.wires)
    anchor = observable.paulis[0][1]
    return sorted(support, key=lambda wire: (wire - anchor) % circuit.n_qubits), gates[::-1]


@dataclass(frozen=True)
class _Cone:
    place: int  # of the observable among the outputs
    program: Program  # on the cone's wires
    slots: tuple[Expression, ...]  # angles of the steps that are not constant, in the order of the signature
    signature: tuple[object, ...]  # equal for cones that may be computed together


def _cone(circuit: Circuit, place: int) -> _Cone | None:
    observable = circuit.observables[place]
    wires, gates = find_cone(circuit, observable)
    if len(wires) > _MAX_CONE:
        return None
    number = {wire: k for k, wire in enumerate(wires)}
    moved = [replace(gate, wires=tuple(number[wire] for wire in gate.wires)) for gate in gates]
    text = " ".join(f"{letter}{number[wire]}" for letter, wire in observable.paulis)
    program = lower_gates(len(wires), moved, [Observable(text)])
    slots: list[Expression] = []
    signature: list[object] = [program.n_qubits, program.observables]

    def visit(expression: Expression) -> float | None:
        if expression.is_constant:
            return expression.constant
        slots.append(expression)
        return None

    for step in program.steps:
        match step:
            case Turn():
                signature.append(("turn", *((wire, visit(e)) for wire, e in sorted(step.angles.items()))))
            case ControlledTurn():
                signature.append(("controlled", step.control, step.target, visit(step.angle)))
            case Phase():
                signature.append(("phase", *((mask, visit(e)) for mask, e in sorted(step.terms.items()))))
            case Permutation():
                signature.append(("permutation", tuple(step.columns), step.offset))
    if any(slot.inputs for slot in slots):
        return None  # inputs are read again later: M would depend on the sample
    return _Cone(place, program, tuple(slots), tuple(signature))


def _template(program: Program) -> Program:
    """The program with a fresh input in place of every angle that is not constant, in the order of the slots."""
    count = 0

    def slot(expression: Expression) -> Expression:
        nonlocal count
        if expression.is_constant:
            return replace(expression)
        count += 1
        return Expression(inputs={count - 1: 1.0})

    steps: list[Step] = []
    for step in program.steps:
        match step:
            case Turn():
                steps.append(Turn({wire: slot(e) for wire, e in sorted(step.angles.items())}))
            case ControlledTurn():
                steps.append(ControlledTurn(step.control, step.target, slot(step.angle)))
            case Phase():
                steps.append(Phase({mask: slot(e) for mask, e in sorted(step.terms.items())}))
            case Permutation():
                steps.append(step)
    return Program(program.n_qubits, (), tuple(steps), program.observables)


class LightConeEngine:
    """All light cones of a circuit, in groups of equal structure."""

    def __init__(self, circuit: Circuit, cones: list[_Cone]) -> None:
        self.n_qubits = circuit.n_qubits
        self.n_observables = circuit.n_observables
        groups: dict[tuple[object, ...], list[_Cone]] = defaultdict(list)
        for cone in cones:
            groups[cone.signature].append(cone)
        self.groups = [_Group(group, circuit.n_inputs, circuit.n_weights) for group in groups.values()]

    @classmethod
    def for_circuit(cls, circuit: Circuit) -> LightConeEngine | None:
        """The engine, or ``None`` where a light cone is too wide or inputs are read again."""
        cones: list[_Cone] = []
        for place in range(circuit.n_observables):
            cone = _cone(circuit, place)
            if cone is None:
                return None
            cones.append(cone)
        return cls(circuit, cones)

    @property
    def pays(self) -> bool:
        """Whether it is faster than the state vector, for batches from a few hundred samples on."""
        amplitudes = 1 << self.n_qubits
        steps = sum(len(group.steps) for group in self.groups)
        multiplications = sum(group.cones * 4**group.wires for group in self.groups)
        return (
            steps * _AMPLITUDES_PER_STEP <= amplitudes
            and multiplications <= amplitudes * _MULTIPLICATIONS_PER_AMPLITUDE
        )

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_observables)``."""
        out = inputs.new_empty(inputs.shape[0], self.n_observables)
        with torch.inference_mode():
            for group in self.groups:
                group.evaluate(inputs, weights, out)
        return out

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_observables), ... -> (batch, n_inputs), (n_weights,)``, the latter in float64."""
        to_inputs = torch.zeros_like(inputs)
        to_weights = torch.zeros(weights.shape, dtype=torch.float64, device=weights.device)
        with torch.inference_mode():
            for group in self.groups:
                group.differentiate(gradient, inputs, weights, to_inputs, to_weights)
        return to_inputs, to_weights


class _Group:
    """Cones with one program: ``cones`` operators on ``wires`` qubits each."""

    def __init__(self, cones: list[_Cone], n_inputs: int, n_weights: int) -> None:
        first = cones[0].program
        self.wires = first.n_qubits
        self.cones = len(cones)
        self.places = Constant(torch.tensor([cone.place for cone in cones], device="cpu"))
        initial = [e for cone in cones for e in cone.program.initial]  # (cones * wires,)
        self.initial = [Constant(0.5 * values) for values in linear_maps(initial, n_inputs, n_weights)]
        slots = [cone.slots[i] for i in range(len(cones[0].slots)) for cone in cones]  # (slots * cones,)
        self.slots = [Constant(values) for values in linear_maps(slots, 0, n_weights)]
        template = _template(first)
        self.angles = Angles(template, len(cones[0].slots), 0)
        self.steps, self.tables = make_steps(template, self.angles)
        self.readout = Readout(template.observables, self.wires)

    def evaluate(self, inputs: Tensor, weights: Tensor, out: Tensor) -> None:
        operators = _Operators(self, weights).matrices.to(inputs.dtype)  # (cones, 2**k, 2**k)
        places = self.places.on(inputs.device)
        maps = self._initial(inputs, weights)
        for part in self._parts(inputs):
            state = self._states(inputs[part], maps).state  # (cones, 2**k, samples)
            out[part, places] = (torch.bmm(operators, state).mul_(state)).sum(1).t()

    def differentiate(
        self, gradient: Tensor, inputs: Tensor, weights: Tensor, to_inputs: Tensor, to_weights: Tensor
    ) -> None:
        shared = _Operators(self, weights)
        operators = shared.matrices.to(inputs.dtype)
        places = self.places.on(inputs.device)
        maps = self._initial(inputs, weights)
        of_matrices = torch.zeros_like(shared.matrices)
        of_initial = torch.zeros(self.cones * self.wires, dtype=torch.float64, device=inputs.device)
        for part in self._parts(inputs):
            states = self._states(inputs[part], maps)
            state = states.state
            weighted = state * gradient[part].t()[places][:, None]  # (cones, 2**k, samples)
            of_matrices += torch.bmm(weighted, state.transpose(1, 2))
            rows = states.backward(torch.bmm(operators, weighted).mul_(2))  # (cones, k, samples)
            rows = rows.flatten(0, 1)
            to_inputs[part].addmm_(rows.t(), maps[1])
            of_initial += rows.sum(1, dtype=torch.float64)
        to_weights += self.initial[2].on(inputs.device).t() @ of_initial
        to_weights += self.slots[2].on(inputs.device).t() @ shared.backward(of_matrices).flatten()

    def _parts(self, inputs: Tensor) -> list[slice]:
        samples = chunk_samples(self.cones * inputs.element_size() << self.wires, inputs.device)
        return [slice(start, start + samples) for start in range(0, inputs.shape[0], samples)]

    def _initial(self, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Half angles of the product states as ``offsets + from_inputs @ x``."""
        constants, from_inputs, from_weights = self.initial
        offsets = torch.addmv(constants.on(inputs.device), from_weights.on(inputs.device), weights.double())
        return offsets[:, None].remainder(2 * math.pi).to(inputs.dtype), from_inputs.like(inputs)

    def _states(self, inputs: Tensor, maps: tuple[Tensor, Tensor]) -> ProductState:
        half = torch.addmm(maps[0], maps[1], inputs.t()).view(self.cones, self.wires, -1)
        return ProductState(torch.stack([half.cos(), half.sin()], 2))


class _Operators:
    """The matrices ``M`` of a group for given weights, and the way back from their gradients to the angles."""

    def __init__(self, group: _Group, weights: Tensor) -> None:
        self.group = group
        size = 1 << group.wires
        constants, _, from_weights = (part.on(weights.device) for part in group.slots)
        slots = torch.addmv(constants, from_weights, weights.double()).view(-1, group.cones)
        angles = group.angles
        fixed = angles.constants.on(weights.device)
        rows = fixed[: angles.n_samples, None] + angles.from_inputs.like(slots) @ slots
        columns = rows.repeat_interleave(size, 1)  # (rows, cones * 2**k): every column of every U
        self.chunk = Chunk(columns[: angles.n_turns], columns[angles.n_turns :])
        self.shared = group.tables.share(fixed)
        self.states = [torch.eye(size, dtype=torch.float64, device=weights.device).repeat(1, group.cones)[None]]
        for step in group.steps:
            self.states.append(step.forward(self.states[-1], self.shared, self.chunk))
        self.applied = group.readout.apply_first(self.states[-1])  # (parts, 2**k, cones * 2**k)
        self.matrices = torch.bmm(self._by_cone(self.states[-1]).transpose(1, 2), self._by_cone(self.applied))

    def _by_cone(self, state: Tensor) -> Tensor:
        """``(parts, 2**k, cones * 2**k) -> (cones, parts * 2**k, 2**k)``."""
        size = 1 << self.group.wires
        return state.view(-1, self.group.cones, size).transpose(0, 1)

    def backward(self, gradient: Tensor) -> Tensor:
        """From gradients of the matrices to those of the slots ``(slots, cones)``, in float64."""
        group = self.group
        both = gradient + gradient.transpose(1, 2)
        adjoint = torch.bmm(self._by_cone(self.applied), both).transpose(0, 1).reshape(self.applied.shape)
        states, unused = list(self.states), group.tables.gradients(gradient.device)  # shared angles are constants
        for step in reversed(group.steps):
            output = states.pop()
            adjoint = step.backward(adjoint, output, self.shared, self.chunk, unused, states[-1])
        rows = self.chunk.gradient.view(group.angles.n_samples, group.cones, 1 << group.wires).sum(2)
        return group.angles.from_inputs.like(rows).t() @ rows
