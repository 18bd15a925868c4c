"""The virtual chip in Qiskit Aer: the same snapshot as an Aer noise model, a block as a Qiskit circuit.

Waits are identity gates with a label of their own, which the noise model lets decay.
"""

import numpy as np
from chip_reference import busy_times, relaxation, remaining_depolarizing
from qiskit import QuantumCircuit
from qiskit.circuit import ParameterVector
from qiskit.circuit.library import IGate
from qiskit_aer.noise import NoiseModel, ReadoutError, depolarizing_error, thermal_relaxation_error


def aer_circuit(chip, template):
    """A circuit with free angles, without measurement, and the noise model that belongs to it. Wire w is qubit w."""
    native, qubits = template.circuit, [chip.qubits[q] for q in template.qubits]
    model = NoiseModel()

    def decay(wire, ns):
        return thermal_relaxation_error(qubits[wire].t1_us, qubits[wire].t2_us, ns / 1000)

    for wire, qubit in enumerate(qubits):
        lost = remaining_depolarizing(qubit.fidelity, relaxation(qubit, chip.one_qubit_ns))
        model.add_quantum_error(decay(wire, chip.one_qubit_ns).compose(depolarizing_error(lost, 1)), "rx", [wire])
        flips = [[1 - qubit.p10, qubit.p10], [qubit.p01, 1 - qubit.p01]]
        model.add_readout_error(ReadoutError(flips), [wire])
    for coupler in chip.live_couplers:
        if not set(coupler.qubits) <= set(template.qubits):
            continue
        a, b = (template.qubits.index(q) for q in coupler.qubits)
        loss = [np.kron(k, m) for k in relaxation(qubits[a], chip.two_qubit_ns)
                for m in relaxation(qubits[b], chip.two_qubit_ns)]  # fmt: skip
        both = decay(b, chip.two_qubit_ns).tensor(decay(a, chip.two_qubit_ns))
        error = both.compose(depolarizing_error(remaining_depolarizing(coupler.fidelity, loss), 2))
        model.add_quantum_error(error, "cz", [a, b])
        both = decay(a, chip.two_qubit_ns).tensor(decay(b, chip.two_qubit_ns))
        error = both.compose(depolarizing_error(remaining_depolarizing(coupler.fidelity, loss), 2))
        model.add_quantum_error(error, "cz", [b, a])

    angles = ParameterVector("x", native.n_inputs)
    made = QuantumCircuit(native.n_qubits)
    until = [None] * native.n_qubits
    for place, (gate, (begin, end)) in enumerate(zip(native.gates, busy_times(native, chip), strict=True)):
        for wire in gate.wires:
            if until[wire] is not None and until[wire] - begin > 1e-9:
                label = f"wait{place}_{wire}"
                made.append(IGate(label=label), [wire])
                model.add_quantum_error(decay(wire, until[wire] - begin), label, [wire])
            until[wire] = end
        if gate.name == "CZ":
            made.cz(*gate.wires)
        elif gate.name == "RX":
            made.rx(gate.angle, gate.wires[0])
        else:
            made.rz(gate.angle if isinstance(gate.angle, float) else angles[gate.angle.index], gate.wires[0])
    return made, model
