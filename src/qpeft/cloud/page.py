"""The status page of the virtual cloud: one HTML document without scripts or anything from elsewhere."""

from __future__ import annotations

import time
from html import escape

from qpeft.chips import ChipSnapshot
from qpeft.chips.chip_map import positions
from qpeft.cloud.service import VirtualCloud
from qpeft.cloud.tasks import COMPUTING, FAILED, FINISHED, QUEUING, WAITING, Task

_SHOWN = 50
_STEP = 34  # pixels from one qubit to the next
_WORDS = {WAITING: "waiting", QUEUING: "queuing", COMPUTING: "computing", FINISHED: "finished", FAILED: "failed"}
_BEST, _WORST = 0.99, 0.90  # CZ fidelities at the ends of the colour scale

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --dim: #777; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: 0; } h2 { font-size: 1.05rem; margin-top: 2rem; }
p.dim, td.dim { color: var(--dim); } code { font-size: .9em; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; }
.finished { color: #2a8a4a; } .failed { color: #c0392b; } .computing { color: #2a6fc0; font-weight: 600; }
svg text { font: 9px system-ui, sans-serif; fill: #fff; text-anchor: middle; dominant-baseline: central; }
.chips { display: flex; flex-wrap: wrap; gap: 2rem; }
"""


def render_page(cloud: VirtualCloud) -> str:
    """The page as it is now; it asks to be loaded again every 3 seconds."""
    tasks = cloud.tasks.last(_SHOWN)
    chips = "".join(_chip(name, chip.snapshot) for name, chip in cloud.chips.items())
    rows = "".join(_row(task) for task in tasks)
    none = '<tr><td class="dim" colspan="8">Nothing has been handed in yet.</td></tr>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Virtual Wukong</title><style>{_STYLE}</style></head><body>"
        "<h1>Virtual Wukong</h1>"
        '<p class="dim">A simulated quantum cloud on this machine. Nothing here ran on a real chip.</p>'
        f"<h2>Tasks</h2><p>{_summary(tasks, cloud.speed)}</p>"
        "<table><thead><tr><th>Task</th><th>Chip</th><th>Batch</th><th class=number>Programs</th>"
        "<th class=number>Shots</th><th>State</th><th class=number>Seconds</th><th>Message</th></tr></thead>"
        f"<tbody>{rows or none}</tbody></table>"
        f'<h2>Chips</h2><div class="chips">{chips}</div>'
        "</body></html>"
    )


def _summary(tasks: list[Task], speed: float) -> str:
    open_tasks = sum(task.state in (WAITING, QUEUING, COMPUTING) for task in tasks)
    pace = "as fast as it simulates" if speed == float("inf") else f"{speed:g} times as fast as the real service"
    many = f"newest {len(tasks)}" if len(tasks) == _SHOWN else f"{len(tasks)}"
    return f"{many} shown, {open_tasks} open; the queue runs {pace}."


def _row(task: Task) -> str:
    word = _WORDS[task.state]
    seconds = "" if task.started is None else f"{(task.ended or time.time()) - task.started:.2f}"
    return (
        f"<tr><td><code>{escape(task.id[:8])}</code></td><td>{escape(task.chip)}</td>"
        f"<td class=dim>{escape(task.batch[:24])}</td><td class=number>{task.n_programs}</td>"
        f"<td class=number>{task.shots}</td><td class={word}>{word}</td><td class=number>{seconds}</td>"
        f"<td class=dim>{escape(task.message[:200])}</td></tr>"
    )


def _chip(name: str, snapshot: ChipSnapshot) -> str:
    qubits = f"{len(snapshot.live_qubits)} of {len(snapshot.qubits)} qubits"
    couplers = f"{len(snapshot.live_couplers)} of {len(snapshot.couplers)} couplers"
    title = f"<b>{escape(name)}</b> ({escape(snapshot.name)}): {qubits}, {couplers}"
    return f"<figure><figcaption>{title}</figcaption>{_map(snapshot)}</figure>"


def _map(snapshot: ChipSnapshot) -> str:
    """The chip as SVG: couplers from red (worst) to green (best), grey where dead; unavailable qubits are hollow."""
    spots = positions(snapshot)
    left, top = min(x for x, _ in spots.values()), min(y for _, y in spots.values())
    spots = {q: ((x - left + 0.6) * _STEP, (y - top + 0.6) * _STEP) for q, (x, y) in spots.items()}
    width, height = (max(spot[i] for spot in spots.values()) + 0.6 * _STEP for i in (0, 1))
    usable = {coupler.qubits for coupler in snapshot.live_couplers}
    live = set(snapshot.live_qubits)
    shapes = []
    for coupler in snapshot.couplers:
        (x1, y1), (x2, y2) = (spots[qubit] for qubit in coupler.qubits)
        share = min(max((coupler.fidelity - _WORST) / (_BEST - _WORST), 0.0), 1.0)
        look = f'stroke="hsl({120 * share:.0f} 65% 45%)" stroke-width="4"'
        if coupler.qubits not in usable:
            look = 'stroke="#8886" stroke-width="1.5" stroke-dasharray="3 3"'
        shapes.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" {look}>'
            f"<title>{coupler.qubits[0]}-{coupler.qubits[1]}: CZ {coupler.fidelity:.4f}</title></line>"
        )
    for qubit in snapshot.qubits:
        x, y = spots[qubit.index]
        fill = "#34567f" if qubit.index in live else "#8886"
        told = f"{qubit.index}: gates {qubit.fidelity:.4f}, readout {1 - (qubit.p10 + qubit.p01) / 2:.3f}"
        shapes.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="10" fill="{fill}"><title>{told}</title></circle>'
            f'<text x="{x:.1f}" y="{y:.1f}">{qubit.index}</text>'
        )
    return f'<svg width="{width:.0f}" height="{height:.0f}" role="img" aria-label="chip map">{"".join(shapes)}</svg>'
