"""Adapters for peft: QTHA, its accounting, and loading."""

from qpeft.adapters.accounting import ParameterCount, count_parameters, describe, freeze_angles, parameter_groups
from qpeft.adapters.loading import load
from qpeft.adapters.qtha import QTHAConfig, QTHAModel

__all__ = [
    "ParameterCount", "QTHAConfig", "QTHAModel", "count_parameters", "describe", "freeze_angles", "load",
    "parameter_groups",
]  # fmt: skip
