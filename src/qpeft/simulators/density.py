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

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators.noise import NoiseModel
from qpeft.simulators.pauli_lowering import Cone, NoisyProgram, find_cone, lower_noisy
from qpeft.simulators.pauli_samples import Angles, Contraction, Evolution, Head
from qpeft.simulators.pauli_table import Matrices, MatrixTable
from qpeft.simulators.pauli_tail import PulledBack, Tail

MAX_CONE = 10  # qubits that one observable may depend on: 4**10 coefficients

_TAIL_ELEMENTS = 1 << 24  # coefficients kept for the backward pass of one cone
_CHUNK_BYTES = 1 << 19
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
        InputError: A shape, dtype or device that does not fit, a light cone of more than 10 qubits, or a circuit that
            the noise model does not describe (wires, couplers).

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
    return torch.ops.qpeft.noisy_expectations(inputs, weights, circuit.key, noise.key)


def check_angles(circuit: Circuit, inputs: Tensor, weights: Tensor) -> None:
    """Make sure that inputs ``(batch, n_inputs)`` and weights ``(n_weights,)`` fit a circuit.

    Raises:
        InputError: A shape, dtype or device that does not fit.
    """
    if inputs.dim() != 2 or inputs.shape[1] != circuit.n_inputs:
        raise InputError(
            f"inputs must have the shape (batch, {circuit.n_inputs}) (got {tuple(inputs.shape)}); "
            f"the circuit takes {circuit.n_inputs} inputs."
        )
    if weights.dim() != 1 or weights.shape[0] != circuit.n_weights:
        raise InputError(
            f"weights must have the shape ({circuit.n_weights},) (got {tuple(weights.shape)}); "
            f"the circuit takes {circuit.n_weights} weights."
        )
    if not (inputs.is_floating_point() and weights.is_floating_point()):
        raise InputError(f"angles must be real floating point (got {inputs.dtype} and {weights.dtype}); cast them.")
    if inputs.device != weights.device:
        raise InputError(f"inputs are on {inputs.device}, weights on {weights.device}; move them to one device.")


class NoisyEngine:
    """A circuit with noise, ready to run."""

    def __init__(self, circuit: Circuit, noise: NoiseModel) -> None:
        program = lower_noisy(circuit, noise)
        self.n_observables = circuit.n_observables
        self.table = MatrixTable(program.table, circuit.n_weights)
        self.angles = Angles(program.spins, circuit.n_inputs)
        self.head = Head(program.head, program.head_sizes)
        cones = _choose_cones(program)
        self.tails: list[Tail] = []
        self.contractions: list[tuple[Contraction, list[int]]] = []  # with the tails that they join
        self.evolutions: list[tuple[Evolution, int]] = []
        groups: dict[tuple[object, ...], list[Tail]] = defaultdict(list)
        for cone in cones:
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
        self.elements = max(
            [contraction.elements for contraction, _ in self.contractions]
            + [evolution.elements for evolution, _ in self.evolutions]
        )

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_observables)``."""
        call = _Call(self, inputs, weights)
        out = inputs.new_empty(inputs.shape[0], self.n_observables)
        for part in call.parts:
            samples = self.angles.chunk(inputs[part])
            features, _ = self.head.forward(samples, call.matrices.runs)
            for (contraction, _), coefficients in zip(self.contractions, call.contracted, strict=True):
                contraction.forward(features, coefficients, out[part])
            for (evolution, _), coefficients, shares in zip(self.evolutions, call.evolved, call.shares, strict=True):
                evolution.forward(features, samples, shares, coefficients, out[part])
        return out

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_observables), ... -> (batch, n_inputs), (n_weights,)``, the latter in float64."""
        call = _Call(self, inputs, weights)
        to_inputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        to_blocks, to_runs = call.matrices.gradients()
        to_contracted = [torch.zeros_like(c, dtype=torch.float64) for c in call.contracted]
        to_evolved = [torch.zeros_like(c, dtype=torch.float64) for c in call.evolved]
        for part in call.parts:
            samples = self.angles.chunk(inputs[part])
            features, kept = self.head.forward(samples, call.matrices.runs)
            to_features = torch.zeros_like(features)
            towards = gradient[part]
            for (contraction, _), coefficients, to_coefficients in zip(
                self.contractions, call.contracted, to_contracted, strict=True
            ):
                contraction.backward(towards, features, coefficients, to_features, to_coefficients)
            for (evolution, _), coefficients, shares, to_coefficients in zip(
                self.evolutions, call.evolved, call.shares, to_evolved, strict=True
            ):
                evolution.backward(
                    towards, features, samples, shares, coefficients, to_features, to_coefficients, to_blocks
                )
            self.head.backward(to_features, kept, samples, call.matrices.runs, to_runs)
            self.angles.backward(samples, to_inputs[part])
        if call.parts:
            for (_, numbers), collected in zip(self.contractions, to_contracted, strict=True):
                sizes = [len(self.tails[number].cones) for number in numbers]
                for number, own in zip(numbers, collected.split(sizes), strict=True):
                    self.tails[number].backward(own, call.pulled[number], to_blocks)
            for (evolution, number), collected in zip(self.evolutions, to_evolved, strict=True):
                self.tails[number].backward(evolution.join_coefficients(collected), call.pulled[number], to_blocks)
        return to_inputs, self.table.backward(call.matrices, to_blocks, to_runs)


