"""Tables, plots and claims from the results of ``circuit_kernel.py``."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from circuit_floor import Machine, operations, state_vector
from peers.contenders import CONTENDERS

OURS = "qpeft"
PEERS = [c.name for c in CONTENDERS if c.is_peer]
TITLES = {c.name: c.title for c in CONTENDERS}
LARGE = 13  # from this many qubits on, the claim for large circuits counts


class Row(NamedTuple):
    """A point that was measured."""

    ansatz: str
    n: int
    layers: int
    batch: int
    threads: int
    contenders: dict[str, Any]

    def seconds(self, mode: str, name: str = OURS) -> float:
        return statistics.median(r[mode] for r in self.contenders[name]["rounds"])

    def ratio(self, name: str, mode: str, base: str = OURS) -> float | None:
        """Median over the repeats that both took part in of the seconds of ``name`` over those of ``base``."""
        theirs, ours = (self.contenders.get(k, {}).get("rounds", []) for k in (name, base))
        ratios = [a[mode] / b[mode] for a, b in zip(theirs, ours, strict=False)]
        return statistics.median(ratios) if ratios else None

    def fastest(self, mode: str) -> tuple[str, float] | None:
        """The fastest peer and its ratio to ours."""
        ratios = {name: self.ratio(name, mode) for name in PEERS}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        return min(known.items(), key=lambda item: item[1]) if known else None


def rows_of(results: dict[str, Any]) -> list[Row]:
    """The points at which ours was measured, in order."""
    rows = [Row(*(record[k] for k in Row._fields)) for record in results["points"].values()]
    return sorted((r for r in rows if "rounds" in r.contenders[OURS]), key=lambda r: (r.threads, *r[:4]))


def limits_of(results: dict[str, Any]) -> dict[int, Machine]:
    return {
        int(threads): Machine(m["flops"], m["source"], {int(k): v for k, v in m["bandwidth"].items()})
        for threads, m in results["limits"].items()
    }


def goal(row: Row) -> float:
    """How many times as fast as the fastest peer this library claims to be, forward and backward."""
    if row.n >= LARGE:
        return 3
    if row.ansatz == "qtha_block":
        return 40
    if row.n <= 4:
        return 50 if row.batch >= 1024 else 30
    return 30 if row.n >= 12 else 80


def claims(results: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """Every claim with the worst figure behind it and whether it is kept; claims without figures are left out."""
    rows, found = rows_of(results), []
    groups: dict[tuple[float, str], list[Row]] = {}
    for row in rows:
        what = f"n >= {LARGE + 1}" if row.n >= LARGE else row.ansatz
        groups.setdefault((goal(row), what), []).append(row)
    for (least, what), group in groups.items():
        ratios = [(f[1], row) for row in group if (f := row.fastest("both")) is not None]
        if ratios:
            worst, row = min(ratios, key=lambda pair: pair[0])
            sizes = ", ".join(str(n) for n in sorted({r.n for r in group}))
            text = f"at least {least:g} times the fastest peer, forward + backward, {what}, n = {sizes}"
            found.append((text, f"least {worst:.1f} ({label(row)})", worst >= least))
    small = [row for row in rows if row.n <= 10]
    ratios = [
        (1 / slower, row)
        for row in small
        if (peer := row.fastest("both")) and (slower := row.ratio("fallback", "both", peer[0])) is not None
    ]
    if ratios:
        worst, row = min(ratios, key=lambda pair: pair[0])
        text = "torch only: at least 2 times the fastest peer, forward + backward, n <= 10"
        found.append((text, f"least {worst:.1f} ({label(row)})", worst >= 2))
    limits = limits_of(results)
    wide = [row for row in rows if row.n < LARGE and row.layers >= 2 and row.batch >= 1024]
    for mode, name in (("forward", "forward"), ("both", "forward + backward")):
        for sizes, part in (("n = 4", [r for r in wide if r.n <= 4]), ("n = 6 to 12", [r for r in wide if r.n > 4])):
            ratios = [(over_floor(row, mode, limits), row) for row in part]
            if not ratios:
                continue
            worst, row = max(ratios, key=lambda pair: pair[0])
            text = f"at most 3 times the floor, {name}, {sizes}, L >= 2, batch >= 1024"
            typical = statistics.median(ratio for ratio, _ in ratios)
            found.append((text, f"most {worst:.1f} ({label(row)}), median {typical:.1f}", worst <= 3))
    for entry in results.get("overhead", []):
        text = f"at most 50 µs beside the samples in a call of 128, {entry['ansatz']}, {entry['mode']}"
        found.append((text, f"{entry['beside'] * 1e6:.0f} µs", entry["beside"] <= 50e-6))
    return found


def over_floor(row: Row, mode: str, limits: dict[int, Machine]) -> float:
    return row.seconds(mode) / limits[row.threads].floor(row.ansatz, row.n, row.layers, row.batch, mode == "both")


def over_state_vector(row: Row, mode: str, limits: dict[int, Machine]) -> float:
    least = state_vector(row.ansatz, row.n, row.layers, mode == "both") * row.batch / limits[row.threads].flops
    return row.seconds(mode) / least


def label(row: Row) -> str:
    return f"{row.ansatz}, n={row.n}, L={row.layers}, B={row.batch}, {row.threads} thread{'s' * (row.threads > 1)}"


def write_report(folder: Path, results: dict[str, Any]) -> Path:
    """Write ``report.md`` and the plots into a folder; the report's path."""
    rows, limits = rows_of(results), limits_of(results)
    text = [*_head(results, limits), *_claims(results)]
    for threads in sorted({row.threads for row in rows}):
        clock = "CPU time, one thread" if threads == 1 else f"wall time, {threads} threads"
        part = [row for row in rows if row.threads == threads]
        text += [f"\n## {clock[0].upper() + clock[1:]}\n", *_table(part, limits), *_left_out(part)]
    text += _overhead(results) + _memory(results) + _accuracy(rows)
    text += [f"\n![{title}]({name})" for title, name in _plots(folder, rows)]
    report = folder / "report.md"
    report.write_text("\n".join(text) + "\n", encoding="utf-8")
    return report


