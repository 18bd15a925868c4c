"""Amounts of memory and disk as people write them: `8GB`, `7.5GiB`, `500MB`."""

from __future__ import annotations

_UNITS = (("gib", 2**30), ("gb", 10**9), ("mib", 2**20), ("mb", 10**6))


def bytes_of(text: str) -> float | None:
    """Bytes of an amount with its unit (GB, GiB, MB, MiB); None where the text is no positive amount.

    Example:
        >>> from qpeft.training.amounts import bytes_of
        >>> bytes_of("8GB"), bytes_of("many")
        (8000000000.0, None)
    """
    plain = text.strip().lower()
    for unit, size in _UNITS:
        if plain.endswith(unit):
            try:
                amount = float(plain.removesuffix(unit)) * size
            except ValueError:
                return None
            return amount if 0 < amount < float("inf") else None
    return None
