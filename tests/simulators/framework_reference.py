"""The second reference: PennyLane's default.qubit in double precision, with gradients by its own backpropagation.

It shares no line with this library. It is no dependency: ``pip install pennylane`` next to the library, and the tests
that name it run instead of saying that it is missing.
"""

from importlib.util import find_spec

import numpy as np
import torch

from qpeft.circuits import Circuit, Gate, Input, Weight

INSTALLED = find_spec("pennylane") is not None
HOW = "PennyLane is not installed; pip install pennylane, and this compares with it"


def evaluate(
    circuit: Circuit, inputs: np.ndarray, weights: np.ndarray, cotangent: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`dense_reference.evaluate`."""
    import pennylane as qml

    names = {"H": "Hadamard", "X": "PauliX", "Y": "PauliY", "Z": "PauliZ"}
    values, angles = torch.tensor(inputs, requires_grad=True), torch.tensor(weights, requires_grad=True)

    def queue(gate: Gate) -> None:
        if gate.name in ("SDG", "TDG"):
            qml.adjoint(getattr(qml, gate.name[0]))(gate.wires)
        elif gate.angle is None:
            getattr(qml, names.get(gate.name, gate.name))(wires=gate.wires)
        else:
            angle = gate.angle
            if isinstance(angle, Input):
                angle = angle.scale * values[:, angle.index]  # (batch,), which PennyLane broadcasts
            elif isinstance(angle, Weight):
                angle = angle.scale * angles[angle.index]
            getattr(qml, gate.name)(angle, wires=gate.wires)

    @qml.qnode(qml.device("default.qubit", wires=circuit.n_qubits), interface="torch", diff_method="backprop")
    def measured() -> list:
        for gate in circuit.gates:
            queue(gate)
        strings = [[getattr(qml, f"Pauli{p}")(wire) for p, wire in o.paulis] for o in circuit.observables]
        return [qml.expval(qml.prod(*string) if len(string) > 1 else string[0]) for string in strings]

    columns = [column.real.double().expand(len(inputs)) for column in measured()]  # no batch without an input
    outputs = torch.stack(columns, 1)
    gradients = [torch.zeros_like(values), torch.zeros_like(angles)]
    if outputs.requires_grad:
        found = torch.autograd.grad(outputs, (values, angles), torch.tensor(cotangent), allow_unused=True)
        gradients = [old if new is None else new for old, new in zip(gradients, found, strict=True)]
    return outputs.detach().numpy(), gradients[0].numpy(), gradients[1].numpy()
