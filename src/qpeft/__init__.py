"""Quantum-enhanced parameter-efficient fine-tuning of language models."""

from qpeft.version import __version__

__all__ = ["__version__"]
