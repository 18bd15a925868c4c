"""The same gates with their angles taken from elsewhere."""

from __future__ import annotations

from dataclasses import replace

from qpeft.circuits.circuit import Circuit, Input, Weight


def weights_as_inputs(circuit: Circuit) -> Circuit:
    """The circuit with its weights as further inputs, so that every sample can have weights of its own.

    Returns:
        A circuit with ``n_inputs + n_weights`` inputs and no weights; weight ``k`` is input ``n_inputs + k``.

    Example:
        >>> from qpeft.circuits import Gate
        >>> circuit = Circuit(1, (Gate("RY", 0, Input(0)), Gate("RZ", 0, Weight(0, 2.0))))
        >>> weights_as_inputs(circuit).gates[1].angle
        Input(index=1, scale=2.0)
    """
    gates = tuple(
        replace(gate, angle=Input(circuit.n_inputs + gate.angle.index, gate.angle.scale))
        if isinstance(gate.angle, Weight)
        else gate
        for gate in circuit.gates
    )
    return replace(circuit, gates=gates)
