"""Chips as data: what a quantum chip is made of today, where circuits fit on it, and what it would return."""

from qpeft.chips.compiler import compile_circuit
from qpeft.chips.layout import Layout
from qpeft.chips.metrics import Metrics, metrics
from qpeft.chips.packing import plan_layout
from qpeft.chips.presets import PRESETS, load_chip
from qpeft.chips.qubits import Coupler, Qubit
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.chips.template import NativeTemplate

__all__ = [
    "PRESETS",
    "ChipSnapshot",
    "Coupler",
    "Layout",
    "Metrics",
    "NativeTemplate",
    "Qubit",
    "compile_circuit",
    "load_chip",
    "metrics",
    "plan_layout",
]
