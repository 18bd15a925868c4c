"""PennyLane's ``default.qubit`` with the torch interface: parameter broadcasting, backpropagation.

The device computes in double precision whatever the inputs are; it has no option for single.
"""

from __future__ import annotations

import pennylane as qml
import torch
from torch import Tensor
from torch_layer import TorchLayer, use_threads

__all__ = ["Layer", "use_threads"]


class Layer(TorchLayer):
    def build(self) -> None:
        n, steps = self.program.n_qubits, self.program.steps
        gates = {"RY": qml.RY, "RZ": qml.RZ, "CRZ": qml.CRZ}

        @qml.qnode(qml.device("default.qubit", wires=n), interface="torch", diff_method="backprop")
        def node(inputs: Tensor, weights: Tensor) -> list:
            for name, wires, source, index in steps:
                if source is None:
                    qml.CNOT(wires)
                else:
                    gates[name](inputs[:, index] if source == "x" else weights[index], wires)
            return [qml.expval(qml.PauliZ(wire)) for wire in range(n)]

        self.node = node

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return torch.stack(tuple(self.node(inputs, weights)), 1)
