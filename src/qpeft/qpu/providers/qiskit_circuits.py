"""The one translation into Qiskit: templates side by side as a parametrised circuit in a backend's own gates.

Wire ``w`` of a template stands on its physical qubit and is measured into bit ``k - 1 - w`` of the block's register,
so that the number in the register is the index of :data:`~qpeft.qpu.protocol.Counts` (wire 0 most significant).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qpeft.chips import NativeTemplate
from qpeft.circuits import Gate, Input
from qpeft.errors import InputError
from qpeft.qpu.protocol import NotAcceptedError

_NAMES = {"CNOT": "cx"}  # the other gates have their own names in small letters
# What simulators are given: Aer 0.18 leaves out controlled rotations whose angle is a parameter, without a word.
_SIMULATED = ["h", "x", "y", "z", "s", "sdg", "t", "tdg", "rx", "ry", "rz", "cx", "cz", "swap"]


@dataclass(frozen=True)
class Compiled:
    """A Qiskit circuit in the backend's gates, and which column of a PUB's values each of its parameters takes.

    The column after the last angle holds zeros.
    """

    circuit: Any
    columns: np.ndarray


def compile_blocks(templates: Sequence[NativeTemplate], target: Any) -> Compiled:
    """Write templates side by side and turn them into a backend's gates without moving a qubit.

    Args:
        templates: On disjoint qubits; each gets a register ``b0``, ``b1``, ...
        target: Qiskit ``Target`` with a coupling map, or ``None`` for a simulator that takes gates between any qubits;
            the circuit then has only the wires it needs.

    Raises:
        InputError: Qubits used twice, or beyond the chip.
        NotAcceptedError: The backend has no gate where the templates need one.
    """
    from qiskit import ClassicalRegister, QuantumCircuit
    from qiskit.circuit import Parameter, ParameterVector

    used = [qubit for template in templates for qubit in template.qubits]
    if len(set(used)) != len(used):
        raise InputError(f"blocks share qubits ({sorted(used)}); give every block of a circuit its own qubits.")
    if target is not None and max(used) >= target.num_qubits:
        raise InputError(
            f"qubit {max(used)} is not on the chip, which has qubits 0 to {target.num_qubits - 1}; "
            f"place the circuit with a snapshot of this backend."
        )
    place = {qubit: qubit if target is not None else i for i, qubit in enumerate(used)}
    registers = [ClassicalRegister(len(template.qubits), f"b{r}") for r, template in enumerate(templates)]
    circuit = QuantumCircuit(len(used) if target is None else target.num_qubits)
    # Samplers differ in what rows of no parameter mean (Aer runs them once and leaves zeros), so there is always one:
    # a turn about Z by 0, which does nothing to |0> and takes no time.
    zero = Parameter("zero")
    if not any(template.circuit.n_inputs for template in templates):
        circuit.rz(zero, place[used[0]])
    vectors = []
    for r, template in enumerate(templates):
        circuit.add_register(registers[r])
        vector = ParameterVector(f"a{r}", template.circuit.n_inputs)
        vectors.append(vector)
        for gate in template.circuit.gates:
            _append(circuit, gate, [place[template.qubits[wire]] for wire in gate.wires], vector)
    circuit.barrier([place[qubit] for qubit in used])  # blocks that end early would otherwise decay while they wait
    for register, template in zip(registers, templates, strict=True):
        for wire, qubit in enumerate(template.qubits):
            circuit.measure(place[qubit], register[len(template.qubits) - 1 - wire])
    compiled = _in_native_gates(circuit, target)
    column = {parameter: i for i, parameter in enumerate([*(p for vector in vectors for p in vector), zero])}
    return Compiled(compiled, np.array([column[p] for p in compiled.parameters], dtype=np.int64))


def _append(circuit: Any, gate: Gate, qubits: list[int], vector: Any) -> None:
    apply = getattr(circuit, _NAMES.get(gate.name, gate.name.lower()))
    if gate.angle is None:
        apply(*qubits)
    elif isinstance(gate.angle, Input):
        angle = vector[gate.angle.index]
        apply(angle if gate.angle.scale == 1.0 else gate.angle.scale * angle, *qubits)
    else:
        apply(gate.angle, *qubits)


def _in_native_gates(circuit: Any, target: Any) -> Any:
    from qiskit.exceptions import QiskitError
    from qiskit.transpiler import PassManager, generate_preset_pass_manager
    from qiskit.transpiler.passes import Optimize1qGatesDecomposition

    # Level 1 would also cancel pairs of CZ, which are there on purpose where noise is amplified; level 0 alone would
    # play two pulses for every RX.
    gates: dict[str, Any] = {"basis_gates": _SIMULATED} if target is None else {"target": target}
    passes = generate_preset_pass_manager(
        optimization_level=0,
        initial_layout=list(range(circuit.num_qubits)),
        routing_method="none",
        seed_transpiler=0,
        **gates,
    )
    if target is not None:
        passes.optimization = PassManager([Optimize1qGatesDecomposition(target=target)])
    try:
        compiled = passes.run(circuit)
    except QiskitError as error:
        raise NotAcceptedError(
            f"the backend cannot run the circuit where it was placed ({_first_line(error)}); "
            f"place it with a snapshot of this backend.",
            lasting=True,
        ) from None
    if _measured(compiled) != _measured(circuit) or not _pairs(compiled) <= _pairs(circuit):
        raise NotAcceptedError(
            "Qiskit's transpiler moved qubits although their places were fixed; nothing was sent.", lasting=True
        )
    return compiled


def _measured(circuit: Any) -> dict[int, int]:
    """Classical bit -> the physical qubit it is measured from."""
    return {
        circuit.find_bit(step.clbits[0]).index: circuit.find_bit(step.qubits[0]).index
        for step in circuit.data
        if step.operation.name == "measure"
    }


def _pairs(circuit: Any) -> set[frozenset[int]]:
    """Pairs of physical qubits that two-qubit gates act on."""
    return {
        frozenset(circuit.find_bit(qubit).index for qubit in step.qubits)
        for step in circuit.data
        if len(step.qubits) == 2 and step.operation.name != "barrier"
    }


def _first_line(error: BaseException) -> str:
    return str(error).strip().strip("'\"").splitlines()[0][:200] if str(error).strip() else type(error).__name__
