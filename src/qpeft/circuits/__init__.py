"""Circuits as data: gates, observables, ansätze, text drawing, OpenQASM 3 and OriginIR."""

from qpeft.circuits.ansatze import qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.circuits.circuit import Circuit, Gate, Input, Observable, Weight
from qpeft.circuits.openqasm import from_openqasm, to_openqasm
from qpeft.circuits.originir import from_originir, to_originir

__all__ = [
    "Circuit",
    "Gate",
    "Input",
    "Observable",
    "Weight",
    "from_openqasm",
    "from_originir",
    "qtha_block",
    "rotation_cnot_ring",
    "simplified_two_design",
    "to_openqasm",
    "to_originir",
]
