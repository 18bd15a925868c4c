"""Chips that come with the library, by name: published numbers where there are some, the gaps filled and marked so."""

from __future__ import annotations

import difflib
from importlib.resources import as_file, files
from pathlib import Path

from qpeft.chips.snapshot import ChipSnapshot
from qpeft.errors import InputError

PRESETS = ("wukong-72", "wukong-72-ideal", "wk-c180-like")


def load_chip(name: str | Path) -> ChipSnapshot:
    """A chip by the name of a preset, or from a JSON file.

    Args:
        name: One of :data:`PRESETS`, or the path of a file: a saved snapshot, or an answer of Origin's ``chipInfo``.

    Raises:
        InputError: Neither a preset nor a readable chip file.

    Example:
        >>> len(load_chip("wukong-72").live_qubits)
        66
    """
    if name in PRESETS:
        with as_file(files("qpeft.chips").joinpath("presets", f"{name}.json")) as path:
            return ChipSnapshot.load(path)
    if name == "ibm-heron-like":
        raise InputError(
            "'ibm-heron-like' is made from a backend that comes with qiskit-ibm-runtime, not from a file; take "
            "qpeft.qpu.providers.qiskit.snapshot_from_backend."
        )
    if Path(name).is_file():
        return ChipSnapshot.load(name)
    near = difflib.get_close_matches(str(name), PRESETS, n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    raise InputError(f"no chip {str(name)!r}: {guess}presets are {', '.join(PRESETS)}; else name a JSON file.")
