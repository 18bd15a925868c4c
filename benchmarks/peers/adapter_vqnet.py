"""VQNet with its torch backend: a ``QMachine`` reset to the batch size, gates with one angle per sample, complex64."""

from __future__ import annotations

from pyvqnet.backends import set_backend

set_backend("torch")  # before the imports below, which it turns towards torch

import torch  # noqa: E402
from pyvqnet.qnn.vqc import cnot, crz, ry, rz  # noqa: E402
from pyvqnet.qnn.vqc.sv.torch import MeasureAll, QMachine  # noqa: E402
from pyvqnet.tensor import QTensor  # noqa: E402
from torch import Tensor  # noqa: E402
from torch_layer import TorchLayer, use_threads  # noqa: E402

__all__ = ["Layer", "use_threads"]

GATES = {"RY": ry, "RZ": rz, "CRZ": crz}


class Layer(TorchLayer):
    def build(self) -> None:
        self.machine = QMachine(self.program.n_qubits)
        self.measure = MeasureAll(obs=[{f"Z{wire}": 1.0} for wire in range(self.program.n_qubits)])

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        x, w = QTensor(inputs), QTensor(weights)
        self.machine.reset_states(inputs.shape[0])
        for name, wires, source, index in self.program.steps:
            if source is None:
                cnot(q_machine=self.machine, wires=list(wires))
            else:
                angle = x[:, [index]] if source == "x" else w[index]
                GATES[name](q_machine=self.machine, wires=wires[0] if len(wires) == 1 else list(wires), params=angle)
        outputs = self.measure(q_machine=self.machine)
        return outputs.data if isinstance(outputs, QTensor) else torch.as_tensor(outputs)
