"""Chips that Qiskit describes: a snapshot of any BackendV2, and the fake IBM chips that come with IBM's client.

Qiskit reports average gate errors, so fidelities are 1 - error. What a backend does not state is taken as perfect
where it states no errors at all (an ideal simulator), and as unusable where it states the errors of others.
"""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from qpeft.chips import ChipSnapshot, Coupler, Qubit
from qpeft.errors import InputError, MissingDependencyError

_PULSES = ("sx", "rx", "x", "r", "prx", "u", "u3")
_ENTANGLERS = ("cz", "ecr", "cx")
_FOREVER_US = 1e9  # stands for no decay where a backend states no T1 or T2
_IDEAL_QUBITS = 12  # enough for side-by-side blocks; regions of a fully connected chip grow as its factorial


def snapshot_from_backend(backend: Any, name: str | None = None) -> ChipSnapshot:
    """The state of a chip that Qiskit knows.

    Faulty qubits and gates, and those with an error of 1 or more, are marked unusable. A coupler that is listed in
    both directions becomes one, with the better direction's fidelity: ``cz``, ``ecr`` and ``cx`` all serve as CZ, up
    to one-qubit gates.

    Args:
        backend: Any ``BackendV2`` with a ``Target``: of IBM, Aer, a fake backend, another vendor.
        name: What to call it; the backend's own name where left out.

    Raises:
        InputError: The backend has no target, or no gate that can serve as CZ.

    Example:
        >>> from qiskit_ibm_runtime.fake_provider import FakeTorino
        >>> chip = snapshot_from_backend(FakeTorino())
        >>> len(chip.qubits), len(chip.live_qubits) <= 133
        (133, True)
    """
    target = getattr(backend, "target", None)
    if target is None or target.num_qubits is None:
        raise InputError(f"{type(backend).__name__} has no target with qubits; give a BackendV2.")
    name = name or getattr(backend, "name", None) or type(backend).__name__
    if target.build_coupling_map() is None:
        return ChipSnapshot.fully_connected(min(int(target.num_qubits), _IDEAL_QUBITS), name=name)
    entanglers = [gate for gate in _ENTANGLERS if gate in target.operation_names]
    pulses = [gate for gate in _PULSES if gate in target.operation_names]
    if not entanglers or not pulses:
        raise InputError(
            f"{name} offers the gates {sorted(target.operation_names)}; one of {', '.join(_ENTANGLERS)} is needed "
            f"and one of {', '.join(_PULSES)}."
        )
    faults = _Faults(backend)
    stated = any(
        properties is not None and properties.error is not None
        for gate in target.operation_names
        for properties in (target[gate] or {}).values()
    )
    qubits = tuple(_qubit(target, faults, index, pulses, stated) for index in range(target.num_qubits))
    best: dict[tuple[int, int], float] = {}
    for gate in entanglers:
        for pair in target[gate]:
            if len(pair) != 2:
                continue
            error = 1.0 if faults.gate(gate, pair) else _error(target, gate, pair, stated)
            key = (min(pair), max(pair))
            best[key] = max(best.get(key, 0.0), 1.0 - error)
    configuration = faults.configuration
    delay = getattr(configuration, "default_rep_delay", None)
    readout_ns = _duration_ns(target, "measure", 1000.0)
    sources = {"all": f"Qiskit target of {name}"}
    if not stated:
        sources["fidelities"] = "inferred: the backend states no errors"
    if delay is None:
        sources["repetition_us"] = "inferred: the backend states no repetition delay"
    return ChipSnapshot(
        name=name,
        qubits=qubits,
        couplers=tuple(Coupler(pair, fidelity) for pair, fidelity in sorted(best.items())),
        one_qubit_ns=_duration_ns(target, pulses[0], 30.0),
        two_qubit_ns=_duration_ns(target, entanglers[0], 70.0),
        readout_ns=readout_ns,
        repetition_us=(250.0 if delay is None else delay * 1e6) + readout_ns / 1000,
        date=faults.date,
        sources=sources,
    )


def heron_like() -> ChipSnapshot:
    """The chip ``ibm-heron-like``: IBM Torino (133 qubits, Heron r1) as IBM's client ships it for tests.

    Raises:
        MissingDependencyError: qiskit-ibm-runtime is not installed.
    """
    return snapshot_from_backend(fake_backend("fake_torino"), name="ibm-heron-like")


