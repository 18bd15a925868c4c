"""QTHA, the Quantum Tensor Hybrid Adapter (arXiv:2503.12790), as a peft tuner."""

from qpeft.adapters.qtha.config import QTHAConfig
from qpeft.adapters.qtha.layer import QTHALayer, QTHALinear
from qpeft.adapters.qtha.model import QTHAModel
from qpeft.adapters.registry import QPeftType, register

__all__ = ["QTHAConfig", "QTHALayer", "QTHALinear", "QTHAModel"]

register(QPeftType.QTHA, QTHAConfig, QTHAModel)
