"""Quantum-enhanced parameter-efficient fine-tuning of language models.

Importing this package registers its adapters with peft; that is all a script has to do before it loads one.
"""

from qpeft.quiet_import import without_kernel_advice
from qpeft.version import __version__

with without_kernel_advice():
    from qpeft.adapters import QTHAConfig, QTHAModel, count_parameters, load

__all__ = ["QTHAConfig", "QTHAModel", "__version__", "count_parameters", "load"]
