r"""Exact expectations of circuits with noise, differentiable for inputs and weights, in plain torch on any device.

Nothing is sampled: with the channels ``E_g`` of a :class:`~qpeft.simulators.noise.NoiseModel` after the gates ``U_g``,

    <P_m> = tr(P_m ρ),        ρ = E_G(U_G ··· E_1(U_1 |0...0><0...0| U_1†) ··· U_G†).

The work is done on Pauli coefficients, where every channel is a real matrix (:mod:`qpeft.simulators.pauli`).
Observables are pulled back through the part of the circuit that no input follows, once for the whole batch, so that
noise costs nothing per sample there; what remains of a circuit that reads its inputs once is a product state, and a
sample costs at most ``3**n`` multiplications per observable of light cone ``n`` behind RY encodings (``4**n`` behind
others). Where inputs enter again after a two-qubit gate, each sample's ``4**n`` coefficients go through the part
in between. The batch is worked off in chunks, and nothing is kept for the backward pass but inputs and weights.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators.angles import check_angles, check_finite
from qpeft.simulators.noise import NoiseModel
from qpeft.simulators.pauli_lowering import Cone, NoisyProgram, find_cone, lower_noisy
from qpeft.simulators.pauli_samples import Angles, Contraction, Evolution, Head
from qpeft.simulators.pauli_table import Matrices, MatrixTable
from qpeft.simulators.pauli_tail import PulledBack, Tail

MAX_CONE = 10  # qubits that one observable may depend on: 4**10 coefficients

_CHUNK_BYTES = 1 << 21  # what contractions hold at once
_STATE_BYTES = 1 << 18  # Pauli vectors of the samples that are worked on at once
_CHUNK_SAMPLES = 4096
_LANES = 16
_REMEMBERED = 128  # sets of weights: the layers of a model share the engine of their circuit
_REMEMBERED_ELEMENTS = 1 << 20
_ACCELERATOR_CHUNK_BYTES = 1 << 26


def run_noisy(circuit: Circuit, inputs: Tensor, weights: Tensor, noise: NoiseModel) -> Tensor:
    """Evaluate a circuit with noise for a batch of inputs, exactly.

    Args:
        circuit: What to run. No observable may depend on more than 10 qubits.
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians, shared by the batch.
        noise: Channels after gates and errors of the readout. What it says is not differentiated.

    Returns:
        Expectations ``(batch, n_observables)`` as measured, that is with readout errors: float64 if ``inputs`` are
        float64, else float32. Differentiable once for inputs and weights. Without any noise they are those of
        :func:`qpeft.simulators.run`.

    Raises:
        InputError: A shape, dtype or device that does not fit, (on a processor) an angle that is NaN or infinite, a
            light cone of more than 10 qubits, or a circuit that the noise model does not describe (wires, couplers).

    Example:
        >>> from qpeft.circuits import Circuit, Gate, Input
        >>> circuit = Circuit(1, (Gate("RY", 0, Input(0)),))
        >>> run_noisy(circuit, torch.zeros(2, 1), torch.zeros(0), NoiseModel.uniform(depolarizing=0.25))
        tensor([[0.7500],
                [0.7500]])
    """
    check_angles(circuit, inputs, weights)
    if inputs.dtype != torch.float64:
        inputs = inputs.float()
    if type(inputs) is Tensor and not torch.compiler.is_compiling():
        return _Expectations.apply(inputs, weights, circuit.key, noise.key)
    return torch.ops.qpeft.noisy_expectations(inputs, weights, circuit.key, noise.key)


class NoisyEngine:
    """A circuit with noise, ready to run."""

    def __init__(self, circuit: Circuit, noise: NoiseModel) -> None:
        program = lower_noisy(circuit, noise)
        self.n_observables = circuit.n_observables
        self.table = MatrixTable(program.table, circuit.n_weights)
        self.angles = Angles(program.spins, circuit.n_inputs)
        self.head = Head(program.head, program.head_sizes)
        self.tails: list[Tail] = []
        self.contractions: list[tuple[Contraction, list[int]]] = []  # with the tails that they join
        self.evolutions: list[tuple[Evolution, int]] = []
        groups: dict[tuple[object, ...], list[Tail]] = defaultdict(list)
        for cone in _choose_cones(program):
            tail = Tail(cone)
            if cone.middle:
                self.evolutions.append((Evolution(cone), len(self.tails)))
                self.tails.append(tail)
            else:
                groups[tail.signature].append(tail)
        alike: dict[tuple[object, ...], list[int]] = defaultdict(list)
        for first, *others in groups.values():
            first.join(others)
            alike[first.signature[:2]].append(len(self.tails))
            self.tails.append(first)
        for numbers in alike.values():
            joined = [cone for number in numbers for cone in self.tails[number].cones]
            self.contractions.append((Contraction(joined), numbers))
        self.matrices = _Matrices([*self.tails, *(evolution for evolution, _ in self.evolutions)])
        # The backward pass has the weights of its forward pass, and a trained layer has the same ones always.
        self.remembered: OrderedDict[tuple[bytes, torch.dtype], _Shared] = OrderedDict()
        elements = sum(tail.kept_elements for tail in self.tails) + self.matrices.elements
        self.n_remembered = min(_REMEMBERED, _REMEMBERED_ELEMENTS // elements)

    def _share(self, like: Tensor, weights: Tensor, keep: bool) -> _Shared:
        if not self.n_remembered or weights.device.type != "cpu":
            return _Shared(self, like, weights, keep)
        key = weights.detach().double().numpy().tobytes(), like.dtype
        known = self.remembered.get(key)
        if known is None:
            known = self.remembered[key] = _Shared(self, like, weights, keep=True)
            while len(self.remembered) > self.n_remembered:
                self.remembered.popitem(last=False)
        return known

    def _parts(self, inputs: Tensor) -> list[slice]:
        """How the batch is cut."""
        sizes = [(part.elements, _CHUNK_BYTES) for part, _ in self.contractions]
        sizes += [(part.elements, _STATE_BYTES) for part, _ in self.evolutions]
        width = inputs.element_size()
        samples = min(_chunk_samples(elements * width, limit, inputs.device) for elements, limit in sizes)
        return [slice(start, start + samples) for start in range(0, inputs.shape[0], samples)]

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_observables)``."""
        call = self._share(inputs, weights, keep=False)
        out = inputs.new_empty(inputs.shape[0], self.n_observables)
        for part in self._parts(inputs):
            samples = self.angles.chunk(inputs[part])
            features, _ = self.head.forward(samples, call.table.runs)
            for (contraction, _), coefficients in zip(self.contractions, call.contracted, strict=True):
                contraction.forward(features, coefficients, out[part])
            for (evolution, _), coefficients, own in zip(self.evolutions, call.evolved, call.steps, strict=True):
                evolution.forward(features, samples, own, coefficients, out[part])
        return out

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_observables), ... -> (batch, n_inputs), (n_weights,)``, the latter in float64."""
        call = self._share(inputs, weights, keep=True)
        to_inputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        to_runs = torch.zeros_like(call.table.runs)
        to_contracted, to_evolved = (
            [torch.zeros_like(c, dtype=torch.float64) for c in given] for given in (call.contracted, call.evolved)
        )
        to_steps = [[torch.zeros_like(m, dtype=torch.float64) for m in own] for own in call.steps]
        for part in self._parts(inputs):
            samples = self.angles.chunk(inputs[part])
            features, kept = self.head.forward(samples, call.table.runs)
            to_features = torch.zeros_like(features)
            for place, (contraction, _) in enumerate(self.contractions):
                contraction.backward(
                    gradient[part], features, call.contracted[place], to_features, to_contracted[place]
                )
            for place, (evolution, _) in enumerate(self.evolutions):
                evolution.backward(
                    gradient[part],
                    features,
                    samples,
                    call.steps[place],
                    call.evolved[place],
                    to_features,
                    to_steps[place],
                    to_evolved[place],
                )
            self.head.backward(to_features, kept, samples, call.table.runs, to_runs)
            self.angles.backward(samples, to_inputs[part])
        to_coefficients: list[Tensor] = [torch.empty(0)] * len(self.tails)
        for (_, numbers), collected in zip(self.contractions, to_contracted, strict=True):
            sizes = [len(self.tails[number].cones) for number in numbers]
            for number, own in zip(numbers, collected.split(sizes), strict=True):
                to_coefficients[number] = own
        for (evolution, number), collected in zip(self.evolutions, to_evolved, strict=True):
            to_coefficients[number] = evolution.join_coefficients(collected)
        found = [t.backward(c, pulled) for t, c, pulled in zip(self.tails, to_coefficients, call.pulled, strict=True)]
        to_blocks = self.matrices.backward([*found, *to_steps], call.table.blocks)
        return to_inputs, self.table.backward(call.table, to_blocks, to_runs)


class _Matrices:
    """The matrices of all steps, taken from the blocks by one operation."""

    def __init__(self, owners: Sequence[Tail | Evolution]) -> None:
        self.shapes = [[step.shape for step in owner.entries] for owner in owners]
        flat = [step.flatten() for owner in owners for step in owner.entries]
        self.sizes = [len(step) for step in flat]
        self.elements = sum(self.sizes)
        self.entries = torch.cat([torch.zeros(0, dtype=torch.int64, device="cpu"), *flat])

    def forward(self, blocks: Tensor) -> list[list[Tensor]]:
        """For every owner and step ``(cones, after, before)``."""
        numbers = blocks.flatten()[self.entries.to(blocks.device)].split(self.sizes) if self.sizes else ()
        left = iter(numbers)
        return [[next(left).view(shape) for shape in shapes] for shapes in self.shapes]

    def backward(self, gradients: Sequence[Sequence[Tensor]], blocks: Tensor) -> Tensor:
        """From gradients of the matrices to those of the blocks."""
        to_blocks = torch.zeros_like(blocks)
        flat = [step.flatten() for own in gradients for step in own]
        if flat:
            to_blocks.view(-1).index_add_(0, self.entries.to(blocks.device), torch.cat(flat).double())
        return to_blocks


class _Shared:
    """What all samples share: matrices and pulled-back observables for one set of weights."""

    def __init__(self, engine: NoisyEngine, like: Tensor, weights: Tensor, keep: bool) -> None:
        self.table: Matrices = engine.table.build(weights)
        matrices = engine.matrices.forward(self.table.blocks)
        count = len(engine.tails)
        self.pulled: list[PulledBack] = [
            tail.forward(own, like, keep) for tail, own in zip(engine.tails, matrices[:count], strict=True)
        ]
        self.contracted = []
        for contraction, numbers in engine.contractions:
            parts = [self.pulled[number].coefficients for number in numbers]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            self.contracted.append(contraction.split_coefficients(joined).to(like.dtype))
        self.evolved = [
            evolution.split_coefficients(self.pulled[number].coefficients).to(like.dtype)
            for evolution, number in engine.evolutions
        ]
        self.steps = [[matrix[0].to(like.dtype) for matrix in own] for own in matrices[count:]]


def _chunk_samples(bytes_per_sample: int, limit: int, device: torch.device) -> int:
    """How many samples to work on at once."""
    if device.type != "cpu":
        return max(1, _ACCELERATOR_CHUNK_BYTES // bytes_per_sample)
    samples = min(limit // bytes_per_sample, _CHUNK_SAMPLES)
    if samples < _LANES:  # short rows cost more than a full cache
        return max(1, min(_LANES, 4 * limit // bytes_per_sample))
    return samples // _LANES * _LANES


def _choose_cones(program: NoisyProgram) -> list[Cone]:
    """Light cones of all observables, several in one if that is less work."""
    every = range(program.circuit.n_observables)
    if len(every) > _MANY:  # as where all strings on some wires are wanted
        together = find_cone(program, list(every))
        if len(together.wires) <= MAX_CONE:
            return [together]
    single = [find_cone(program, [place]) for place in every]
    for place, cone in zip(every, single, strict=True):
        if len(cone.wires) > MAX_CONE:
            raise InputError(
                f"with noise, an observable may depend on at most {MAX_CONE} qubits, but "
                f"{program.circuit.observables[place]} depends on {len(cone.wires)}; "
                f"use fewer qubits, fewer layers, or no noise."
            )
    # Observables with the same light cone share it; others do where that is less work.
    alike: dict[frozenset[int], list[int]] = defaultdict(list)
    for place, cone in zip(every, single, strict=True):
        alike[frozenset(cone.wires)].append(place)
    classes = [find_cone(program, places) for _, places in sorted(alike.items(), key=lambda item: -len(item[0]))]
    chosen: list[Cone] = []
    for cone in classes:
        best, gain = None, 0.0
        for place, home in enumerate(chosen[-_TRIED:]):
            if len({*home.wires, *cone.wires}) > MAX_CONE:
                continue
            joined = find_cone(program, sorted(home.places + cone.places))
            saved = _cost(home) + _cost(cone) - _cost(joined)
            if saved > gain:
                best, gain = (place + max(0, len(chosen) - _TRIED), joined), saved
        if best is None:
            chosen.append(cone)
        else:
            chosen[best[0]] = best[1]
    if len(chosen) > 1 and len({wire for cone in chosen for wire in cone.wires}) <= MAX_CONE:
        together = find_cone(program, list(every))
        if _cost(together) < sum(map(_cost, chosen)):
            chosen = [together]
    return chosen


# Measured: an operation on few numbers takes as long as 100,000 multiplications. A batch is taken to have 500 samples.
_STEP_COST = 1e5
_BATCH = 500
_MANY = 32  # observables that are not looked at one by one
_TRIED = 8  # cones that another one is compared with


def _cost(cone: Cone) -> float:
    """Work of an observable's cone in multiplications."""
    n = len(cone.places)
    shared = len(cone.tail) * (_STEP_COST + 16 * n * cone.elements)
    return shared + _BATCH * (16 * len(cone.middle) * cone.state_elements + n * math.prod(cone.cut_sizes))