def fake_backend(name: str) -> Any:
    """A fake IBM chip by its name, for example ``"fake_torino"``.

    Raises:
        InputError: There is none of that name.
        MissingDependencyError: qiskit-ibm-runtime is not installed.
    """
    try:
        from qiskit_ibm_runtime import fake_provider
    except ImportError as error:
        raise MissingDependencyError(
            'IBM\'s fake chips need qiskit-ibm-runtime; install it with pip install "qpeft[ibm]".'
        ) from error
    kinds = {kind.lower(): kind for kind in dir(fake_provider) if kind.startswith("Fake")}
    plain = name.lower().replace("_", "")
    kind = kinds.get(plain) or kinds.get(plain + "v2")
    if kind is None or "provider" in plain:
        raise InputError(f"unknown fake chip {name!r}; for example fake_torino, fake_brisbane, fake_sherbrooke.")
    return getattr(fake_provider, kind)()


class _Faults:
    """What only IBM's backends tell beside their target: faulty parts, both readout errors, date, repetition delay."""

    def __init__(self, backend: Any) -> None:
        self._properties = _ask(backend, "properties")
        self.configuration = _ask(backend, "configuration")
        date = getattr(self._properties, "last_update_date", None)
        self.date = date.isoformat() if date is not None else ""

    def qubit(self, index: int) -> bool:
        return self._properties is not None and not self._properties.is_qubit_operational(index)

    def gate(self, name: str, qubits: tuple[int, ...]) -> bool:
        if self._properties is None:
            return False
        try:
            return not self._properties.is_gate_operational(name, list(qubits))
        except Exception:  # the properties list fewer gates than the target; the target's error decides then
            return False

    def readout(self, index: int, error: float) -> tuple[float, float]:
        """(p10, p01): reading 1 of |0>, reading 0 of |1>."""
        stated = self._properties.qubit_property(index) if self._properties is not None else {}
        if "prob_meas1_prep0" in stated and "prob_meas0_prep1" in stated:
            return float(stated["prob_meas1_prep0"][0]), float(stated["prob_meas0_prep1"][0])
        return error, error


def _ask(backend: Any, method: str) -> Any:
    ask = getattr(backend, method, None)
    return ask() if callable(ask) else None


def _qubit(target: Any, faults: _Faults, index: int, pulses: list[str], stated: bool) -> Qubit:
    error = min((_error(target, gate, (index,), stated) for gate in pulses[:1]), default=1.0)
    readout = _error(target, "measure", (index,), stated)
    p10, p01 = faults.readout(index, readout)
    described = target.qubit_properties[index] if target.qubit_properties else None
    t1, t2, frequency = (getattr(described, key, None) for key in ("t1", "t2", "frequency"))
    t1_us = _FOREVER_US if not t1 else t1 * 1e6
    t2_us = min(2 * t1_us, _FOREVER_US if not t2 else t2 * 1e6)
    usable = error < 1 and readout < 1 and p10 + p01 < 1 and not faults.qubit(index)
    return Qubit(
        index=index,
        fidelity=1.0 - error,
        p10=p10,
        p01=p01,
        t1_us=t1_us,
        t2_us=t2_us,
        available=usable and not any(faults.gate(gate, (index,)) for gate in pulses[:1]),
        frequency_mhz=frequency / 1e6 if frequency else None,
    )


def _error(target: Any, gate: str, qubits: tuple[int, ...], stated: bool) -> float:
    """Error of a gate, 1 where it is missing among gates whose errors are stated."""
    listed = target[gate] if gate in target.operation_names else {}
    if None in listed:  # a gate of a simulator, for all qubits alike
        return 0.0
    if qubits not in listed:
        return 1.0
    properties = listed[qubits]
    error = None if properties is None else properties.error
    if error is None:
        return 1.0 if stated else 0.0
    return min(1.0, max(0.0, float(error))) if math.isfinite(error) else 1.0


def _duration_ns(target: Any, gate: str, default: float) -> float:
    """Median duration of a gate over the chip."""
    listed = target[gate] if gate in target.operation_names else {}
    stated = [p.duration * 1e9 for p in listed.values() if p is not None and p.duration]
    return median(stated) if stated else default
