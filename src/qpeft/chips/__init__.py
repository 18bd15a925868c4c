"""Chips as data: what a quantum chip is made of today, where circuits fit on it, and what it would return."""

from qpeft.chips.snapshot import ChipSnapshot, Coupler, Qubit
from qpeft.chips.template import NativeTemplate

__all__ = ["ChipSnapshot", "Coupler", "NativeTemplate", "Qubit"]
