"""python benchmarks/chip_presets.py: write the chips that come with the library, src/qpeft/chips/presets/*.json.

Published numbers stand here as they were published. What was not published is drawn from a normal distribution around
what was, with a fixed seed, and the file says so: its source starts with "inferred".
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from statistics import NormalDist, fmean
from typing import Any

PRESETS = Path(__file__).parents[1] / "src" / "qpeft" / "chips" / "presets"

DOC = "OriginQ/QPanda3-doc, changelog v0.1.1 (printed output of chip_info for origin_wukong)"
PRESS = "Xinhua, 6 January 2024 (72 computing qubits, 126 couplers)"
SAMPLES = "OriginQ/QPanda3-doc, changelog v0.2.1 (instruction samples)"
AVERAGES = "IAI-USTC-Quantum/UnifiedQuantum, release report 0.0.16 (averages read on 19 July 2026)"

MISSING = (18, 23, 42, 43, 49, 68)
EDGES = {(38, 44): 0.9831, (44, 50): 0.0, (39, 45): 0.0, (45, 46): 0.9519, (45, 51): 0.9589, (40, 46): 0.0,
         (46, 47): 0.0, (41, 47): 0.964}  # fmt: skip
QUBITS = {
    0: {"SingleGateFidelity": 0.995, "ReadoutFidelity": 0.9234, "Frequency": 4764, "T1": 9.254, "T2": 1.128},
    1: {"SingleGateFidelity": 0.9973, "ReadoutFidelity": 0.9417, "Frequency": 4041, "T1": 17.436, "T2": 1.844},
}
HIGH_FREQUENCY = [
    0, 4, 9, 13, 16, 21, 24, 29, 32, 37, 41, 52, 57, 61, 65, 2, 14, 25, 33, 45, 62, 69, 6, 11, 26, 31, 35, 38, 47, 50,
    55, 58, 67, 71, 7, 15, 19, 28, 40, 63, 48, 34, 60, 70, 53, 30, 54, 44,
]  # fmt: skip


def grid(rows: int, columns: int) -> list[tuple[int, int]]:
    """Edges of a grid numbered row by row."""
    across = [(q, q + 1) for q in range(rows * columns) if (q + 1) % columns]
    return sorted(across + [(q, q + columns) for q in range((rows - 1) * columns)])


class Draws:
    """Normal draws within limits, the same on every machine."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def normal(self, mean: float, spread: float, low: float, high: float) -> float:
        drawn = NormalDist(mean, spread).inv_cdf(min(max(self.random.random(), 1e-9), 1 - 1e-9))
        return round(min(max(drawn, low), high), 4)

    def dead(self, edges: list[tuple[int, int]], count: int) -> set[tuple[int, int]]:
        return set(sorted(edges, key=lambda _: self.random.random())[:count])


def answer(
    name: str,
    chip: str,
    available: list[int],
    count: int,
    params: dict[int, dict[str, float]],
    edges: dict[tuple[int, int], float],
    sources: dict[str, str],
    asymmetry: float = 0.3,
) -> dict[str, Any]:
    """The file of a chip: Origin's answer and our additions."""
    matrix: dict[str, list[dict[str, float]]] = {}
    for (a, b), fidelity in sorted(edges.items()):
        matrix.setdefault(str(a), []).append({"v": b, "w": fidelity})
    readout = {}
    for qubit, values in params.items():
        error = 1 - values["ReadoutFidelity"]
        readout[str(qubit)] = [round(error * (1 - asymmetry), 6), round(error * (1 + asymmetry), 6)]
    return {
        "ChipID": chip,
        "QubitCount": count,
        "AvailableQubits": available,
        "HighFrequencyQubit": HIGH_FREQUENCY if name == "wukong-72" else [],
        "BasicQGate": ["RPhi", "CZ"],
        "CompensateAngle": {},
        "QGateClock": [{"gateType": "RPhi", "IntValue": 30}, {"gateType": "CZ", "IntValue": 40}],
        "QubitParams": [{"qubitId": str(qubit), **values} for qubit, values in sorted(params.items())],
        "adjMatrix": matrix,
        "qpeft": {
            "name": name,
            "date": "",
            "readout_ns": 1000.0,
            "repetition_us": 200.0,
            "readout": readout,
            "sources": {
                **sources,
                "one_qubit_ns": SAMPLES,
                "two_qubit_ns": "inferred: placeholder of 40 ns, no public source gives the time of CZ",
                "readout_ns": "inferred: typical of superconducting chips",
                "repetition_us": "inferred: 'cirExecuteTime' of answers printed in QPanda3-doc, taken as ns",
            },
        },
    }


