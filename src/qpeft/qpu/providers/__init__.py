"""Providers by name; one file a vendor, imported when it is asked for, and no vendor's types leave it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from qpeft.errors import InputError
from qpeft.qpu.protocol import Provider

PROVIDERS = {
    "virtual-wukong": ("virtual", "VirtualProvider"),
    "origin": ("origin", "OriginProvider"),
    "qiskit": ("qiskit", "QiskitProvider"),
    "qbraid": ("qbraid", "QBraidProvider"),
}
"""Name of an executor -> file and class of its provider."""


def open_provider(name: str, **settings: Any) -> Provider:
    """Make a provider; what it needs beside its name is said by its class.

    Args:
        name: One of :data:`PROVIDERS`.
        settings: Arguments of its class.

    Raises:
        InputError: Unknown name or setting.
        MissingDependencyError: Its vendor's package is not installed.
    """
    if name not in PROVIDERS:
        raise InputError(f"unknown provider {name!r}; available: {', '.join(PROVIDERS)}.")
    module, kind = PROVIDERS[name]
    provider: Provider = getattr(import_module(f"qpeft.qpu.providers.{module}"), kind)(**settings)
    return provider
