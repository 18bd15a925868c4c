r"""A run of steps that read only weights, as one matrix for the whole batch where that is cheaper.

The run's unitary ``U`` comes from sending the columns of the identity through the steps, once per call and in float64.
A sample then costs one product with it, in real numbers::

    [re y]   [Re U  -Im U] [re x]
    [im y] = [Im U   Re U] [im x]       (without the second column where x is real, one block Re U where U is real)

On the way back ``Σ λ xᵀ`` over samples is the gradient of that matrix, and its columns go backward through the steps.
Few qubits, many layers and large batches make it pay.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qpeft.simulators.steps import Chunk, PhaseStep, ProgramStep
from qpeft.simulators.tables import Gradients, Shared

# In multiplications of a matrix product in the cache, measured on one core. Large products run faster than those of
# the steps; a step on the columns takes 30 µs of calls in both directions, whatever the size.
_PRODUCT = 0.7
_CALLS = 240_000
_GAIN = 1.3  # how much faster the matrix has to be before it is used
_MAX_SIZE = 1 << 8  # 1 MiB for the columns after every step


class WeightRun:
    """Neighbouring steps on ``n_qubits`` wires that read no inputs.

    Args:
        steps: The steps.
        n_qubits: Number of wires.
        parts: Parts of the states that come in: 1 where they are real, else 2.
    """

    def __init__(self, steps: Sequence[ProgramStep], n_qubits: int, parts: int) -> None:
        self.steps = steps
        self.size = 1 << n_qubits
        self.parts = parts

    def pays(self, batch: int) -> bool:
        """Whether one matrix is clearly cheaper than the steps."""
        if self.size > _MAX_SIZE:
            return False
        work = sum(step.work for step in self.steps)
        saved = batch * (work - _GAIN * _PRODUCT * self.parts * self.size)
        building = 2 * self.size * work + _CALLS * len(self.steps) / (2 * self.size)  # in float64, twice the work
        return saved > _GAIN * building

    def unitary(self, shared: Shared, like: Tensor) -> Unitary:
        """The matrix, from what steps share in float64; it multiplies states of the type of ``like``."""
        return Unitary(self, shared, like)


class Unitary:
    """One run's matrix for the weights of one call; a step like others."""

    def __init__(self, run: WeightRun, shared: Shared, like: Tensor) -> None:
        self.run, self.shared = run, shared
        identity = torch.eye(run.size, dtype=torch.float64, device=like.device)
        self.columns = Chunk(identity[:0], identity[:0])  # no angles of their own
        self.states = [identity[None]]  # (parts, 2**n, 2**n) after every step
        for step in run.steps:
            self.states.append(step.forward(self.states[-1], shared, self.columns))
        matrix = self.states[-1].flatten(0, 1)
        self.in_blocks = self.states[-1].shape[0] == 2 and run.parts == 2
        if self.in_blocks:
            real, imaginary = self.states[-1].unbind(0)
            matrix = torch.cat([matrix, torch.cat([-imaginary, real])], 1)
        self.matrix = matrix.to(like.dtype)
        self.gradient = torch.zeros_like(matrix)

    def _multiply(self, matrix: Tensor, state: Tensor) -> Tensor:
        split = state.view(-1, matrix.shape[1], state.shape[2])
        return torch.bmm(matrix.expand(split.shape[0], -1, -1), split).view(-1, self.run.size, state.shape[2])

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        return self._multiply(self.matrix, state)

    def backward(
        self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, gradients: Gradients, before: Tensor
    ) -> Tensor:
        rows, columns = self.matrix.shape
        left, right = adjoint.view(-1, rows, adjoint.shape[2]), before.view(-1, columns, before.shape[2])
        self.gradient += torch.bmm(left, right.transpose(1, 2)).sum(0)
        return self._multiply(self.matrix.t(), adjoint)

    def unshare(self, gradients: Gradients) -> None:
        """From the gradient of the matrix to those of what the steps share."""
        size = self.run.size
        adjoint = self.gradient[:, :size].reshape(-1, size, size)
        if self.in_blocks:
            imaginary, real = self.gradient[:, size:].view(2, size, size).unbind(0)
            adjoint = adjoint + torch.stack([real, -imaginary])
        states = list(self.states)
        for step in reversed(self.run.steps):
            output = states.pop()
            adjoint = step.backward(adjoint, output, self.shared, self.columns, gradients, states[-1])


def join_runs(steps: Sequence[ProgramStep], n_qubits: int) -> list[ProgramStep | WeightRun]:
    """The same steps, with neighbours that read no inputs joined."""
    joined: list[ProgramStep | WeightRun] = []
    run: list[ProgramStep] = []
    parts = 1
    for step in [*steps, None]:
        if step is not None and not step.reads_inputs:
            run.append(step)
            continue
        if len(run) > 1:
            joined.append(WeightRun(run, n_qubits, parts))
        else:
            joined += run
        if any(isinstance(s, PhaseStep) and s.signs is None for s in (*run, step)):
            parts = 2
        run = []
        if step is not None:
            joined.append(step)
    return joined
