"""The diagnostics of a run in one picture: a row a measure, over the steps (left) and over the depth (right).

Left: thick line, the median over the decoder layers; band, from the lowest to the highest. Right: every decoder layer
at the first (grey) and the last measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from qpeft.compare.plots import COLOURS
from qpeft.training.diagnostics_measures import two_design_variance

#: measure -> its name on the axis
TITLES = {
    "circuit_share": "circuit's share\nof the update",
    "circuit_r2": "circuit is linear\n(held-out R²)",
    "effective_rank": "effective rank\nof the update",
    "circuit_gradient_variance": "gradient variance\nof the circuit",
    "loss_gradient_variance": "gradient variance\nof the loss",
}
_LOGARITHMIC = ("circuit_gradient_variance", "loss_gradient_variance")
_GREY = "#9a9a9a"


def plot_diagnostics(lines: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Draw what :class:`qpeft.training.diagnostics.DiagnosticsCallback` wrote.

    Args:
        lines: Metric lines of a run; those without diagnostics are left out.
        path: The PNG file.

    Returns:
        The file, or ``None`` where no line has a measure to draw.
    """
    records = [line for line in lines if line.get("diagnostics")]
    shown = [name for name in TITLES if any(_known(record["diagnostics"].get(name)) for record in records)]
    if not shown:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure, panels = plt.subplots(
        len(shown), 2, figsize=(8.4, 0.7 + 1.65 * len(shown)), dpi=160, sharex="col", sharey="row",
        squeeze=False, layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06),
    )  # fmt: skip
    for (over_steps, over_depth), name in zip(panels, shown, strict=True):
        _draw_steps(over_steps, records, name)
        _draw_depth(over_depth, records, name)
        over_steps.set_ylabel(TITLES[name], fontsize=9)
        _draw_limits(over_steps, over_depth, records, name)
        for axes in (over_steps, over_depth):
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
            axes.set_axisbelow(True)
    panels[0][0].set_title("over the steps: median of the layers, band lowest to highest", fontsize=9, loc="left")
    panels[0][1].set_title("over the depth", fontsize=9, loc="left")
    if len(records) > 1:
        panels[0][1].legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False, fontsize=8, borderpad=0.1
        )
    panels[-1][0].set_xlabel("step")
    panels[-1][1].set_xlabel("decoder layer")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path


def _known(values: Sequence[float | None] | None) -> list[float]:
    return [value for value in values or () if value is not None]


def _draw_steps(axes: Any, records: Sequence[dict[str, Any]], name: str) -> None:
    points = [(record["step"], _known(record["diagnostics"].get(name))) for record in records]
    steps = [step for step, values in points if values]
    layers = [values for _, values in points if values]
    colour = COLOURS[1]
    axes.fill_between(steps, [min(v) for v in layers], [max(v) for v in layers], color=colour, alpha=0.18, linewidth=0)
    axes.plot(steps, [median(v) for v in layers], color=colour, linewidth=2.0, marker="o", markersize=3)


def _draw_depth(axes: Any, records: Sequence[dict[str, Any]], name: str) -> None:
    chosen = [record for record in records if _known(record["diagnostics"].get(name))]
    styles = [(chosen[-1], COLOURS[1], 2.0)]
    if len(chosen) > 1:
        styles.insert(0, (chosen[0], _GREY, 1.2))
    for record, colour, width in styles:
        values = record["diagnostics"][name]
        places = [place for place, value in enumerate(values) if value is not None]
        axes.plot(places, [values[place] for place in places], color=colour, linewidth=width, marker="o", markersize=3,
                  label=f"step {record['step']}")  # fmt: skip
    labels = chosen[-1]["diagnostics"]["layers"]
    stride = max(1, -(-len(labels) // 10))
    axes.set_xticks(range(0, len(labels), stride), labels[::stride])


def _draw_limits(over_steps: Any, over_depth: Any, records: Sequence[dict[str, Any]], name: str) -> None:
    """The range a measure can have, or what to hold it against."""
    if name in _LOGARITHMIC:
        over_steps.set_yscale("log")
    if name == "circuit_share":
        over_steps.set_ylim(0, 1)
    elif name == "effective_rank":
        over_steps.set_ylim(bottom=1)
    elif name == "circuit_r2":
        over_steps.set_ylim(top=1.02)
    elif name == "circuit_gradient_variance":
        n_qubits = records[-1]["diagnostics"]["n_qubits"]
        plateau = two_design_variance(n_qubits)
        for axes in (over_steps, over_depth):
            axes.axhline(plateau, color=COLOURS[2], linewidth=1.2, linestyle="--")
        over_depth.annotate(
            f"random circuits of {n_qubits} qubits", (1.0, plateau), xycoords=("axes fraction", "data"), xytext=(0, 3),
            textcoords="offset points", ha="right", fontsize=8, color=COLOURS[2],
        )  # fmt: skip
