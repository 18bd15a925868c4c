"""DeepQuantum: ``QubitCircuit`` with the inputs as encoded data, which it maps over the batch with ``torch.vmap``.

Its trained angles live in the gates, one parameter each, so the weight gradient is gathered from them.
"""

from __future__ import annotations

from typing import Any

import deepquantum
import torch
from torch import Tensor
from torch_layer import TorchLayer, use_threads

__all__ = ["Layer", "use_threads"]


class Layer(TorchLayer):
    def build(self) -> None:
        n = self.program.n_qubits
        circuit = deepquantum.QubitCircuit(n, reupload=True)
        order = []
        for name, wires, source, index in self.program.steps:
            if source is None:
                circuit.cnot(*wires)
            else:
                getattr(circuit, name.lower())(*wires, encode=source == "x")
                order += [index] if source == "w" else []
        for wire in range(n):
            circuit.observable(wire)
        encoded = [step.place for step in self.program.steps if step.source == "x"]
        if encoded != list(range(n)) * (len(encoded) // n) or order != list(range(len(order))):
            raise ValueError("DeepQuantum takes inputs and weights in the order of their gates")
        self.circuit, self.parameters = circuit, list(circuit.parameters())
        with torch.no_grad():
            for parameter, value in zip(self.parameters, self.weights, strict=True):
                parameter.fill_(float(value))

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        self.circuit(data=inputs)
        return self.circuit.expectation()

    def both(self) -> Any:
        outputs = self.evaluate(self.inputs, self.weights)
        to_inputs, *to_weights = torch.autograd.grad(outputs, (self.inputs, *self.parameters), self.cotangent)
        return outputs, to_inputs, torch.stack([gradient.reshape(()) for gradient in to_weights])
