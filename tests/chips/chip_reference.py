"""The slow, obvious virtual chip: a density matrix, Kraus operators and a clock, from nothing but the snapshot.

It shares no code with the library: waits are found by running the circuit backwards in time, and act before the next
gate of a wire, not after the last one; depolarising strengths come from process fidelities of Kraus operators.
"""

import itertools

import numpy as np

PAULIS = [np.eye(2), np.array([[0, 1], [1, 0]]), np.array([[0, -1j], [1j, 0]]), np.diag([1, -1])]


def relaxation(qubit, ns):
    """Kraus operators of T1 and T2 during a time."""
    t = ns / 1000
    decay = 1 - np.exp(-t / qubit.t1_us)
    coherence = np.exp(-t / qubit.t2_us) / np.sqrt(1 - decay)  # beyond what the decay takes
    damping = [np.diag([1, np.sqrt(1 - decay)]), np.array([[0, np.sqrt(decay)], [0, 0]])]
    dephasing = [np.sqrt((1 + coherence) / 2) * np.eye(2), np.sqrt(max(0.0, (1 - coherence) / 2)) * PAULIS[3]]
    return [b @ a for a in damping for b in dephasing]


def depolarizing(p, n):
    strings = [np.eye(1)]
    for _ in range(n):
        strings = [np.kron(s, pauli) for s in strings for pauli in PAULIS]
    weights = [1 - p + p / 4**n] + [p / 4**n] * (4**n - 1)
    return [np.sqrt(w) * s for w, s in zip(weights, strings, strict=True)]


def remaining_depolarizing(fidelity, kraus):
    """Strength that brings the average fidelity of these operators down to the stated one, if they are better."""
    d = len(kraus[0])
    process = sum(abs(np.trace(k)) ** 2 for k in kraus) / d**2
    wanted = ((d + 1) * fidelity - 1) / d
    return max(0.0, (process - wanted) / (process - 1 / d**2))


def on(matrix, wires, n):
    """A matrix on some wires as one on all, element by element."""
    whole = np.zeros((2**n, 2**n), dtype=complex)
    for row, column in itertools.product(range(2**n), repeat=2):
        bits = [[number >> (n - 1 - wire) & 1 for wire in range(n)] for number in (row, column)]
        if all(bits[0][wire] == bits[1][wire] for wire in range(n) if wire not in wires):
            small = [sum(b[wire] << (len(wires) - 1 - i) for i, wire in enumerate(wires)) for b in bits]
            whole[row, column] = matrix[small[0], small[1]]
    return whole


def busy_times(circuit, chip):
    """Begin and end of every gate before the measurement, as late as possible."""
    busy = []
    free = [0.0] * circuit.n_qubits
    for gate in circuit.gates[::-1]:
        length = {"RX": chip.one_qubit_ns, "RZ": 0.0, "CZ": chip.two_qubit_ns}[gate.name]
        end = max(free[w] for w in gate.wires)
        for w in gate.wires:
            free[w] = end + length
        busy.append((end + length, end))
    return busy[::-1]


def probabilities(chip, template, angles, extra_depolarizing=None):
    """(n_angles,) -> (2**k,), with readout errors. ``extra_depolarizing``: place of a CZ -> strength."""
    circuit, n = template.circuit, template.circuit.n_qubits
    qubits = [chip.qubits[q] for q in template.qubits]
    couplers = {c.qubits: c.fidelity for c in chip.couplers}
    state = np.zeros((2**n, 2**n), dtype=complex)
    state[0, 0] = 1

    def act(operators, wires):
        nonlocal state
        whole = [on(k, wires, n) for k in operators]
        state = sum(k @ state @ k.conj().T for k in whole)

    until = [None] * n  # end of the last gate of every wire
    for place, (gate, (begin, end)) in enumerate(zip(circuit.gates, busy_times(circuit, chip), strict=True)):
        for w in gate.wires:
            if until[w] is not None:
                act(relaxation(qubits[w], until[w] - begin), [w])
            until[w] = end
        if gate.name == "CZ":
            act([np.diag([1, 1, 1, -1])], gate.wires)
            loss = [np.kron(a, b) for a, b in itertools.product(
                *(relaxation(qubits[w], chip.two_qubit_ns) for w in gate.wires))]  # fmt: skip
            act(loss, gate.wires)
            pair = tuple(sorted(template.qubits[w] for w in gate.wires))
            act(depolarizing(remaining_depolarizing(couplers[pair], loss), 2), gate.wires)
            act(depolarizing((extra_depolarizing or {}).get(place, 0.0), 2), gate.wires)
            continue
        angle = gate.angle if isinstance(gate.angle, float) else angles[gate.angle.index]
        pauli = PAULIS[1] if gate.name == "RX" else PAULIS[3]
        act([np.cos(angle / 2) * np.eye(2) - 1j * np.sin(angle / 2) * pauli], gate.wires)
        if gate.name == "RX":
            loss = relaxation(qubits[gate.wires[0]], chip.one_qubit_ns)
            act(loss, gate.wires)
            fidelity = qubits[gate.wires[0]].fidelity
            act(depolarizing(remaining_depolarizing(fidelity, loss), 1), gate.wires)
    for w in range(n):
        if until[w] is not None:
            act(relaxation(qubits[w], until[w]), [w])
    return read(state.diagonal().real, qubits)


def read(true, qubits):
    """Probabilities of what is read from those of what is there."""
    confusion = np.eye(1)
    for qubit in qubits:
        confusion = np.kron(confusion, np.array([[1 - qubit.p10, qubit.p01], [qubit.p10, 1 - qubit.p01]]))
    return confusion @ true