def _head(results: dict[str, Any], limits: dict[int, Machine]) -> list[str]:
    machine = results["machine"]
    commits = sorted({record["commit"] for record in results["points"].values()})
    notes = sorted({row.contenders[OURS]["note"] or "?" for row in rows_of(results)})
    lines = [
        "# Circuit simulator: time against other frameworks and against the machine\n",
        f"{machine['processor']}, {machine['cores']} cores, {machine['system']}, Python {machine['python']}, "
        f"{machine['date']}, commit {', '.join(commits)}. qpeft ran on: {'; '.join(notes)}.\n",
        "Versions: "
        + "; ".join(
            f"{TITLES[name]}: " + ", ".join(f"{k} {v}" for k, v in found.items())
            for name, found in results["versions"].items()
        )
        + ".\n",
    ]
    for name, reason in results["absent"].items():
        lines.append(f"**{TITLES[name]} did not take part**: {reason}.\n")
    for threads, found in sorted(limits.items()):
        bandwidth = ", ".join(f"{v / 1e9:.0f} at {_bytes(k)}" for k, v in found.bandwidth.items())
        lines.append(
            f"{threads} thread{'s' * (threads > 1)}: multiply-add peak {found.flops / 1e9:.0f} GFLOP/s "
            f"({found.source}); bandwidth in GB/s: {bandwidth}.\n"
        )
    return lines


def _claims(results: dict[str, Any]) -> list[str]:
    lines = ["## Claims\n", "| claim | measured | kept |", "| --- | --- | --- |"]
    return lines + [f"| {text} | {value} | {'yes' if kept else '**no**'} |" for text, value, kept in claims(results)]


def _table(rows: list[Row], limits: dict[int, Machine]) -> list[str]:
    names = [n for n in TITLES if n != OURS and any("rounds" in r.contenders.get(n, {}) for r in rows)]
    lines = [
        "Times as slow as qpeft, forward + backward (forward in brackets); ~ where a part of the batch was scaled up, "
        "– where not run. µs per sample and multiples of the floor are qpeft's; the last column is its time over the "
        "state-vector form's least, also where another formulation is cheaper.\n",
        f"| circuit | n | L | batch | µs | {' | '.join(TITLES[n] for n in names)} | ÷ floor | form | ÷ state v. |",
        "| --- | ---: | ---: | ---: | ---: |" + " ---: |" * len(names) + " ---: | --- | ---: |",
    ]
    for row in rows:
        micro = [f"{row.seconds(mode) / row.batch * 1e6:.3g}" for mode in ("both", "forward")]
        cells = [_ratio(row, name) for name in names]
        floors = [f"{over_floor(row, mode, limits):.1f}" for mode in ("both", "forward")]
        dense = [f"{over_state_vector(row, mode, limits):.1f}" for mode in ("both", "forward")]
        formulation = operations(row.ansatz, row.n, row.layers, True).formulation
        lines.append(
            f"| {row.ansatz} | {row.n} | {row.layers} | {row.batch} | {micro[0]} ({micro[1]}) | {' | '.join(cells)} | "
            f"{floors[0]} ({floors[1]}) | {formulation} | {dense[0]} ({dense[1]}) |"
        )
    return lines


