"""Chips as data: what a quantum chip is made of today, where circuits fit on it, and what it would return."""

from qpeft.chips.compiler import Metrics, compile_circuit, metrics
from qpeft.chips.presets import PRESETS, load_chip
from qpeft.chips.snapshot import ChipSnapshot, Coupler, Qubit
from qpeft.chips.template import NativeTemplate

__all__ = [
    "PRESETS",
    "ChipSnapshot",
    "Coupler",
    "Metrics",
    "NativeTemplate",
    "Qubit",
    "compile_circuit",
    "load_chip",
    "metrics",
]
