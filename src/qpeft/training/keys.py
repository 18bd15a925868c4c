"""Strict keys: what a mistyped one was probably meant to be."""

import difflib
from collections.abc import Iterable


def nearest(key: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about an unknown key: `; did you mean training.seed?`, or nothing."""
    match = difflib.get_close_matches(key, list(known), n=1, cutoff=0.6)
    return f"; did you mean {prefix}{match[0]}?" if match else ""
