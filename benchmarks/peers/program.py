"""The circuit as the adapters see it, read from ``qpeft.circuits.Circuit.key`` without importing qpeft.

Only what the benchmark's two circuits use: RY, RZ, CNOT and CRZ, angles that are an input or a weight, <Z_i> on every
qubit.
"""

from __future__ import annotations

import json
from typing import NamedTuple


class Step(NamedTuple):
    """One gate: its wires (control first) and, for rotations, the array and the place its angle comes from."""

    name: str
    wires: tuple[int, ...]
    source: str | None  # "x": inputs, "w": weights, None: no angle
    place: int


class Program:
    """Gates in order; ``n_qubits`` qubits, every one measured."""

    def __init__(self, key: str) -> None:
        self.key = key
        record = json.loads(key)
        self.n_qubits: int = record["n"]
        if record["o"] != [f"Z{wire}" for wire in range(self.n_qubits)]:
            raise ValueError("the benchmark measures <Z_i> on every qubit")
        self.steps = [self._step(*gate) for gate in record["g"]]

    @staticmethod
    def _step(name: str, wires: list[int], angle: list | None = None) -> Step:
        if name not in ("RY", "RZ", "CNOT", "CRZ"):
            raise ValueError(f"the benchmark's circuits have no {name}")
        if angle is None:
            return Step(name, tuple(wires), None, 0)
        source, index, scale = angle
        if scale != 1.0:
            raise ValueError("the benchmark's circuits take their angles as they are")
        return Step(name, tuple(wires), source, index)
