"""Gates of OriginIR that circuits do not know: each against its matrix, up to a global phase."""

import math

import numpy as np
import pytest

from qpeft.circuits.originir import from_originir, read_program
from qpeft.circuits.originir_gates import EXTENDED
from qpeft.errors import InputError

I2 = np.eye(2)
X = np.array([[0, 1], [1, 0]])
Y = np.array([[0, -1j], [1j, 0]])
Z = np.diag([1, -1])
H = (X + Z) / math.sqrt(2)


def turn(pauli, angle):
    return math.cos(angle / 2) * np.eye(len(pauli)) - 1j * math.sin(angle / 2) * pauli


def u3(theta, phi, lam):
    c, s = math.cos(theta / 2), math.sin(theta / 2)
    return np.array([[c, -np.exp(1j * lam) * s], [np.exp(1j * phi) * s, np.exp(1j * (phi + lam)) * c]])


def matrix_of(circuit):
    """Qubit 0 is the most significant bit."""
    n = circuit.n_qubits
    whole = np.eye(1 << n, dtype=complex)
    single = {"H": H, "S": np.diag([1, 1j]), "RX": X, "RY": Y, "RZ": Z}
    for gate in circuit.gates:
        if gate.name in ("CNOT", "CRZ"):
            control, target = gate.wires
            inner = X if gate.name == "CNOT" else turn(Z, gate.angle)
            parts = [{control: np.diag([1, 0])}, {control: np.diag([0, 1]), target: inner}]
        else:
            inner = single[gate.name] if gate.angle is None else turn(single[gate.name], gate.angle)
            parts = [{gate.wires[0]: inner}]
        step = 0
        for part in parts:
            product = np.eye(1)
            for wire in range(n):
                product = np.kron(product, part.get(wire, I2))
            step = step + product
        whole = step @ whole
    return whole


MATRICES = {
    "I": I2,
    "ECHO": I2,
    "IDLE": I2,
    "X1": turn(X, math.pi / 2),
    "Y1": turn(Y, math.pi / 2),
    "Z1": turn(Z, math.pi / 2),
    "U1": np.diag([1, np.exp(0.3j)]),
    "P": np.diag([1, np.exp(0.3j)]),
    "RPHI": turn(math.cos(0.7) * X + math.sin(0.7) * Y, 0.3),
    "U2": u3(math.pi / 2, 0.3, 0.7),
    "U3": u3(0.3, 0.7, -1.1),
    "U4": turn(Z, 0.7) @ turn(Y, -1.1) @ turn(Z, 0.4),
    "ISWAP": np.array([[1, 0, 0, 0], [0, 0, 1j, 0], [0, 1j, 0, 0], [0, 0, 0, 1]]),
    "SQISWAP": np.array(
        [
            [1, 0, 0, 0],
            [0, math.sqrt(0.5), 1j * math.sqrt(0.5), 0],
            [0, 1j * math.sqrt(0.5), math.sqrt(0.5), 0],
            [0, 0, 0, 1],
        ]
    ),
    "CP": np.diag([1, 1, 1, np.exp(0.3j)]),
    "CR": np.diag([1, 1, 1, np.exp(0.3j)]),
    "RXX": turn(np.kron(X, X), 0.3),
    "RYY": turn(np.kron(Y, Y), 0.3),
    "RZZ": turn(np.kron(Z, Z), 0.3),
    "RZX": turn(np.kron(Z, X), 0.3),
}


@pytest.mark.parametrize("name", EXTENDED)
def test_gates_are_their_matrices(name):
    n_qubits, n_angles, _ = EXTENDED[name]
    wires = ",".join(f"q[{wire}]" for wire in range(n_qubits))
    angles = ",(" + ",".join(str(a) for a in (0.3, 0.7, -1.1, 0.4)[:n_angles]) + ")" if n_angles else ""
    found = matrix_of(from_originir(f"QINIT {n_qubits}\nCREG 1\n{name} {wires}{angles}\n"))
    overlap = np.trace(MATRICES[name].conj().T @ found) / len(found)
    assert abs(overlap) == pytest.approx(1)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("U3 q[0],(0.1,0.2)", "line 3: U3 takes 1 different qubit.s. and 3 angle"),
        ("RXX q[0],q[0],(0.1)", "line 3: RXX takes 2 different"),
        ("CONTROL q[1]\nU1 q[0],(0.1)\nENDCONTROL", "line 4"),
        ("X1 q[7]", "outside the 2 qubits"),
        ("MEASURE q[2],c[0]", "outside QINIT 2"),
        ("MEASURE q[0],c[9]", "outside QINIT 2 and CREG 2"),
    ],
)
def test_wrong_lines(lines, words):
    with pytest.raises(InputError, match=words):
        from_originir(f"QINIT 2\nCREG 2\n{lines}")


def test_measurements_of_single_qubits_may_come_early():
    program = read_program("QINIT 3\nCREG 3\nMEASURE q[2],c[0]\nH q[1]\nMEASURE q[1],c[2]")
    assert program.bits == {0: 2, 2: 1}
    assert [gate.name for gate in program.circuit.gates] == ["H"]
    assert read_program("QINIT 2\nCREG 2\nMEASURE q,c").bits == {0: 0, 1: 1}
