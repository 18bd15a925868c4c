"""The general simulator: the whole state vector of every sample, chunk by chunk.

Forward keeps one state. Backward runs a chunk forward again, keeping the state after every step, and sends the adjoint
vector back (see :mod:`qpeft.simulators.steps`). A chunk is as large as a core's cache wants it, so memory depends on
the circuit, never on the batch. Neighbouring steps that read no inputs become one matrix where that is cheaper
(:mod:`qpeft.simulators.weight_runs`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from qpeft.simulators.lowering import Program
from qpeft.simulators.steps import Angles, Chunk, ProductState, Readout, Step, make_steps
from qpeft.simulators.weight_runs import Unitary, WeightRun, join_runs

_CHUNK_BYTES = 1 << 20  # one state of a chunk, measured: the processor's cache against narrow matrix products
_CHUNK_SAMPLES = 4096
_ACCELERATOR_CHUNK_BYTES = 1 << 26  # accelerators want many samples per launch


def chunk_samples(bytes_per_sample: int, device: torch.device, states: int = 1) -> int:
    """How many samples to work on at once where so many states are kept."""
    if device.type != "cpu":
        return max(1, _ACCELERATOR_CHUNK_BYTES // bytes_per_sample)
    samples = min(_CHUNK_BYTES // (states * bytes_per_sample), _CHUNK_SAMPLES)
    return max(1, samples // 16 * 16 or samples)  # whole SIMD registers


@lru_cache(maxsize=1)
def _let_the_heap_keep_chunks() -> None:
    """Raise glibc's limit on freed memory that it keeps, which freeing a large block does; other heaps ignore it.

    Else every chunk of states goes back to the system and is faulted in again, half the time of a backward pass.
    """
    torch.empty(1 << 24, dtype=torch.uint8, device="cpu")


class StateVectorEngine:
    """A program on all its qubits, ready to run."""

    def __init__(self, program: Program, n_inputs: int, n_weights: int) -> None:
        _let_the_heap_keep_chunks()
        self.n_qubits = program.n_qubits
        self.n_observables = len(program.observables)
        self.angles = Angles(program, n_inputs, n_weights)
        steps, self.tables = make_steps(program, self.angles)
        self.steps = join_runs(steps, program.n_qubits)
        self.readout = Readout(program.observables, program.n_qubits)

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_observables)``."""
        out = inputs.new_empty(inputs.shape[0], self.n_observables)
        with torch.inference_mode():  # a call is some hundred small operations, which this makes cheaper
            call = _Call(self, inputs, weights)
            for part in call.parts:
                chunk = call.chunk(part)
                state = call.initial(chunk).state
                for step in call.steps:
                    state = step.forward(state, call.shared, chunk)
                self.readout.forward(state, out[part].t())
        return out

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_observables), ... -> (batch, n_inputs), (n_weights,)``, the latter in float64."""
        to_inputs = torch.empty_like(inputs)
        with torch.inference_mode():
            to_weights = self._differentiate(gradient, inputs, weights, to_inputs)
        return to_inputs, to_weights.clone()

    def _differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor, to_inputs: Tensor) -> Tensor:
        call = _Call(self, inputs, weights, 2)
        gradients = self.tables.gradients(inputs.device)
        for part in call.parts:
            chunk = call.chunk(part)
            initial = call.initial(chunk)
            states = [initial.state]  # (parts, 2**n, samples) after every step
            for step in call.steps:
                states.append(step.forward(states[-1], call.shared, chunk))
            adjoint = self.readout.backward(gradient[part].t(), states[-1])
            for step in reversed(call.steps):
                output = states.pop()
                adjoint = step.backward(adjoint, output, call.shared, chunk, gradients, states[-1])
            chunk.gradient[: self.n_qubits] = initial.backward(adjoint)[0]
            torch.mm(chunk.gradient.t(), call.from_inputs, out=to_inputs[part])
            gradients.rows[: self.angles.n_samples] += chunk.gradient.sum(1, dtype=torch.float64)
        for step in call.steps:
            if isinstance(step, Unitary):
                step.unshare(gradients)
        return call.from_weights.t() @ self.tables.unshare(gradients)


class _Call:
    """What one call computes before it looks at samples, and how it cuts the batch."""

    def __init__(self, engine: StateVectorEngine, inputs: Tensor, weights: Tensor, states: int = 1) -> None:
        angles = engine.angles
        self.inputs = inputs
        self.n_qubits = engine.n_qubits
        self.n_turns = angles.n_turns
        self.from_inputs = angles.from_inputs.like(inputs)
        self.from_weights = angles.from_weights.on(inputs.device)
        rows = torch.addmv(angles.constants.on(inputs.device), self.from_weights, weights.double())
        # Whole turns are taken off in float64: beside a large offset, float32 would lose the inputs' last digits.
        self.offsets = rows[: angles.n_samples, None].remainder(2 * math.pi).to(inputs.dtype)
        shared = engine.tables.share(rows)
        self.shared = shared.to(inputs.dtype)
        self.steps: list[Step] = []
        for step in engine.steps:
            if not isinstance(step, WeightRun):
                self.steps.append(step)
            elif step.pays(inputs.shape[0]):
                self.steps.append(step.unitary(shared, inputs))
            else:
                self.steps.extend(step.steps)
        samples = chunk_samples(2 * inputs.element_size() << engine.n_qubits, inputs.device, states)
        self.parts = [slice(start, start + samples) for start in range(0, inputs.shape[0], samples)]

    def chunk(self, part: slice) -> Chunk:
        angles = torch.addmm(self.offsets, self.from_inputs, self.inputs[part].t())  # (rows, samples)
        return Chunk(angles[: self.n_turns], angles[self.n_turns :])

    def initial(self, chunk: Chunk) -> ProductState:
        return ProductState(chunk.leaves[None, : self.n_qubits])
