"""Chips as data: what a quantum chip is made of today, where circuits fit on it, and what it would return."""

from qpeft.chips.presets import PRESETS, load_chip
from qpeft.chips.snapshot import ChipSnapshot, Coupler, Qubit
from qpeft.chips.template import NativeTemplate

__all__ = ["PRESETS", "ChipSnapshot", "Coupler", "NativeTemplate", "Qubit", "load_chip"]