@lru_cache(maxsize=256)  # a chip holds some 40 blocks with noise of their own, each for counts and for gradients
def _engine(circuit: str, noise: str) -> NoisyEngine:
    parsed, model = Circuit.from_key(circuit), NoiseModel.from_key(noise)
    model.check(parsed)
    return NoisyEngine(parsed, model)


def _evaluate(inputs: Tensor, weights: Tensor, circuit: str, noise: str) -> Tensor:
    check_finite(inputs, weights)
    # Inside the operators autocast is off: it would turn the matrix products into half precision.
    with torch.autocast(inputs.device.type, enabled=False):
        return _engine(circuit, noise).evaluate(inputs, weights)


def _evaluate_backward(
    gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str, noise: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(inputs.device.type, enabled=False):
        to_inputs, to_weights = _engine(circuit, noise).differentiate(gradient, inputs, weights)
    return to_inputs, to_weights.to(weights.dtype)


_expectations = torch.library.custom_op("qpeft::noisy_expectations", _evaluate, mutates_args=())
_expectations_backward = torch.library.custom_op(
    "qpeft::noisy_expectations_backward", _evaluate_backward, mutates_args=()
)


@_expectations.register_fake
def _(inputs: Tensor, weights: Tensor, circuit: str, noise: str) -> Tensor:
    return inputs.new_empty(inputs.shape[0], Circuit.from_key(circuit).n_observables)


@_expectations_backward.register_fake
def _(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str, noise: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str, str], output: Tensor) -> None:
    values, weights, ctx.circuit, ctx.noise = inputs
    ctx.save_for_backward(values, weights)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    inputs, weights = ctx.saved_tensors
    back = torch.ops.qpeft.noisy_expectations_backward(gradient, inputs, weights, ctx.circuit, ctx.noise)
    return *back, None, None


_expectations.register_autograd(_differentiate, setup_context=_keep)


class _Expectations(torch.autograd.Function):
    """The operators for code that runs eagerly, at half the time per call."""

    @staticmethod
    def forward(inputs: Tensor, weights: Tensor, circuit: str, noise: str) -> Tensor:
        return _evaluate(inputs, weights, circuit, noise)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, str], output: Tensor) -> None:
        _keep(ctx, inputs, output)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inputs, weights = ctx.saved_tensors
        return *_evaluate_backward(gradient, inputs, weights, ctx.circuit, ctx.noise), None, None
