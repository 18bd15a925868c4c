r"""Exact expectations ``<P_m>`` of a batch, differentiable for inputs and weights, in plain torch on any device.

The batch is worked off in chunks whose state fits into the processor's cache, so memory is bounded whatever the batch
is. Nothing is kept for the backward pass except inputs and weights: it runs each chunk forward again and then sends
the adjoint vector back through the steps (see :mod:`qpeft.simulators.steps`). Everything sits in two operators
registered with torch, opaque to the compiler and to autograd, so compiled graphs, autocast and checkpointing just call
them.

Angles that are NaN or infinite give NaN expectations for the samples (inputs) or the batch (weights) that they belong
to; no check that would make the host wait for a GPU is done here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators.lowering import ControlledTurn, Permutation, Phase, Turn, lower
from qpeft.simulators.steps import (
    Angles,
    Chunk,
    ControlledTurnStep,
    PermutationStep,
    PhaseStep,
    ProductState,
    Readout,
    TurnStep,
)

MAX_QUBITS = 20  # one complex64 state of 20 qubits takes 8 MiB, and the backward pass keeps one per step

_CHUNK_BYTES = {"cpu": 1 << 18}  # one state of a chunk; a few of them have to fit into a core's second-level cache
_CHUNK_BYTES_OTHER = 1 << 26  # accelerators want many samples per launch
_CHUNK_SAMPLES = {"cpu": 1024}


def run(circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
    """Evaluate a circuit for a batch of inputs.

    Args:
        circuit: What to run, at most 20 qubits.
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians, shared by the batch.

    Returns:
        Expectations ``(batch, n_observables)`` in [-1, 1] up to rounding: float64 if ``inputs`` are float64, else
        float32. Differentiable once for inputs and weights. A NaN or infinite angle gives NaN.

    Raises:
        InputError: A shape, dtype or device that does not fit, or too many qubits.
    """
    if circuit.n_qubits > MAX_QUBITS:
        raise InputError(
            f"the exact simulator holds at most {MAX_QUBITS} qubits in memory (got {circuit.n_qubits}); "
            f"use fewer qubits."
        )
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
    if inputs.dtype != torch.float64:
        inputs = inputs.float()
    return torch.ops.qpeft.expectations(inputs, weights, circuit.key)


class _Engine:
    """A lowered circuit with its steps ready to run."""

    def __init__(self, circuit: Circuit) -> None:
        program = lower(circuit)
        self.n_observables = circuit.n_observables
        self.n_qubits = n = circuit.n_qubits
        self.angles = Angles(program)
        self.product = ProductState(n)
        self.readout = Readout(program.observables, n)
        self.steps: list[TurnStep | ControlledTurnStep | PhaseStep | PermutationStep] = []
        for step in program.steps:
            match step:
                case Turn():
                    self.steps.append(TurnStep(step, self.angles))
                case ControlledTurn():
                    self.steps.append(ControlledTurnStep(step, self.angles))
                case Phase():
                    self.steps.append(PhaseStep(step, self.angles, n))
                case Permutation():
                    self.steps.append(PermutationStep(step, n))

    def chunk_samples(self, inputs: Tensor) -> int:
        budget = _CHUNK_BYTES.get(inputs.device.type, _CHUNK_BYTES_OTHER)
        samples = budget // (2 * inputs.element_size() << self.n_qubits)
        samples = min(samples, _CHUNK_SAMPLES.get(inputs.device.type, samples))
        return max(1, samples // 16 * 16 or samples)

    def call(self, inputs: Tensor, weights: Tensor) -> _Call:
        return _Call(self, inputs, weights)


class _Call:
    """One evaluation: what the batch shares, and the loop over chunks."""

    def __init__(self, engine: _Engine, inputs: Tensor, weights: Tensor) -> None:
        self.engine = engine
        self.inputs = inputs
        angles = engine.angles
        self.from_weights = angles.from_weights.to(weights.device)
        self.from_inputs = angles.from_inputs.to(inputs)
        shared = torch.addmv(angles.constants.to(weights.device), self.from_weights, weights.double())
        self.offsets = shared[: angles.n_samples, None].to(inputs.dtype)
        self.shared = [step.share(shared, inputs.dtype) for step in engine.steps]
        self.readout = engine.readout.share(inputs.device, inputs.dtype)
        self.samples = engine.chunk_samples(inputs)

    def chunks(self) -> range:
        return range(0, self.inputs.shape[0], self.samples)

    def chunk(self, start: int) -> Chunk:
        part = self.inputs[start : start + self.samples]
        angles = torch.addmm(self.offsets, self.from_inputs, part.t())  # (rows, samples)
        n_turns = self.engine.angles.n_turns
        half = angles[:n_turns] * 0.5
        return Chunk(half.cos(), half.sin(), angles[n_turns:])

    def forward(self) -> Tensor:
        out = self.inputs.new_empty(self.inputs.shape[0], self.engine.n_observables)
        for start in self.chunks():
            chunk = self.chunk(start)
            state = self.engine.product.forward(chunk)[-1][0][None]
            for step, shared in zip(self.engine.steps, self.shared, strict=True):
                state = step.forward(state, shared, chunk)
            self.engine.readout.forward(state, self.readout, out[start : start + self.samples].t())
        return out

    def backward(self, gradient: Tensor) -> tuple[Tensor, Tensor]:
        engine = self.engine
        to_inputs = torch.empty_like(self.inputs)
        rows = torch.zeros(engine.angles.constants.shape[0], dtype=torch.float64, device=self.inputs.device)
        for start in self.chunks():
            part = slice(start, start + self.samples)
            chunk = self.chunk(start)
            tree = engine.product.forward(chunk)
            states = [tree[-1][0][None]]
            for step, shared in zip(engine.steps, self.shared, strict=True):
                states.append(step.forward(states[-1], shared, chunk))
            # Zeros, because an input angle on a step that turned out to be trivial gets no entry.
            chunk.gradient = states[0].new_zeros(engine.angles.n_samples, chunk.cos.shape[1])
            adjoint = engine.readout.backward(gradient[part].t(), states[-1], self.readout)
            for step, shared in zip(reversed(engine.steps), reversed(self.shared), strict=True):
                output = states.pop()
                if isinstance(step, PhaseStep):
                    adjoint = step.backward(adjoint, output, shared, chunk, states[-1].shape[0] == 1)
                else:
                    adjoint = step.backward(adjoint, output, shared, chunk)
            engine.product.backward(adjoint[0], tree, chunk)
            torch.mm(chunk.gradient.t(), self.from_inputs, out=to_inputs[part])
            rows[: engine.angles.n_samples] += chunk.gradient.sum(1, dtype=torch.float64)
        if self.inputs.shape[0]:
            for step, shared in zip(engine.steps, self.shared, strict=True):
                step.unshare(shared, rows)
        return to_inputs, self.from_weights.t() @ rows


@lru_cache(maxsize=256)
def _engine(key: str) -> _Engine:
    return _Engine(Circuit.from_key(key))


# Inside the operators autocast is off: it would turn the matrix products into half precision.
@torch.library.custom_op("qpeft::expectations", mutates_args=())
def _expectations(inputs: Tensor, weights: Tensor, circuit: str) -> Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        return _engine(circuit).call(inputs, weights).forward()


@torch.library.custom_op("qpeft::expectations_backward", mutates_args=())
def _expectations_backward(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str) -> tuple[Tensor, Tensor]:
    with torch.autocast(inputs.device.type, enabled=False):
        to_inputs, to_weights = _engine(circuit).call(inputs, weights).backward(gradient.contiguous())
    return to_inputs, to_weights.to(weights.dtype)


@_expectations.register_fake
def _(inputs: Tensor, weights: Tensor, circuit: str) -> Tensor:
    return inputs.new_empty(inputs.shape[0], Circuit.from_key(circuit).n_observables)


@_expectations_backward.register_fake
def _(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    values, weights, ctx.circuit = inputs
    ctx.save_for_backward(values, weights)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    inputs, weights = ctx.saved_tensors
    return *torch.ops.qpeft.expectations_backward(gradient, inputs, weights, ctx.circuit), None


_expectations.register_autograd(_differentiate, setup_context=_keep)
