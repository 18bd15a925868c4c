"""Any chip by what somebody calls it: presets, files, and the chips that Qiskit knows.

================================  ======================================================================
name                              chip
================================  ======================================================================
``"wukong-72"``, a path, ...      what :func:`qpeft.chips.load_chip` reads
``"ibm-heron-like"``              IBM Torino (133 qubits) as IBM's client ships it for tests
``"qiskit:fake_brisbane"``, ...   another of IBM's fake chips
``"qiskit:ibm:<name>"``           a machine of IBM's as it is now (needs an account)
a Qiskit ``BackendV2``            that chip
================================  ======================================================================
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qpeft.chips import ChipSnapshot


def open_chip(chip: Any) -> ChipSnapshot:
    """The chip of a name, a path or a Qiskit backend; a snapshot is returned as it is.

    Raises:
        InputError: There is no such chip, or the file cannot be read.
        MissingDependencyError: The chip comes with a package that is not installed.
    """
    if isinstance(chip, ChipSnapshot):
        return chip
    from qpeft.qpu.providers.qiskit_chip import heron_like, snapshot_from_backend

    if not isinstance(chip, (str, Path)):
        return snapshot_from_backend(chip)
    if chip == "ibm-heron-like":
        return heron_like()
    if isinstance(chip, str) and chip.startswith("qiskit:"):
        from qpeft.qpu.providers.qiskit import QiskitProvider

        return QiskitProvider(chip.removeprefix("qiskit:")).snapshot()
    from qpeft.chips.presets import load_chip

    return load_chip(chip)
