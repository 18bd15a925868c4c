"""`qpeft qpu layout`: where copies of a circuit stand on a chip, as a table, a map and a picture."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from qpeft.cli.console import Steps, print_json, results
from qpeft.errors import InputError

ANSATZE = ("qtha", "chain")
PICTURES = (".png", ".svg", ".pdf")
#: what one batch needs is said for so many samples
SAMPLES = 1000


def run(
    chip: str,
    qubits: int,
    layers: int,
    ansatz: str,
    buffer: int,
    min_fidelity: float,
    solver: str,
    output: Path | None,
    as_json: bool,
) -> None:
    if ansatz not in ANSATZE:
        raise InputError(f"there is no ansatz {ansatz!r}: choose one of {', '.join(ANSATZE)}")
    if output is not None and output.suffix.lower() not in PICTURES:
        raise InputError(f"{output} names no picture: let it end in {', '.join(PICTURES)}")
    if output is not None and not output.parent.is_dir():
        raise InputError(f"there is no folder {output.parent}: make it first")
    with Steps() as say:
        say("starting")
        from qpeft.chips import plan_layout
        from qpeft.chips.chip_map import draw_map
        from qpeft.chips.layout_plot import plot_layout
        from qpeft.circuits import qtha_block, simplified_two_design
        from qpeft.qpu.chips import open_chip

        snapshot = open_chip(chip)
        title = f"{snapshot.name}: {ansatz}, {layers} layer{'s' if layers > 1 else ''}"
        circuit = (qtha_block if ansatz == "qtha" else simplified_two_design)(qubits, layers)
        say("choosing places")
        layout = plan_layout(circuit, snapshot, buffer=buffer, min_fidelity=min_fidelity, solver=solver)
        if output is not None:
            say("drawing")
            plot_layout(layout, snapshot, output, title)
    report = describe(layout, snapshot)
    if as_json:
        print_json({"chip": snapshot.name, "ansatz": ansatz, "layers": layers, **report})
        return
    results.print(_table(report, title))
    results.print(_coloured(draw_map(layout, snapshot)))
    jobs = report["circuits_for_1000_samples"]
    results.print(
        f"\n{layout.n_blocks} circuits run at once: {SAMPLES:,} samples need {jobs:,} packed circuits, "
        f"{SAMPLES / jobs:.1f} times fewer. {len(layout.neighbours)} couplers lie between blocks."
        + (" No better layout exists." if layout.proven else "")
    )
    if output is not None:
        results.print(f"map: {output}", soft_wrap=True)


def describe(layout: Any, snapshot: Any) -> dict[str, Any]:
    """Everything the command shows, as plain data."""
    from qpeft.chips import metrics

    blocks = []
    for number, (template, score) in enumerate(zip(layout.templates, layout.scores, strict=True), start=1):
        measured = metrics(template, snapshot)
        blocks.append(
            {
                "block": number,
                "qubits": list(template.qubits),
                "cz": measured.n_cz,
                "pulses": measured.n_pulses,
                "duration_ns": measured.duration_ns,
                "expected_fidelity": round(score, 6),
            }
        )
    return {
        "snapshot": layout.snapshot,
        "buffer": layout.buffer,
        "blocks": blocks,
        "circuits_for_1000_samples": layout.n_circuits(SAMPLES),
        "couplers_between_blocks": len(layout.neighbours),
        "proven": layout.proven,
    }


def _table(report: dict[str, Any], title: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("block", justify="right")
    table.add_column("qubits")
    for name in ("CZ", "duration", "expected fidelity"):
        table.add_column(name, justify="right")
    for block in report["blocks"]:
        table.add_row(
            Text(str(block["block"]), style=_style(block["block"])),
            " ".join(map(str, block["qubits"])),
            str(block["cz"]),
            f"{block['duration_ns']:.0f} ns",
            f"{block['expected_fidelity']:.3f}",
        )
    return table


def _coloured(drawing: str) -> Text:
    """The text map with each block's number in a colour of its own; the labels of rows stay plain."""
    text = Text(drawing)
    for match in re.finditer(r"(?<![q\d])\d+", drawing):
        text.stylize(_style(int(match[0])), *match.span())
    return text


def _style(block: int) -> str:
    colours = ("cyan", "yellow", "green", "magenta", "bright_blue", "red", "bright_green", "bright_magenta")
    return f"bold {colours[(block - 1) % len(colours)]}"
