"""Exact expectations of a circuit for a batch of inputs: one call, :func:`run`."""

from qpeft.simulators.exact import MAX_QUBITS, run

__all__ = ["MAX_QUBITS", "run"]