def _ratio(row: Row, name: str) -> str:
    both, forward = row.ratio(name, "both"), row.ratio(name, "forward")
    if both is None or forward is None:
        return "–"
    text = f"{'~' if row.contenders[name]['samples'] < row.batch else ''}{_three(both)} ({_three(forward)})"
    fastest = row.fastest("both")
    return f"**{text}**" if fastest is not None and fastest[0] == name else text


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _left_out(rows: list[Row]) -> list[str]:
    reasons: dict[tuple[str, str], int] = {}
    for row in rows:
        for name, entry in row.contenders.items():
            if "reason" in entry:
                key = TITLES[name], entry["reason"]
                reasons[key] = reasons.get(key, 0) + 1
    lines = [f"- {name}, {count} of {len(rows)} points: {reason}" for (name, reason), count in sorted(reasons.items())]
    return ["\nNot run:\n", *lines] if lines else []


def _overhead(results: dict[str, Any]) -> list[str]:
    if not results.get("overhead"):
        return []
    lines = [
        "\n## Call overhead\n",
        "n = 4, L = 1, one thread, CPU µs. The samples' share is 128 times the cost of one more sample, taken from "
        "batch 128 to 4096.\n",
        "| circuit | mode | 1 sample | 128 samples | of these the samples | beside them |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for e in results["overhead"]:
        values = " | ".join(f"{e[k] * 1e6:.1f}" for k in ("one", "call", "samples", "beside"))
        lines.append(f"| {e['ansatz']} | {e['mode']} | {values} |")
    return lines


def _memory(results: dict[str, Any]) -> list[str]:
    if not results.get("memory"):
        return []
    batches = sorted({b for e in results["memory"] for b in e["mib"]}, key=int)
    lines = [
        "\n## Memory of forward and backward\n",
        "MiB by which the peak resident memory of a fresh process grows beyond that of a call of 16 samples; "
        "rotation_cnot_ring, n = 8, L = 2, one thread; inputs, outputs and gradients included.\n",
        f"| contender | {' | '.join(f'batch {b}' for b in batches)} |",
        "| --- |" + " ---: |" * len(batches),
    ]
    for entry in results["memory"]:
        cells = [_mib(entry["mib"].get(b)) for b in batches]
        lines.append(f"| {TITLES[entry['contender']]} | {' | '.join(cells)} |")
    return lines


def _mib(value: float | str | None) -> str:
    return "–" if value is None else value if isinstance(value, str) else f"{value:.0f}"


def _accuracy(rows: list[Row]) -> list[str]:
    worst: dict[str, dict[str, float]] = {}
    for row in rows:
        for name, entry in row.contenders.items():
            for what, value in entry.get("errors", {}).items():
                found = worst.setdefault(name, {})
                found[what] = max(value, found.get(what, 0.0))
    kinds = ("outputs", "inputs", "weights")
    lines = [
        "\n## Largest error against the dense reference\n",
        "| contender | outputs | input gradients | weight gradients (relative) |",
        "| --- | ---: | ---: | ---: |",
    ]
    return lines + [
        f"| {TITLES[name]} | {' | '.join(f'{e[kind]:.0e}' for kind in kinds)} |" for name, e in worst.items()
    ]


def _bytes(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size >> 10} KiB"


def _plots(folder: Path, rows: list[Row]) -> Iterable[tuple[str, str]]:
    import matplotlib

    matplotlib.use("Agg")
    if not rows:
        return []
    first = [row for row in rows if row.threads == min(r.threads for r in rows)]
    small = [row for row in first if row.n < LARGE]
    layers = max({row.layers for row in first if row.n >= LARGE} or {row.layers for row in first})
    made = []
    if small:
        made.append(("Cost per sample against batch", _by_batch(folder, small)))
    made.append(("Cost per sample against qubits", _by_qubits(folder, first, layers)))
    if small:
        for threads in sorted({row.threads for row in rows}):
            part = [row for row in rows if row.threads == threads and row.n < LARGE]
            if part:
                made.append((f"Fastest peer over qpeft, threads: {threads}", _heat_map(folder, part, threads)))
    return made


def _by_batch(folder: Path, rows: list[Row]) -> str:
    from matplotlib import pyplot

    ansaetze = sorted({row.ansatz for row in rows})
    layers = 2 if any(row.layers == 2 for row in rows) else rows[0].layers
    figure, axes = pyplot.subplots(1, len(ansaetze), figsize=(5.5 * len(ansaetze), 4.2), sharey=True, squeeze=False)
    for axis, ansatz in zip(axes[0], ansaetze, strict=True):
        part = [row for row in rows if row.ansatz == ansatz and row.layers == layers]
        for place, n in enumerate(sorted({row.n for row in part})):
            line = [row for row in part if row.n == n]
            batches = [row.batch for row in line]
            axis.plot(batches, [_micro(row, OURS) for row in line], "o-", color=f"C{place}", label=f"n = {n}")
            peers = [(row.batch, _micro(row, best[0])) for row in line if (best := row.fastest("both"))]
            if peers:
                axis.plot(*zip(*peers, strict=True), "x:", color=f"C{place}")
        axis.set(xscale="log", yscale="log", xlabel="batch", title=f"{ansatz}, L = {layers}")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("µs per sample, forward + backward")
    axes[0][0].legend(title="solid: qpeft\ndotted: fastest peer", fontsize=8, title_fontsize=8)
    return _save(figure, folder, "cost-by-batch.png")


def _by_qubits(folder: Path, rows: list[Row], layers: int) -> str:
    from matplotlib import pyplot

    ansaetze = sorted({row.ansatz for row in rows})
    figure, axes = pyplot.subplots(1, len(ansaetze), figsize=(5.5 * len(ansaetze), 4.2), sharey=True, squeeze=False)
    for axis, ansatz in zip(axes[0], ansaetze, strict=True):
        part = [row for row in rows if row.ansatz == ansatz and row.layers == layers]
        for name in TITLES:
            best: dict[int, float] = {}
            for row in part:
                if "rounds" in row.contenders.get(name, {}):
                    best[row.n] = min(_micro(row, name), best.get(row.n, math.inf))
            if best:
                style = {"color": "black", "lw": 2} if name == OURS else {"lw": 1, "alpha": 0.8}
                axis.plot(list(best), list(best.values()), "o-", ms=3, label=TITLES[name], **style)
        axis.set(yscale="log", xlabel="qubits", title=f"{ansatz}, L = {layers}, best batch")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("µs per sample, forward + backward")
    axes[0][0].legend(fontsize=7)
    return _save(figure, folder, "cost-by-qubits.png")


def _heat_map(folder: Path, rows: list[Row], threads: int) -> str:
    from matplotlib import pyplot
    from matplotlib.colors import LogNorm

    ansaetze = sorted({row.ansatz for row in rows})
    across = sorted({(row.layers, row.batch) for row in rows})
    down = sorted({row.n for row in rows})
    width = 1.5 + 0.62 * len(across)
    figure, axes = pyplot.subplots(
        len(ansaetze), 1, figsize=(max(5, width), len(ansaetze) * (1.3 + 0.45 * len(down))), squeeze=False
    )
    for axis, ansatz in zip(axes[:, 0], ansaetze, strict=True):
        values = [[math.nan] * len(across) for _ in down]
        for row in rows:
            best = row.fastest("both")
            if row.ansatz == ansatz and best is not None:
                i, j = down.index(row.n), across.index((row.layers, row.batch))
                values[i][j] = best[1]
                axis.text(j, i, f"{best[1]:.0f}\n{best[0][:4]}", ha="center", va="center", fontsize=7)
        axis.imshow(values, norm=LogNorm(1, 300), cmap="YlGn", aspect="auto")
        axis.set_xticks(range(len(across)), [f"L={layer}\n{batch}" for layer, batch in across], fontsize=7)
        axis.set_yticks(range(len(down)), [f"n={n}" for n in down])
        axis.set_title(f"{ansatz}: fastest peer ÷ qpeft, {threads} thread{'s' * (threads > 1)}", fontsize=9)
    return _save(figure, folder, f"ratios-{threads}.png")


def _micro(row: Row, name: str) -> float:
    return row.seconds("both", name) / row.batch * 1e6


def _save(figure: Any, folder: Path, name: str) -> str:
    from matplotlib import pyplot

    figure.tight_layout()
    figure.savefig(folder / name, dpi=130)
    pyplot.close(figure)
    return name
