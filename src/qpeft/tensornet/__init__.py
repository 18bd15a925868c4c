"""Tensor networks in plain torch: matrices kept as products of small cores, or as circuits of rotations."""

from qpeft.tensornet import orthogonal
from qpeft.tensornet.modes import Modes, choose_modes
from qpeft.tensornet.mpo import MPO

__all__ = ["MPO", "Modes", "choose_modes", "orthogonal"]
