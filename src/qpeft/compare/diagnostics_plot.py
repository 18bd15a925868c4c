"""The diagnostics of a run in one picture: a row a measure, over the steps (left) and over the depth (right).

Left: thick line, the median of the decoder layers; band, from the lowest to the highest. Right: every decoder layer at
the last measurement, and in grey at the first that has all measures. Orange: the largest rank there can be, and the
gradient variance of random circuits with as many qubits.
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
    "circuit_r2": "linear fit of the\ncircuit, R²",
    "effective_rank": "effective rank\nof the update",
    "circuit_gradient_variance": "gradient variance\nof the circuit",
    "loss_gradient_variance": "gradient variance\nof the loss",
}
_LOGARITHMIC = ("circuit_gradient_variance", "loss_gradient_variance")
_GREY, _BLUE, _ORANGE = "#9a9a9a", COLOURS[1], COLOURS[2]


def plot_diagnostics(lines: Sequence[dict[str, Any]], path: Path) -> Path | None:
    """Draw what :class:`qpeft.training.diagnostics.DiagnosticsCallback` wrote.

    Args:
        lines: Metric lines of a run; those without diagnostics are left out.
        path: The PNG file.

    Returns:
        The file, or ``None`` where no line has a measure to draw.
    """
    records = [{**line["diagnostics"], "step": line["step"]} for line in lines if line.get("diagnostics")]
    shown = [name for name in TITLES if any(_points(record, name) for record in records)]
    if not shown:
        return None
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure, panels = plt.subplots(
        len(shown), 2, figsize=(8.4, 0.7 + 1.65 * len(shown)), dpi=160, sharex="col", sharey="row", squeeze=False,
        layout=ConstrainedLayoutEngine(h_pad=0.06, w_pad=0.06),
    )  # fmt: skip
    complete = [record for record in records if all(_points(record, name) for name in shown)] or records
    for (over_steps, over_depth), name in zip(panels, shown, strict=True):
        _draw_steps(over_steps, records, name)
        for record, colour, width in ((complete[0], _GREY, 1.2), (complete[-1], _BLUE, 2.0)):
            if record is complete[-1] or len(complete) > 1:
                _draw_depth(over_depth, record, name, colour, width)
        over_steps.set_ylabel(TITLES[name], fontsize=9)
        _draw_limits((over_steps, over_depth), records[-1], name)
        for axes in (over_steps, over_depth):
            for side in ("top", "right"):
                axes.spines[side].set_visible(False)
            axes.grid(axis="y", color="#e3e3e3", linewidth=0.8)
            axes.set_axisbelow(True)
    figure.align_ylabels(panels[:, 0])
    panels[0][0].set_title("median and range of the layers", fontsize=9, loc="left")
    panels[0][1].legend(
        loc="lower left", bbox_to_anchor=(-0.02, 0.99), ncols=2, frameon=False, fontsize=9, borderpad=0.1
    )
    panels[-1][0].set_xlabel("step")
    panels[-1][1].set_xlabel("decoder layer")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path


def _points(record: dict[str, Any], name: str) -> dict[int, float]:
    """Place of a layer -> what was measured there; without zeros where the axis is logarithmic."""
    lowest = 0.0 if name in _LOGARITHMIC else float("-inf")
    values = record.get(name, [])
    return {place: value for place, value in enumerate(values) if value is not None and value > lowest}


def _draw_steps(axes: Any, records: Sequence[dict[str, Any]], name: str) -> None:
    found = {record["step"]: list(_points(record, name).values()) for record in records if _points(record, name)}
    low, high, middle = ([choose(values) for values in found.values()] for choose in (min, max, median))
    axes.fill_between(list(found), low, high, color=_BLUE, alpha=0.18, linewidth=0)
    axes.plot(list(found), middle, color=_BLUE, linewidth=2.0, marker="o", markersize=3)
    axes.xaxis.get_major_locator().set_params(integer=True)


def _draw_depth(axes: Any, record: dict[str, Any], name: str, colour: str, width: float) -> None:
    points = _points(record, name)
    axes.plot(list(points), list(points.values()), color=colour, linewidth=width, marker="o", markersize=3,
              label=f"step {record['step']}")  # fmt: skip
    labels = record["layers"]
    stride = max(1, -(-len(labels) // 10))
    axes.set_xticks(range(0, len(labels), stride), labels[::stride])


def _draw_limits(row: tuple[Any, Any], record: dict[str, Any], name: str) -> None:
    """The range that a measure can have, and what to hold it against."""
    axes = row[0]
    if name in _LOGARITHMIC:
        axes.set_yscale("log")
    if name == "circuit_share":
        axes.set_ylim(0, 1)
    elif name == "circuit_r2":
        axes.set_ylim(min(0.0, axes.get_ylim()[0]), 1.02)
    elif name == "effective_rank":
        axes.set_ylim(1 - 0.02 * record["rank"], 1.02 * record["rank"])
        _mark(row, record["rank"], "largest possible")
    elif name == "circuit_gradient_variance":
        plateau = two_design_variance(record["n_qubits"])
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, plateau) / 4, max(high, plateau) * 2)
        _mark(row, plateau, f"random circuits, {record['n_qubits']} qubits")


def _mark(row: tuple[Any, Any], height: float, text: str) -> None:
    for axes in row:
        axes.axhline(height, color=_ORANGE, linewidth=1.2, linestyle="--")
    row[0].annotate(
        text, (0.02, height), xycoords=("axes fraction", "data"), xytext=(0, -4), textcoords="offset points",
        va="top", fontsize=8, color=_ORANGE,
    )  # fmt: skip
