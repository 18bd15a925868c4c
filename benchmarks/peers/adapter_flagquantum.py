"""FlagQuantum: a native circuit with a declared batch size, angles of one value per sample, complex64."""

from __future__ import annotations

import flagquantum
import torch
from torch import Tensor
from torch_layer import TorchLayer, use_threads

__all__ = ["Layer", "use_threads"]

NAMES = {"RY": "ry", "RZ": "rz", "CRZ": "crz"}


class Layer(TorchLayer):
    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        circuit = flagquantum.Circuit(self.program.n_qubits, bsz=inputs.shape[0], dtype=torch.complex64)
        for name, wires, source, index in self.program.steps:
            if source is None:
                circuit.cx(*wires)
            else:
                theta = inputs[:, index] if source == "x" else weights[index]
                circuit.gate(NAMES[name], wires, theta=theta)
        return circuit.expectation_z()
