"""The general simulator: the whole state vector of every sample, chunk by chunk.

Forward keeps one state. Backward runs a chunk forward again, keeping the state after every step, and sends the adjoint
vector back (see :mod:`qpeft.simulators.steps`). A chunk is as large as a core's cache wants it, so memory depends on
the circuit, never on the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qpeft.simulators.lowering import Program
from qpeft.simulators.steps import (
    Angles,
    Chunk,
    Readout,
    Shared,
    make_steps,
    product_state,
    product_state_backward,
)

_CHUNK_BYTES = 1 << 19  # one state of a chunk; a few of them have to fit into a core's second-level cache
_CHUNK_SAMPLES = 1024
_ACCELERATOR_CHUNK_BYTES = 1 << 26  # accelerators want many samples per launch


def chunk_samples(bytes_per_sample: int, device: torch.device) -> int:
    """How many samples to work on at once."""
    if device.type != "cpu":
        return max(1, _ACCELERATOR_CHUNK_BYTES // bytes_per_sample)
    samples = min(_CHUNK_BYTES // bytes_per_sample, _CHUNK_SAMPLES)
    return max(1, samples // 16 * 16 or samples)  # whole SIMD registers


class StateVectorEngine:
    """A program on all its qubits, ready to run."""

    def __init__(self, program: Program, n_inputs: int, n_weights: int) -> None:
        self.n_qubits = program.n_qubits
        self.n_observables = len(program.observables)
        self.angles = Angles(program, n_inputs, n_weights)
        self.steps = make_steps(program, self.angles)
        self.readout = Readout(program.observables, program.n_qubits)

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_observables)``."""
        call = _Call(self, inputs, weights)
        out = inputs.new_empty(inputs.shape[0], self.n_observables)
        for part in call.parts:
            chunk = call.chunk(part)
            state = call.initial(chunk)[-1][0]
            for step, shared in zip(self.steps, call.shared, strict=True):
                state = step.forward(state, shared, chunk)
            self.readout.forward(state, call.readout, out[part].t())
        return out

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_observables), ... -> (batch, n_inputs), (n_weights,)``, the latter in float64."""
        call = _Call(self, inputs, weights)
        to_inputs = torch.empty_like(inputs)
        rows = torch.zeros(self.angles.constants.shape[0], dtype=torch.float64, device=inputs.device)
        n_samples = self.angles.n_samples
        for part in call.parts:
            chunk = call.chunk(part)
            tree = call.initial(chunk)
            states = [tree[-1][0]]  # (parts, 2**n, samples) after every step
            for step, shared in zip(self.steps, call.shared, strict=True):
                states.append(step.forward(states[-1], shared, chunk))
            adjoint = self.readout.backward(gradient[part].t(), states[-1], call.readout)
            for step, shared in zip(reversed(self.steps), reversed(call.shared), strict=True):
                output = states.pop()
                adjoint = step.backward(adjoint, output, shared, chunk, states[-1].shape[0])
            chunk.gradient[: self.n_qubits] = product_state_backward(adjoint, tree)[0]
            torch.mm(chunk.gradient.t(), call.from_inputs, out=to_inputs[part])
            rows[:n_samples] += chunk.gradient.sum(1, dtype=torch.float64)
        if call.parts:
            for step, shared in zip(self.steps, call.shared, strict=True):
                step.unshare(shared, rows)
        return to_inputs, call.from_weights.t() @ rows


class _Call:
    """What one call computes before it looks at samples, and how it cuts the batch."""

    def __init__(self, engine: StateVectorEngine, inputs: Tensor, weights: Tensor) -> None:
        angles = engine.angles
        self.inputs = inputs
        self.n_qubits = engine.n_qubits
        self.n_turns = angles.n_turns
        self.from_inputs = angles.from_inputs.to(inputs)
        self.from_weights = angles.from_weights.to(inputs.device)
        shared = torch.addmv(angles.constants.to(inputs.device), self.from_weights, weights.double())
        # Whole turns are taken off in float64: beside a large offset, float32 would lose the inputs' last digits.
        self.offsets = shared[: angles.n_samples, None].remainder(4 * math.pi).to(inputs.dtype)
        self.shared: list[Shared] = [step.share(shared, inputs.dtype) for step in engine.steps]
        self.readout = engine.readout.share(inputs.device, inputs.dtype)
        samples = chunk_samples(2 * inputs.element_size() << engine.n_qubits, inputs.device)
        self.parts = [slice(start, start + samples) for start in range(0, inputs.shape[0], samples)]

    def chunk(self, part: slice) -> Chunk:
        angles = torch.addmm(self.offsets, self.from_inputs, self.inputs[part].t())  # (rows, samples)
        half = angles[: self.n_turns] * 0.5
        return Chunk(half.cos(), half.sin(), angles[self.n_turns :])

    def initial(self, chunk: Chunk) -> list[list[Tensor]]:
        return product_state(chunk.cos[None, : self.n_qubits], chunk.sin[None, : self.n_qubits])
