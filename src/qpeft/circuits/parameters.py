"""The same gates with their angles taken from elsewhere."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from qpeft.circuits.circuit import Circuit, Gate, Input, Weight


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


def occurrences(circuit: Circuit) -> list[Gate]:
    """Gates with an angle that is an input or a weight, in order."""
    return [gate for gate in circuit.gates if isinstance(gate.angle, (Input, Weight))]


def separated(circuit: Circuit) -> Circuit:
    """The circuit with an input of its own for every occurrence of an input or weight, with scale 1, and no weights.

    Example:
        >>> from qpeft.circuits import Gate
        >>> circuit = Circuit(1, (Gate("RY", 0, Input(0, 2.0)), Gate("RZ", 0, 0.5), Gate("RY", 0, Input(0))))
        >>> [gate.angle for gate in separated(circuit).gates]
        [Input(index=0, scale=1.0), 0.5, Input(index=1, scale=1.0)]
    """
    gates = []
    n_inputs = 0
    for gate in circuit.gates:
        if isinstance(gate.angle, (Input, Weight)):
            gate = replace(gate, angle=Input(n_inputs))
            n_inputs += 1
        gates.append(gate)
    return replace(circuit, gates=tuple(gates))


def sources(circuit: Circuit, like: Tensor) -> tuple[Tensor, Tensor]:
    """Angles of occurrences as linear maps of inputs and of weights, ``(occurrences, n)`` each.

    The inputs of :func:`separated` are ``inputs @ to_inputs.T + to_weights @ weights``.
    """
    gates = occurrences(circuit)
    to_inputs = like.new_zeros(len(gates), circuit.n_inputs)
    to_weights = like.new_zeros(len(gates), circuit.n_weights)
    for place, gate in enumerate(gates):
        assert isinstance(gate.angle, (Input, Weight))
        (to_inputs if isinstance(gate.angle, Input) else to_weights)[place, gate.angle.index] = gate.angle.scale
    return to_inputs, to_weights
