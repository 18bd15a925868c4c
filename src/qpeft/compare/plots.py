"""Pictures of a comparison: losses over steps, accuracies with their intervals, measured against ideal values."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qpeft.compare.arms import Arm

#: told apart by colour-blind readers and in grey print
COLOURS = ("#7a7a7a", "#3b4cc0", "#d95f02", "#1b9e77", "#a6761d", "#e7298a")


def new_figure(width: float, height: float) -> tuple[Any, Any, Any]:
    """`(pyplot, figure, axes)`, drawn without a screen; sizes in inches."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(width, height), dpi=160, layout="constrained")
    tidy(axes)
    return plt, figure, axes


def tidy(axes: Any, grid: str = "y") -> None:
    """A light grid behind the data, along "x", "y" or "both", and no frame above and to the right."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(axis=grid, color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)


def loss_axis(axes: Any) -> None:
    """A logarithmic y axis with plain numbers at 1, 2, 3, 5 and their tenths: a loss seldom spans two decades."""
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def plot_losses(arms: Sequence[Arm], path: Path) -> Path:
    """Training loss of every trained arm (thin: each step; thick: running mean), validation loss as points."""
    plt, figure, axes = new_figure(7.2, 4.0)
    for arm, colour in zip(arms, itertools.cycle(COLOURS)):
        if not arm.losses:
            continue
        steps, losses = zip(*arm.losses, strict=True)
        axes.plot(steps, losses, color=colour, alpha=0.25, linewidth=0.9)
        axes.plot(steps, running_mean(losses), color=colour, linewidth=2.0, label=arm.name)
        if arm.eval_losses:
            axes.plot(*zip(*arm.eval_losses, strict=True), "o", color=colour, markersize=6, markeredgecolor="white",
                      label=f"{arm.name}, validation")  # fmt: skip
    loss_axis(axes)
    axes.set_xlabel("step")
    axes.set_ylabel("loss per answer token")
    _legend(figure, axes)
    return save_figure(plt, figure, path)


def plot_accuracy(arms: Sequence[Arm], path: Path, titles: dict[str, str]) -> Path:
    """A group of bars per measure, a bar per arm, whiskers for the 95 % intervals. `titles` chooses the measures.

    What an arm was not measured by leaves a gap.
    """
    plt, figure, axes = new_figure(7.2, 4.0)
    width = 0.8 / len(arms)
    for place, (arm, colour) in enumerate(zip(arms, itertools.cycle(COLOURS))):
        for group, key in enumerate(titles):
            share = arm.accuracy.get(key)
            if share is None:
                continue
            x = group + (place - (len(arms) - 1) / 2) * width
            axes.bar(x, 100 * share.value, width * 0.92, color=colour, label=arm.name if group == 0 else None)
            axes.errorbar(
                x, 100 * share.value, [[100 * (share.value - share.low)], [100 * (share.high - share.value)]],
                color="black", capsize=4, linewidth=1.2,
            )  # fmt: skip
            axes.text(x, 100 * share.high + 1.5, f"{100 * share.value:.0f}", ha="center", fontsize=9)
    axes.set_xticks(range(len(titles)), list(titles.values()))
    axes.set_ylabel("% of problems (95 % interval)")
    axes.set_ylim(0, 109)
    axes.set_yticks(range(0, 101, 20))
    _legend(figure, axes)
    return save_figure(plt, figure, path)


def plot_fidelity(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path) -> Path:
    """Measured against ideal expectations, a panel for each of the named series; the grey line is a perfect chip."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        1, len(series), figsize=(4.2 * len(series), 4.4), dpi=160, layout="constrained", sharey=True, squeeze=False
    )
    for axes, (name, (ideal, measured)), colour in zip(panels[0], series.items(), itertools.cycle(COLOURS[1:])):
        axes.plot((-1, 1), (-1, 1), color="#9a9a9a", linewidth=1.2)
        axes.plot(ideal, measured, ".", color=colour, markersize=3, alpha=0.5)
        axes.set(xlim=(-1.05, 1.05), ylim=(-1.25, 1.25), xlabel="ideal <Z>", title=name)
        axes.title.set_fontsize(10)
        tidy(axes, grid="both")
    panels[0][0].set_ylabel("measured <Z>")
    return save_figure(plt, figure, path)


def _legend(figure: Any, axes: Any) -> None:
    """Above the plot, where it can hide nothing; two columns where the names are long."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        columns = len(labels) if len(labels) < 4 and sum(map(len, labels)) < 75 else 2
        figure.legend(handles, labels, loc="outside upper left", ncols=columns, frameon=False)


def running_mean(values: Sequence[float], window: int = 9) -> list[float]:
    """Mean of each value and those before it, `window` at most."""
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / len(values[max(0, i - window + 1) : i + 1])
        for i in range(len(values))
    ]


def save_figure(plt: Any, figure: Any, path: Path) -> Path:
    """Write the picture, its folder too, and free its memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
    return path
