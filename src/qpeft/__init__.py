"""Quantum-enhanced parameter-efficient fine-tuning of language models.

Importing this package registers its adapters with peft; that is all a script has to do before it loads one.
"""

from qpeft.adapters import QTHAConfig, QTHAModel, count_parameters, load
from qpeft.version import __version__

__all__ = ["QTHAConfig", "QTHAModel", "__version__", "count_parameters", "load"]
