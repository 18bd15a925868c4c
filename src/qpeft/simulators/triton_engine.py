"""Circuits of few qubits on a GPU, in Triton: one launch forward and one back, whatever the number of gates.

The program of :mod:`qpeft.simulators.lowering` becomes a table of steps that the kernels read
(:mod:`qpeft.simulators.triton_kernels`). Angles are those of :mod:`qpeft.simulators.steps`: what all samples share is
computed once per call in float64, what a sample's inputs add is computed in the kernel. Each block of samples writes
its own sums, which are added up in float64, so results are the same bits in every run.

The kernels are tried once on a circuit whose answer is known; plain torch takes over where they do not work, as where
Triton finds no C compiler. They run on processors in Triton's interpreter, with ``TRITON_INTERPRET=1``, which is how
they are tested where there is no GPU.
"""

from __future__ import annotations

import importlib.util
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Gate, Input, Observable
from qpeft.simulators.lowering import ControlledTurn, Permutation, Phase, Turn, lower
from qpeft.simulators.steps import Angles, PermutationStep
from qpeft.simulators.tables import Constant, Tables

MAX_QUBITS = 8  # amplitudes of a block stay in registers
_ELEMENTS = 1024  # amplitudes of a block
_CHUNK_BYTES = 1 << 26  # what all blocks of a launch may write for sums
_TURN, _PHASES, _TERM, _PERMUTE = range(4)  # as the kernels have them


@lru_cache(maxsize=1)
def problem() -> str | None:
    """Why circuits on CUDA devices do not run in these kernels; ``None`` where they do."""
    if importlib.util.find_spec("triton") is None:
        return "is not installed"
    if not torch.cuda.is_available():
        return "finds no CUDA device"
    circuit = Circuit(1, (Gate("RY", (0,), Input(0)),), (Observable("Z0"),))  # cos(x)
    inputs, weights = torch.linspace(-3, 3, 7, device="cuda")[:, None], torch.empty(0, device="cuda")
    try:
        engine = TritonEngine(circuit)
        value = engine.evaluate(inputs, weights)
        slope, _ = engine.differentiate(torch.ones_like(value), inputs, weights)
        error = torch.cat([value - inputs.cos(), slope + inputs.sin()]).abs().max().item()
    except Exception as error_of_triton:  # whatever it is, torch can do the work
        first, *_ = [*str(error_of_triton).splitlines(), type(error_of_triton).__name__]
        return f"does not work here ({first})"
    return None if error < 1e-5 else f"is wrong by {error:.0e} here"


