"""A chip as Origin's cloud describes it: the JSON of ``chipInfo``, read and written.

    {"ChipID": "72", "QubitCount": 72, "AvailableQubits": [0, 1, ...],
     "QubitParams": [{"qubitId": "0", "SingleGateFidelity": 0.995, "ReadoutFidelity": 0.9234, "Frequency": 4764,
                      "T1": 9.254, "T2": 1.128}, ...],
     "adjMatrix": {"38": [{"v": 44, "w": 0.9831}], ...},
     "QGateClock": [{"gateType": "RPhi", "IntValue": 30}, {"gateType": "CZ", "IntValue": 40}], ...}

``w`` is the fidelity of CZ (0: dead); an edge may stand under one of its qubits or under both. The whole answer, with
all this inside ``obj``, is understood too, and numbers may be strings. What the answer has no field for (date,
asymmetric readout, residual interactions, further times, sources) stands in one more object, ``"qpeft"``.

What a real answer may lack is filled, and said in the notes: a T1 or T2 that is missing or 0 is the median of the
others, T2 above 2 T1 becomes 2 T1, an edge with two values has the lower one, and a qubit without fidelities is not
usable.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import median
from typing import Any

from qpeft.chips.qubits import WORST_PULSE, Coupler, Qubit
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.errors import InputError

_READ = ("ChipID", "QubitCount", "AvailableQubits", "QubitParams", "adjMatrix", "QGateClock", "qpeft")
_PULSES = ("RPhi", "U3", "X1", "SX", "RX")
_MAX_QUBITS = 100_000  # against a mistyped count that would fill the memory


def read_answer(answer: object) -> ChipSnapshot:
    """Make a snapshot of an answer.

    Raises:
        InputError: Anything that is not such an answer.
    """
    record = _dict("the answer", answer)
    if "obj" in record:
        if record.get("success") is False:
            raise InputError(f"the answer is a refusal: {str(record.get('message', 'no message'))[:200]!r}.")
        record = _dict("'obj' of the answer", record["obj"])
    for name in ("QubitParams", "adjMatrix"):
        if name not in record:
            raise InputError(f"the answer has no {name!r}; it must be what Origin's chipInfo returns.")
    more = _dict("'qpeft'", record.get("qpeft", {}))
    notes: list[str] = [_text("a note", note) for note in _list("'notes'", more.get("notes", []))]
    sources = {name: _text("a source", text) for name, text in _dict("'sources'", more.get("sources", {})).items()}
    pairs = _edges(record["adjMatrix"], notes)
    qubits = _qubits(record, pairs, more, notes, sources)
    zz = _by_pair("zz_khz", more)
    unknown = set(zz) - set(pairs)
    if unknown:
        raise InputError(f"'zz_khz' names {min(unknown)}, which is no edge of 'adjMatrix'; correct it.")
    times = _times(record, more, sources)
    return ChipSnapshot(
        name=_text("'name'", more.get("name", record.get("ChipID", "chip"))),
        qubits=qubits,
        couplers=tuple(Coupler(pair, pairs[pair], zz.get(pair, 0.0)) for pair in sorted(pairs)),
        date=_text("'date'", more.get("date", "")),
        sources=sources,
        notes=tuple(dict.fromkeys(notes)),
        vendor={
            **({"ChipID": record["ChipID"]} if "ChipID" in record else {}),
            **{name: value for name, value in record.items() if name not in _READ},
        },
        **times,
    )


def write_answer(chip: ChipSnapshot) -> dict[str, Any]:
    """The answer that :func:`read_answer` turns into this snapshot."""
    edges: dict[str, list[dict[str, float]]] = {}
    for coupler in chip.couplers:
        a, b = coupler.qubits
        edges.setdefault(str(a), []).append({"v": b, "w": coupler.fidelity})
        edges.setdefault(str(b), []).append({"v": a, "w": coupler.fidelity})
    return {
        "ChipID": chip.name,
        "BasicQGate": ["RPhi", "CZ"],
        "HighFrequencyQubit": [],
        "CompensateAngle": {},
        **chip.vendor,
        "QubitCount": len(chip.qubits),
        "AvailableQubits": list(chip.live_qubits),
        "QubitParams": [
            {
                "qubitId": str(q.index),
                "SingleGateFidelity": q.fidelity,
                "ReadoutFidelity": round(1 - (q.p10 + q.p01) / 2, 12),
                **({} if q.frequency_mhz is None else {"Frequency": q.frequency_mhz}),
                "T1": q.t1_us,
                "T2": q.t2_us,
            }
            for q in chip.qubits
            if q.available
        ],
        "adjMatrix": {name: edges[name] for name in sorted(edges, key=int)},
        "QGateClock": [
            {"gateType": "RPhi", "IntValue": _whole_where_it_is(chip.one_qubit_ns)},
            {"gateType": "CZ", "IntValue": _whole_where_it_is(chip.two_qubit_ns)},
        ],
        "qpeft": {
            "name": chip.name,
            "date": chip.date,
            "readout_ns": chip.readout_ns,
            "repetition_us": chip.repetition_us,
            "readout": {str(q.index): [q.p10, q.p01] for q in chip.qubits if q.available},
            "zz_khz": {f"{c.qubits[0]},{c.qubits[1]}": c.zz_khz for c in chip.couplers if c.zz_khz},
            "sources": dict(chip.sources),
            "notes": list(chip.notes),
        },
    }


def _edges(matrix: object, notes: list[str]) -> dict[tuple[int, int], float]:
    pairs: dict[tuple[int, int], float] = {}
    for name, entries in _dict("'adjMatrix'", matrix).items():
        first = _whole("a key of 'adjMatrix'", name)
        for entry in _list(f"'adjMatrix' of qubit {first}", entries):
            edge = _dict(f"an edge of qubit {first}", entry)
            second = _whole(f"'v' of an edge of qubit {first}", edge.get("v"))
            if first == second:
                raise InputError(f"'adjMatrix' couples qubit {first} to itself; an edge joins two qubits.")
            pair = (min(first, second), max(first, second))
            fidelity = _fraction(f"'w' of the edge {pair}", edge.get("w"))
            if pairs.get(pair, fidelity) != fidelity:
                notes.append(
                    f"the edge {pair} has the values {pairs[pair]:g} and {fidelity:g}; the lower one is taken."
                )
                fidelity = min(fidelity, pairs[pair])
            pairs[pair] = fidelity
    return pairs


def _qubits(
    record: dict[str, Any],
    pairs: Iterable[tuple[int, int]],
    more: dict[str, Any],
    notes: list[str],
    sources: dict[str, str],
) -> tuple[Qubit, ...]:
    found: dict[int, dict[str, Any]] = {}
    for entry in _list("'QubitParams'", record["QubitParams"]):
        values = _dict("an entry of 'QubitParams'", entry)
        index = _whole("'qubitId'", values.get("qubitId"))
        if index in found:
            raise InputError(f"'QubitParams' lists qubit {index} twice; list it once.")
        found[index] = values
    offered = record.get("AvailableQubits")
    available = (
        set(found)
        if offered is None
        else {_whole("an entry of 'AvailableQubits'", q) for q in _list("'AvailableQubits'", offered)}
    )
    highest = max([*found, *available, *(pair[1] for pair in pairs)], default=-1)
    if highest >= _MAX_QUBITS:
        raise InputError(f"the answer names qubit {highest}; chips of up to {_MAX_QUBITS} qubits are understood.")
    count = highest + 1 if record.get("QubitCount") is None else _whole("'QubitCount'", record["QubitCount"])
    if not max(1, highest + 1) <= count <= _MAX_QUBITS:
        raise InputError(f"'QubitCount' is {count}, but the answer names qubit {highest}; correct one of them.")
    readout = _readout(more, count)
    lacking = [q for q in sorted(available) if not _usable(found.get(q, {}), q, q in readout)]
    if lacking:
        notes.append(f"without fidelities, therefore not usable: qubits {', '.join(map(str, lacking))}.")
        available -= set(lacking)
    spans = {name: _spans(name, found, available, notes, sources) for name in ("T1", "T2")}
    qubits = []
    for index in range(count):
        values = found.get(index, {})
        frequency = values.get("Frequency")
        mhz = None if frequency is None else _number(f"'Frequency' of qubit {index}", frequency)
        if index not in available:
            qubits.append(Qubit(index, 0.0, 0.5, 0.5, 0.0, 0.0, False, mhz))
            continue
        t1, t2 = spans["T1"][index], spans["T2"][index]
        if t2 > 2 * t1:
            notes.append(f"T2 of qubit {index} was {t2:g} us, longer than 2 T1; 2 T1 = {2 * t1:g} us is taken.")
            t2 = 2 * t1
        fidelity = _fraction(f"'SingleGateFidelity' of qubit {index}", values["SingleGateFidelity"])
        if index in readout:
            p10, p01 = readout[index]
        else:
            error = round(1 - _fraction(f"'ReadoutFidelity' of qubit {index}", values["ReadoutFidelity"]), 12)
            p10 = p01 = error
        qubits.append(Qubit(index, fidelity, p10, p01, t1, t2, True, mhz))
    return tuple(qubits)


def _usable(values: dict[str, Any], index: int, has_readout: bool) -> bool:
    gate, read = values.get("SingleGateFidelity"), values.get("ReadoutFidelity")
    if gate is None or _fraction(f"'SingleGateFidelity' of qubit {index}", gate) <= WORST_PULSE:
        return False
    return has_readout or (read is not None and _fraction(f"'ReadoutFidelity' of qubit {index}", read) > 0)


def _spans(
    name: str, found: dict[int, dict[str, Any]], available: set[int], notes: list[str], sources: dict[str, str]
) -> dict[int, float]:
    """T1 or T2 of the usable qubits, microseconds; what is missing or 0 becomes the median of the others."""
    spans = {}
    for index in sorted(available):
        value = found[index].get(name)
        span = 0.0 if value is None else _number(f"{name} of qubit {index}", value)
        if not 0 <= span < 1e15:
            raise InputError(f"{name} of qubit {index} must be a positive time (got {value!r}); correct it.")
        spans[index] = span
    known = [span for span in spans.values() if span]
    lacking = [index for index, span in spans.items() if not span]
    if lacking and not known:
        raise InputError(f"the answer has no {name} of any usable qubit; without it nothing can be said of noise.")
    if lacking:
        typical = median(known)
        spans.update(dict.fromkeys(lacking, typical))
        listed = ", ".join(map(str, lacking))
        notes.append(f"{name} of qubits {listed} is missing; the median {typical:g} us is taken.")
        sources.setdefault(f"{name} of qubits {listed}", "inferred: the median of the others")
    return spans


def _readout(more: dict[str, Any], count: int) -> dict[int, tuple[float, float]]:
    errors = {}
    for name, pair in _dict("'readout'", more.get("readout", {})).items():
        index = _whole("a key of 'readout'", name)
        values = _list(f"'readout' of qubit {index}", pair)
        if len(values) != 2 or index >= count:
            raise InputError(f"'readout' of qubit {index} must be [p10, p01] of a qubit below {count}; correct it.")
        p10, p01 = (_fraction(f"'readout' of qubit {index}", value) for value in values)
        errors[index] = (p10, p01)
    return errors


def _by_pair(name: str, more: dict[str, Any]) -> dict[tuple[int, int], float]:
    found = {}
    for key, value in _dict(repr(name), more.get(name, {})).items():
        ends = [_whole(f"a key of {name!r}", end) for end in key.split(",")]
        if len(ends) != 2:
            raise InputError(f"{name!r} has the key {_shown(key)}; write a pair of qubits like '0,1'.")
        found[min(ends), max(ends)] = _number(f"{name!r} of {ends}", value)
    return found


def _times(record: dict[str, Any], more: dict[str, Any], sources: dict[str, str]) -> dict[str, float]:
    clock = {}
    for entry in _list("'QGateClock'", record.get("QGateClock") or []):
        values = _dict("an entry of 'QGateClock'", entry)
        gate = _text("'gateType'", values.get("gateType"))
        clock[gate] = _number(f"the time of {gate} in 'QGateClock'", values.get("IntValue"))
    pulse = next((clock[name] for name in _PULSES if name in clock), None)
    times = {"one_qubit_ns": pulse, "two_qubit_ns": clock.get("CZ")}
    for name in ("readout_ns", "repetition_us"):
        times[name] = _number(repr(name), more[name]) if name in more else None
    for name, value in times.items():
        if value is None:
            sources.setdefault(name, "inferred: not in the answer, the default is taken")
    return {name: value for name, value in times.items() if value is not None}


def _dict(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name} must be a JSON object (got {_shown(value)}); it must be what chipInfo returns.")
    return value


def _list(name: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise InputError(f"{name} must be a JSON list (got {_shown(value)}); it must be what chipInfo returns.")
    return value


def _text(name: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise InputError(f"{name} must be text (got {_shown(value)}); correct it.")
    return str(value)


def _number(name: str, value: object) -> float:
    try:
        if isinstance(value, (int, float, str)) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    except (ValueError, OverflowError):
        pass
    raise InputError(f"{name} must be a finite number (got {_shown(value)}); correct it.")


def _fraction(name: str, value: object) -> float:
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise InputError(f"{name} must be from 0 to 1 (got {_shown(value)}); correct it.")
    return number


def _whole(name: str, value: object) -> int:
    number = _number(name, value)
    if number != int(number) or not 0 <= number < 2**53:
        raise InputError(f"{name} must be a whole number of 0 or more (got {_shown(value)}); correct it.")
    return int(number)


def _whole_where_it_is(number: float) -> float:
    """30.0 as 30: Origin's own client expects whole nanoseconds."""
    return int(number) if number == int(number) else number


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
