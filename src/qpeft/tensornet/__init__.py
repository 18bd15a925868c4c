"""Tensor networks in plain torch: matrices kept as products of small cores."""

from qpeft.tensornet.modes import Modes, choose_modes
from qpeft.tensornet.mpo import MPO

__all__ = ["MPO", "Modes", "choose_modes"]