class _Call:
    """What one call computes before it looks at samples, and how it cuts the batch."""

    def __init__(self, engine: NoisyEngine, inputs: Tensor, weights: Tensor) -> None:
        dtype = inputs.dtype
        self.matrices: Matrices = engine.table.build(weights)
        blocks = self.matrices.blocks
        self.pulled: list[PulledBack] = [tail.forward(blocks, dtype) for tail in engine.tails]
        self.contracted = []
        for contraction, numbers in engine.contractions:
            parts = [self.pulled[number].coefficients for number in numbers]
            joined = parts[0] if len(parts) == 1 else torch.cat(parts)
            self.contracted.append(contraction.split_coefficients(joined).to(dtype))
        self.evolved = []
        self.shares = []
        for evolution, number in engine.evolutions:
            self.evolved.append(evolution.split_coefficients(self.pulled[number].coefficients).to(dtype))
            self.shares.append(evolution.share(blocks, dtype))
        samples = _chunk_samples(engine.elements * inputs.element_size(), inputs.device)
        self.parts = [slice(start, start + samples) for start in range(0, inputs.shape[0], samples)]


def _chunk_samples(bytes_per_sample: int, device: torch.device) -> int:
    if device.type != "cpu":
        return max(1, _ACCELERATOR_CHUNK_BYTES // bytes_per_sample)
    samples = min(_CHUNK_BYTES // bytes_per_sample, 1024)
    return max(1, samples // 16 * 16 or samples)


def _choose_cones(program: NoisyProgram) -> list[Cone]:
    """Observables by light cone, or all together if that is less work."""
    every = range(program.circuit.n_observables)
    single = [find_cone(program, [place]) for place in every]
    for place, cone in zip(every, single, strict=True):
        if len(cone.wires) > MAX_CONE:
            raise InputError(
                f"with noise, an observable may depend on at most {MAX_CONE} qubits, but "
                f"{program.circuit.observables[place]} depends on {len(cone.wires)}; "
                f"use fewer qubits, fewer layers, or no noise."
            )
    classes: list[list[int]] = []
    spans: list[set[int]] = []
    for place in sorted(every, key=lambda place: -len(single[place].wires)):
        wires = set(single[place].wires)
        home = next((i for i, span in enumerate(spans) if wires <= span), None)
        if home is None:
            classes.append([place])
            spans.append(wires)
        else:
            classes[home].append(place)
    apart = [find_cone(program, sorted(places)) for places in classes]
    if len(apart) > 1 and len(set().union(*spans)) <= MAX_CONE:
        together = [find_cone(program, list(every))]
        if _cost(together) < _cost(apart):
            apart = together
    return [part for cone in apart for part in _parts(program, cone)]


def _parts(program: NoisyProgram, cone: Cone) -> Sequence[Cone]:
    """The cone, or several of fewer observables where its coefficients would take too much memory."""
    fitting = max(1, _TAIL_ELEMENTS // (cone.elements * max(1, len(cone.tail))))
    if len(cone.places) <= fitting:
        return [cone]
    return [find_cone(program, cone.places[i : i + fitting]) for i in range(0, len(cone.places), fitting)]


# Measured: a small operation takes as long as 100,000 multiplications, and a batch is taken to have 1,000 samples.
_STEP_COST = 1e5
_BATCH = 1e3


def _cost(cones: Sequence[Cone]) -> float:
    total = 0.0
    for cone in cones:
        n = len(cone.places)
        total += len(cone.tail) * (_STEP_COST + 16 * n * cone.elements)
        total += _BATCH * (16 * len(cone.middle) * cone.state_elements + n * max(1, _product(cone.cut_sizes)))
    return total


def _product(sizes: Sequence[int]) -> int:
    total = 1
    for size in sizes:
        total *= size
    return total


@lru_cache(maxsize=256)
def _engine(circuit: str, noise: str) -> NoisyEngine:
    parsed, model = Circuit.from_key(circuit), NoiseModel.from_key(noise)
    model.check(parsed)
    return NoisyEngine(parsed, model)


# Inside the operators autocast is off: it would turn the matrix products into half precision.
@torch.library.custom_op("qpeft::noisy_expectations", mutates_args=())
def _expectations(inputs: Tensor, weights: Tensor, circuit: str, noise: str) -> Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        return _engine(circuit, noise).evaluate(inputs, weights)


@torch.library.custom_op("qpeft::noisy_expectations_backward", mutates_args=())
def _expectations_backward(
    gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str, noise: str
) -> tuple[Tensor, Tensor]:
    with torch.autocast(inputs.device.type, enabled=False):
        to_inputs, to_weights = _engine(circuit, noise).differentiate(gradient, inputs, weights)
    return to_inputs, to_weights.to(weights.dtype)


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
