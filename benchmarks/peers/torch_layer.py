"""What the adapters of torch frameworks share: arrays as tensors, one autograd call for both gradients."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from program import Program
from torch import Tensor


def use_threads(threads: int) -> None:
    torch.set_num_threads(threads)


class TorchLayer:
    """A layer ``(batch, n), (n_weights,) -> (batch, n)``; subclasses say how to evaluate it."""

    def __init__(self, program: Program, inputs: Any, weights: Any, cotangent: Any) -> None:
        self.program = program
        self.inputs = self.array(inputs).requires_grad_()
        self.weights = self.array(weights).requires_grad_()
        self.cotangent = self.array(cotangent)
        self.build()

    def build(self) -> None:
        """Whatever is done once for a circuit."""

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.evaluate(self.inputs, self.weights)

    def both(self) -> tuple[Tensor, Tensor, Tensor]:
        outputs = self.evaluate(self.inputs, self.weights)
        cotangent = self.cotangent.to(outputs.dtype)
        return outputs, *torch.autograd.grad(outputs, (self.inputs, self.weights), cotangent)

    @staticmethod
    def array(values: Any) -> Tensor:
        return torch.from_numpy(numpy.ascontiguousarray(values, dtype=numpy.float32))

    @staticmethod
    def numpy(values: Tensor) -> Any:
        return values.detach().numpy()
