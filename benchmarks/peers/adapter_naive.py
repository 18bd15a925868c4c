"""The simulator one writes first: a complex state (batch, 2, ..., 2), one tensor operation per gate, autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_layer import TorchLayer, use_threads

__all__ = ["Layer", "use_threads"]


class Layer(TorchLayer):
    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        n, batch = self.program.n_qubits, inputs.shape[0]
        state = torch.zeros(batch, *[2] * n, dtype=torch.complex64)
        state[(slice(None), *[0] * n)] = 1
        for name, wires, source, index in self.program.steps:
            target = wires[-1] + 1
            if name == "CNOT":
                state = self._controlled(state, wires[0], state.flip(target))
                continue
            half = (inputs[:, index] if source == "x" else weights[index].expand(batch)) / 2
            half = half.view(-1, *[1] * (n - 1))  # (batch, 1, ..., 1)
            zero, one = state.unbind(target)
            if name == "RY":
                cos, sin = half.cos(), half.sin()
                state = torch.stack([cos * zero - sin * one, sin * zero + cos * one], target)
            else:
                turn = torch.complex(half.cos(), half.sin())
                turned = torch.stack([turn.conj() * zero, turn * one], target)
                state = turned if name == "RZ" else self._controlled(state, wires[0], turned)
        probabilities = state.abs().square()
        sign = torch.tensor([1.0, -1.0])
        return torch.stack(
            [probabilities.sum([d for d in range(1, n + 1) if d != wire + 1]) @ sign for wire in range(n)], 1
        )

    @staticmethod
    def _controlled(state: Tensor, control: int, acted: Tensor) -> Tensor:
        return torch.stack([state.select(control + 1, 0), acted.select(control + 1, 1)], control + 1)