class TritonEngine:
    """A circuit in the Triton kernels.

    Args:
        circuit: The circuit, at most eight qubits.

    Raises:
        ImportError: There is no Triton.
    """

    def __init__(self, circuit: Circuit) -> None:
        from qpeft.simulators import triton_kernels

        self._kernels: Any = triton_kernels
        program = lower(circuit)
        n = self.n_qubits = circuit.n_qubits
        self.n_inputs = circuit.n_inputs
        self.n_observables = circuit.n_observables
        self.angles = angles = Angles(program, circuit.n_inputs, circuit.n_weights)
        self.tables = Tables(n, angles.n_rows)
        steps: list[list[int]] = []
        permutations: list[Tensor] = []
        self.n_phases = 0
        self.is_complex = False
        for step in program.steps:
            match step:
                case Turn():
                    for wire, angle in step.angles.items():
                        steps.append([_TURN, 1 << (n - 1 - wire), 0, angles.row(angle)])
                case ControlledTurn():
                    target, control = 1 << (n - 1 - step.target), 1 << (n - 1 - step.control)
                    steps.append([_TURN, target, control, angles.row(step.angle)])
                case Phase():
                    self.is_complex |= not step.is_sign
                    rows = [angles.row(e) for e in step.terms.values()]
                    if any(e.inputs for e in step.terms.values()):
                        steps += [[_TERM, mask, 0, row] for mask, row in zip(step.terms, rows, strict=True)]
                    else:
                        steps.append([_PHASES, self.tables.add_phase(list(step.terms), rows), 0, 0])
                        self.n_phases += 1
                case Permutation():
                    steps.append([_PERMUTE, len(permutations), 0, 0])
                    moves = PermutationStep(step, n)
                    permutations.append(torch.stack([moves.source.values, moves.target.values]))
        self.tables.freeze()
        self.n_steps = len(steps)
        observables = [[o.flips, o.signs, o.n_y % 2, o.sign * (-1) ** (o.n_y // 2)] for o in program.observables]
        self.has_flips = any(o.flips for o in program.observables)
        nothing = torch.zeros(1, 2, 1 << n, dtype=torch.int32, device="cpu")
        self.steps = Constant(torch.tensor(steps or [[0] * 4], dtype=torch.int32, device="cpu"))
        self.observables = Constant(torch.tensor(observables, dtype=torch.int32, device="cpu"))
        self.permutations = Constant(torch.stack(permutations).int() if permutations else nothing)
        self.block = max(1, _ELEMENTS >> n)  # samples

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_observables)``."""
        outputs = inputs.new_empty(inputs.shape[0], self.n_observables)
        shared, _ = self._shared(inputs, weights)
        inputs = inputs.contiguous()
        for part in self._parts(inputs):
            self._launch(self._kernels.forward_kernel, (inputs[part], outputs[part]), shared)
        return outputs

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_observables), ... -> (batch, n_inputs), (n_weights,)``, the latter in float64."""
        to_inputs = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        shared, from_weights = self._shared(inputs, weights)
        sums = self.tables.gradients(inputs.device)
        gradient, inputs = gradient.to(inputs.dtype).contiguous(), inputs.contiguous()
        for part in self._parts(inputs):
            blocks = -(-inputs[part].shape[0] // self.block)
            to_rows = inputs.new_zeros(blocks, self.angles.n_rows)
            to_phases = inputs.new_zeros(blocks, self.n_phases, 1 << self.n_qubits)
            arguments = gradient[part], inputs[part], to_inputs[part], to_rows, to_phases
            self._launch(self._kernels.backward_kernel, arguments, shared, self.n_phases)
            sums.rows.add_(to_rows.sum(0, dtype=torch.float64))
            sums.phases.add_(to_phases.sum(0, dtype=torch.float64))
        return to_inputs, from_weights.t() @ self.tables.unshare(sums)

    def _shared(self, inputs: Tensor, weights: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
        """What the kernels read beside samples, and how angles follow from weights."""
        device, dtype = inputs.device, inputs.dtype
        from_weights = self.angles.from_weights.on(device)
        rows = torch.addmv(self.angles.constants.on(device), from_weights, weights.double())
        # Whole turns are taken off in float64: beside a large offset, float32 would lose the inputs' last digits.
        offsets = rows.remainder(2 * torch.pi).to(dtype)
        shared = self.tables.share(rows)
        phases = shared.turns if shared.phases is None else shared.phases  # a kernel without phases reads none
        tables = self.steps.on(device), self.observables.on(device), offsets, shared.turns[:2].to(dtype).contiguous()
        from_inputs = self.angles.from_inputs.like(inputs)
        return (*tables, from_inputs, phases.to(dtype).contiguous(), self.permutations.on(device)), from_weights

    def _parts(self, inputs: Tensor) -> list[slice]:
        numbers = self.angles.n_rows + (self.n_phases << self.n_qubits)  # that a block writes for sums
        samples = self.block * max(1, _CHUNK_BYTES // (inputs.element_size() * numbers))
        return [slice(start, start + samples) for start in range(0, inputs.shape[0], samples)]

    def _launch(self, kernel: Any, samples: tuple[Tensor, ...], shared: tuple[Tensor, ...], *more: int) -> None:
        batch, device = samples[0].shape[0], samples[0].device
        counts = batch, self.n_steps, self.n_observables, self.n_inputs, self.angles.n_samples, self.angles.n_rows
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            kernel[(-(-batch // self.block),)](
                *samples,
                *shared,
                *counts,
                *more,
                N=self.n_qubits,
                I=1 << max(0, self.n_inputs - 1).bit_length(),
                BLOCK=self.block,
                COMPLEX=self.is_complex,
                FLIPS=self.has_flips,
            )