def wukong_72() -> dict[str, Any]:
    """The state published in 2024, with the gaps filled."""
    draws, count = Draws(72), 72
    available = [q for q in range(count) if q not in MISSING]
    params = {}
    for qubit in available:
        drawn = {
            "SingleGateFidelity": draws.normal(0.9962, 0.0012, 0.99, 0.999),
            "ReadoutFidelity": draws.normal(0.9326, 0.015, 0.88, 0.97),
            "T1": draws.normal(13.3, 4.0, 5.0, 25.0),
            "T2": draws.normal(1.49, 0.35, 0.8, 2.6),
        }
        params[qubit] = dict(QUBITS.get(qubit, drawn))
    between = [edge for edge in grid(12, 6) if not set(edge) & set(MISSING)]
    unknown = [edge for edge in between if edge not in EDGES]
    published_dead = sum(1 for fidelity in EDGES.values() if not fidelity)
    dead = draws.dead(unknown, round(0.3 * len(between)) - published_dead)
    edges = {}
    for edge in grid(12, 6):
        fidelity = draws.normal(0.9645, 0.012, 0.93, 0.985)
        edges[edge] = EDGES.get(edge, 0.0 if edge in dead or edge not in between else fidelity)
    rest = "inferred: normal draws, seed 72, around the published values of"
    return answer("wukong-72", "72", available, count, params, edges, {
        "qubits": PRESS,
        "available": DOC,
        "topology": f"inferred: 12 rows of 6, as the published edges and the count of 126 couplers ask for; {PRESS}",
        "HighFrequencyQubit": DOC,
        "SingleGateFidelity, ReadoutFidelity, T1, T2, Frequency of qubits 0 and 1": DOC,
        "SingleGateFidelity, ReadoutFidelity, T1, T2 of the others": f"{rest} qubits 0 and 1",
        "p10, p01": "inferred: the published average readout error, split 0.7 to 1.3, for |1> decays during readout",
        "couplers " + ", ".join(f"{a}-{b}" for a, b in EDGES): DOC,
        "couplers of missing qubits": "inferred: dead",
        "couplers, which of the others are dead": "inferred: 30 % of all between usable qubits, drawn with seed 72",
        "couplers, fidelity of the others": f"{rest} the four live couplers",
    })  # fmt: skip


def wukong_72_ideal() -> dict[str, Any]:
    """All qubits and couplers, no errors."""
    values = {"SingleGateFidelity": 1.0, "ReadoutFidelity": 1.0, "T1": 1e9, "T2": 1e9}
    topology = "inferred: 12 rows of 6, as for wukong-72, everything working"
    return answer(
        "wukong-72-ideal", "72", list(range(72)), 72, {q: dict(values) for q in range(72)},
        dict.fromkeys(grid(12, 6), 1.0),
        {"topology": topology, "fidelities, p10, p01, T1, T2": "inferred: no errors, times of 1e9 us, by definition"},
    )  # fmt: skip


def wk_c180_like() -> dict[str, Any]:
    """A chip of 180 qubits with the averages of WK_C180."""
    draws, count = Draws(180), 180
    drawn = {
        "SingleGateFidelity": _with_mean(0.9983, lambda: draws.normal(0.9983, 0.0006, 0.996, 0.9995), count),
        "ReadoutFidelity": _with_mean(0.9557, lambda: draws.normal(0.9557, 0.012, 0.91, 0.985), count),
        "T1": [draws.normal(13.3, 4.0, 5.0, 25.0) for _ in range(count)],
        "T2": [draws.normal(1.49, 0.35, 0.8, 2.6) for _ in range(count)],
    }
    params = {qubit: {name: values[qubit] for name, values in drawn.items()} for qubit in range(count)}
    pairs = grid(15, 12)
    dead = draws.dead([pair for pair in pairs if pair != (0, 1)], round(0.1 * len(pairs)) - 1) | {(0, 1)}
    live = [pair for pair in pairs if pair not in dead]
    edges = dict(
        zip(live, _with_mean(0.9638, lambda: draws.normal(0.9638, 0.012, 0.91, 0.985), len(live)), strict=True)
    )
    edges.update(dict.fromkeys(dead, 0.0))
    return answer("wk-c180-like", "WK_C180", list(range(count)), count, params, edges, {
        "qubits": AVERAGES,
        "topology": "inferred: 15 rows of 12, nothing is published but that qubits 0 and 1 are not coupled",
        "mean of SingleGateFidelity (0.9983), CZ (0.9638), ReadoutFidelity (0.9557)": AVERAGES,
        "spread of the fidelities": "inferred: normal draws, seed 180; sampled couplers had 0.91 to 0.97",
        "which couplers are dead": "inferred: 10 % of all, drawn with seed 180; 0-1 is published",
        "T1, T2": "inferred: as for wukong-72",
        "p10, p01": "inferred: the readout error, split 0.7 to 1.3, for |1> decays during readout",
    })  # fmt: skip


def _with_mean(mean: float, draw: Callable[[], float], count: int) -> list[float]:
    values = [draw() for _ in range(count)]
    shift = mean - fmean(values)
    return [round(value + shift, 4) for value in values]


def text(chip: dict[str, Any]) -> str:
    """One line a field."""
    lines = (f"{json.dumps(name)}: {json.dumps(value)}" for name, value in chip.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


ALL = {"wukong-72": wukong_72, "wukong-72-ideal": wukong_72_ideal, "wk-c180-like": wk_c180_like}

if __name__ == "__main__":
    for name, build in ALL.items():
        (PRESETS / f"{name}.json").write_text(text(build()), encoding="utf-8")
