"""Pictures of a grid: losses over steps, quality against size, learning rates, differences, trained numbers.

Every picture is of one place (a base model and a task). What an arm lacks leaves a gap; a picture of which nothing
could be drawn is left out (`None`). Names stand beside the axes, so that they hide no data whatever they are.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpeft.compare.plots import COLOURS, loss_axis, new_figure, running_mean, save_figure, tidy
from qpeft.compare.results import LOWER_IS_BETTER, ArmInfo, CellResult, chosen_rate
from qpeft.compare.statistics import Comparison, is_share

GREY, BLUE, ORANGE, GREEN, BROWN, PINK = COLOURS
#: kind of an arm -> colour, marker and name
KINDS = {
    "adapter": (BLUE, "o", "the adapter"),
    "reference": (ORANGE, "s", "LoRA at its rank"),
    "matched": (GREEN, "^", "other methods"),
    "control": (BROWN, "D", "adapter, a part changed"),
    "evaluation": (PINK, "v", "evaluated otherwise"),
    "base": (GREY, "_", "frozen base"),
}
#: of the lines of a panel, where the adapter has its own
_LINES = (ORANGE, GREEN, PINK, BROWN, "#56b4e9", "#7570b3")
_DASHES = ("-", "--", ":", "-.")
_WIDTH = 9.2


def plain(text: str, longest: int = 46) -> str:
    """A label on one line, shortened, that matplotlib takes for text (no formulas, no hidden entries)."""
    text = (
        textwrap.shorten(" ".join(text.split()).replace("\x00", ""), longest, placeholder="…") or text[: longest - 1]
    )
    return ("\u200a" + text if text.startswith("_") else text).replace("$", r"\$")


def plot_training(runs: Sequence[tuple[ArmInfo, Sequence[CellResult]]], path: Path) -> Path | None:
    """Training loss over the steps: running mean over seeds, and a band from the lowest to the highest seed.

    The adapter, LoRA and the matched methods share the upper panel; the adapter and its controls the lower one.
    """
    drawn = [(arm, curve) for arm, cells in runs if (curve := _curves(cells))]
    if not drawn:
        return None
    plt, figure, panels = _panels([arm for arm, _ in drawn])
    for axes, members in panels:
        for arm, (colour, dashes) in _line_styles(members):
            steps, seeds = next(curve for other, curve in drawn if other is arm)
            columns = list(zip(*seeds, strict=True))
            middle = [sum(column) / len(column) for column in columns]
            axes.plot(steps, middle, color=colour, linestyle=dashes, linewidth=1.8, label=plain(arm.label, 40))
            if len(seeds) > 1:
                axes.fill_between(
                    steps, list(map(min, columns)), list(map(max, columns)), color=colour, alpha=0.15, lw=0
                )
        loss_axis(axes)
        axes.set_ylabel("training loss")
        _legend_beside(axes)
    _fine_ticks([axes for axes, _ in panels])
    panels[-1][0].set_xlabel("step")
    return save_figure(plt, figure, path)


def plot_rates(sweeps: Sequence[tuple[ArmInfo, Sequence[CellResult]]], path: Path) -> Path | None:
    """Validation loss against learning rate; rings: the chosen rates, crosses at the top: a seed diverged there."""
    drawn = [(arm, cells) for arm, cells in sweeps if any(cell.learning_rate > 0 for cell in cells)]
    if not drawn:
        return None
    plt, figure, panels = _panels([arm for arm, _ in drawn], share_y=False)
    for axes, members in panels:
        rows: dict[float, int] = {}  # rate -> how many crosses stand there
        axes.set_xscale("log")
        loss_axis(axes)
        for arm, (colour, dashes) in _line_styles(members):
            cells = next(cells for other, cells in drawn if other is arm)
            losses, diverged = _losses_by_rate(cells)
            axes.plot(
                list(losses), list(losses.values()), color=colour, linestyle=dashes, linewidth=1.6, marker="o",
                markersize=4, label=plain(arm.label, 40),
            )  # fmt: skip
            best = chosen_rate(cells)
            if best in losses:
                axes.plot(best, losses[best], "o", color=colour, markersize=11, fillstyle="none", markeredgewidth=1.6)
            for rate in diverged:
                rows[rate] = rows.get(rate, -1) + 1
                axes.annotate(
                    "×", (rate, 1), xycoords=("data", "axes fraction"), xytext=(0, -6 - 9 * rows[rate]),
                    textcoords="offset points", ha="center", va="center", color=colour, fontsize=12,
                    fontweight="bold", annotation_clip=False,
                )  # fmt: skip
                # an invisible point, so that the axis reaches there
                axes.plot(rate, min(losses.values(), default=1.0), linestyle="none")
        rates = sorted({cell.learning_rate for _, cells in drawn for cell in cells})
        if len(rates) < 10:
            axes.set_xticks(rates, [f"{rate:.3g}" for rate in rates])
            axes.set_xticks([], minor=True)
        _head_room(axes, (max(rows.values(), default=-1) + 1) * 9 + 8 if rows else 0)
        axes.set_ylabel("validation loss")
        _legend_beside(axes)
        _fine_ticks([axes])
    panels[-1][0].set_xlabel("learning rate")
    return save_figure(plt, figure, path)


def plot_quality(
    points: Sequence[tuple[ArmInfo, int, float, float, float]], path: Path, title: str, percent: bool
) -> Path | None:
    """Quality against trained numbers, with intervals; the frozen base is a line.

    Args:
        points: `(arm, trained numbers, value, low, high)`.
        path: The PNG file.
        title: Of the quality axis.
        percent: Whether values are shares, shown in percent.
    """
    if not points:
        return None
    plt, figure, axes = new_figure(_WIDTH, max(4.2, 1.2 + 0.19 * len(points)))
    scale = 100 if percent else 1
    for arm, count, value, low, high in points:
        colour, marker, _ = KINDS[arm.kind]
        value, low, high = scale * value, scale * low, scale * high
        if count == 0:
            axes.axhline(value, color=colour, linewidth=1.2, linestyle="--")
            continue
        axes.errorbar(
            count, value, [[value - low], [high - value]], color=colour, marker=marker, markersize=7, capsize=3,
            linewidth=1.2, fillstyle="none" if arm.kind == "evaluation" else "full", markeredgewidth=1.4,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.margins(x=0.08, y=0.06)
    axes.set_xlabel("trained numbers")
    axes.set_ylabel(title)
    _labels_beside(figure, axes, [(arm, count, scale * value) for arm, count, value, _, _ in points])
    kinds = [kind for kind in KINDS if any(arm.kind == kind for arm, *_ in points)]
    handles = [plt.Line2D([], [], color=KINDS[kind][0], marker=KINDS[kind][1], linestyle="") for kind in kinds]
    figure.legend(handles, [KINDS[kind][2] for kind in kinds], loc="outside upper left", ncols=6, frameon=False,
                  fontsize=8.5, handletextpad=0.2, columnspacing=1.2)  # fmt: skip
    return save_figure(plt, figure, path)


def plot_differences(groups: Sequence[tuple[str, Sequence[tuple[ArmInfo, Comparison]]]], path: Path) -> Path | None:
    """Forest plot: the adapter minus each other arm with 95 % intervals, a panel for each measure.

    Filled and coloured where the difference holds after Holm's correction, hollow where there is no interval.

    Args:
        groups: `(name of the measure, [(other arm, comparison), ...])`.
        path: The PNG file.
    """
    groups = [(name, rows) for name, rows in groups if rows]
    if not groups:
        return None
    plt, figure, panels = _stacked([0.9 + 0.24 * len(rows) for _, rows in groups], share=False, grid="x")
    for axes, (name, rows) in zip(panels, groups, strict=True):
        axes.axvline(0, color="black", linewidth=0.9)
        for row, (_, each) in enumerate(rows):
            scale = 100 if is_share(each.measure) else 1
            colour = {"first": BLUE, "second": ORANGE, None: GREY}[each.better]
            if each.low is not None and each.high is not None:
                axes.plot((scale * each.low, scale * each.high), (row, row), color=colour, linewidth=1.8)
            fill = "full" if each.low is not None else "none"
            axes.plot(scale * each.difference, row, "o", color=colour, markersize=5.5, fillstyle=fill)
            axes.annotate(str(each), (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8.5)
        axes.set_yticks(range(len(rows)), [plain(arm.label) for arm, _ in rows], fontsize=8.5)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        lower = rows[0][1].measure in LOWER_IS_BETTER
        side = "left" if lower else "right"
        axes.set_title(f"{name}: adapter minus other arm ({side}: the adapter is better)", fontsize=9.5, loc="left")
    texts = {BLUE: "adapter better", ORANGE: "adapter worse", GREY: "not told apart (Holm, 5 %)"}
    handles = [plt.Line2D([], [], color=colour, marker="o", linewidth=1.8) for colour in texts]
    figure.legend(handles, list(texts.values()), loc="outside upper left", ncols=3, frameon=False, fontsize=8.5)
    return save_figure(plt, figure, path)


def plot_counts(arms: Sequence[tuple[ArmInfo, int, int]], path: Path) -> Path | None:
    """Trained numbers of each arm, angles of circuits apart; `arms` holds `(arm, trained numbers, angles)`."""
    arms = [entry for entry in arms if entry[1] > 0]
    if not arms:
        return None
    plt, figure, axes = new_figure(_WIDTH, 1.1 + 0.3 * len(arms))
    tidy(axes, grid="x")
    axes.grid(axis="y", visible=False)
    rows = range(len(arms))
    others = [count - angles for _, count, angles in arms]
    axes.barh(rows, others, 0.7, color=[KINDS[arm.kind][0] for arm, *_ in arms], alpha=0.75)
    axes.barh(rows, [angles for *_, angles in arms], 0.7, left=others, color="black", label="angles of circuits")
    for row, (_, count, angles) in enumerate(arms):
        text = f"{count:,}" + (f" = {count - angles:,} + {angles:,} angles" if angles else "")
        axes.annotate(text, (count, row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_yticks(rows, [plain(arm.label) for arm, *_ in arms], fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(0, max(count for _, count, _ in arms) * 1.35)  # room for the text of the longest bar
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("trained numbers (black: angles of circuits)" if any(a for *_, a in arms) else "trained numbers")
    return save_figure(plt, figure, path)


def _panels(arms: Sequence[ArmInfo], share_y: bool = True) -> tuple[Any, Any, list[tuple[Any, list[ArmInfo]]]]:
    """Rivals above, the adapter with its controls below; one panel where there are no controls."""
    controls = [arm for arm in arms if arm.kind == "control"]
    groups = [[arm for arm in arms if arm.kind != "control"]]
    if controls:
        groups.append([arm for arm in arms if arm.kind == "adapter"] + controls)
    groups = [group for group in groups if group]
    plt, figure, panels = _stacked([max(3.0, 0.7 + 0.21 * len(group)) for group in groups], share_y)
    return plt, figure, list(zip(panels, groups, strict=True))


def _stacked(heights: Sequence[float], share: bool, grid: str = "y") -> tuple[Any, Any, list[Any]]:
    """Panels one above the other, with one y axis if asked."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(
        len(heights), 1, figsize=(_WIDTH, sum(heights)), dpi=160, layout="constrained", squeeze=False,
        sharey=share, height_ratios=heights,
    )  # fmt: skip
    for axes in panels[:, 0]:
        tidy(axes, grid)
    return plt, figure, list(panels[:, 0])


def _line_styles(arms: Sequence[ArmInfo]) -> list[tuple[ArmInfo, tuple[str, str]]]:
    styles = itertools.cycle((colour, dashes) for dashes in _DASHES for colour in _LINES)
    own = {"adapter": (BLUE, "-"), "base": (GREY, "--")}
    return [(arm, own.get(arm.kind) or next(styles)) for arm in arms]


def _curves(cells: Sequence[CellResult]) -> tuple[list[int], list[list[float]]] | None:
    """The steps that all seeds logged, and of each seed the running mean of its losses at these."""
    logs = [{step: loss for step, loss in cell.losses if math.isfinite(loss) and loss > 0} for cell in cells]
    logs = [log for log in logs if log]
    steps = sorted(set.intersection(*map(set, logs))) if logs else []
    window = max(1, len(steps) // 20)
    return (steps, [running_mean([log[step] for step in steps], window) for log in logs]) if steps else None


def _losses_by_rate(cells: Sequence[CellResult]) -> tuple[dict[float, float], list[float]]:
    """Mean validation loss of each learning rate, and the rates at which a seed diverged."""
    losses, diverged = {}, []
    for rate in sorted({cell.learning_rate for cell in cells if cell.learning_rate > 0}):
        own = [cell for cell in cells if cell.learning_rate == rate]
        found = [cell.eval_loss for cell in own if cell.status == "done" and cell.eval_loss is not None]
        if any(cell.status == "diverged" for cell in own):
            diverged.append(rate)
        elif found and all(math.isfinite(loss) and loss > 0 for loss in found):
            losses[rate] = sum(found) / len(found)
    return losses, diverged


def _head_room(axes: Any, points: float) -> None:
    """Widen a logarithmic axis: its topmost `points` hold no data, and a ring at the lowest point is whole."""
    low, high = axes.get_ylim()
    low *= (low / high) ** 0.05
    height = axes.get_window_extent().height / axes.figure.dpi * 72
    share = min(0.6, points / max(height, 1.0))
    axes.set_ylim(low, low * (high / low) ** (1 / (1 - share)))


def _fine_ticks(panels: Sequence[Any]) -> None:
    """More numbers on a loss axis that spans little."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    for axes in panels:
        low, high = axes.get_ylim()
        if high / low < 1.8:
            axes.yaxis.set_major_locator(MaxNLocator(5))
        elif high / low < 6:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8), numticks=20))


def _legend_beside(axes: Any) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), frameon=False, fontsize=8.5, borderaxespad=0)


def _labels_beside(figure: Any, axes: Any, points: Sequence[tuple[ArmInfo, int, float]]) -> None:
    """Names in a column right of the axes, as near to the height of their points as they can stand apart."""
    low, high = axes.get_ylim()
    gap = 12.5 / (figure.get_figheight() * 72 - 90)  # a line of text, as a share of the axes
    ordered = sorted(points, key=lambda point: point[2])
    wanted = [(value - low) / (high - low) for *_, value in ordered]
    for (arm, count, value), height in zip(ordered, spread(wanted, gap), strict=True):
        colour = KINDS[arm.kind][0]
        start = (count, value) if count else (1.0, value)
        axes.annotate(
            plain(arm.label, 40), start, xycoords="data" if count else ("axes fraction", "data"),
            xytext=(1.05, height), textcoords="axes fraction", va="center", fontsize=8.5, color="#222222",
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "shrinkA": 1,
                        "shrinkB": 5 if count else 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """The places nearest to the wanted ones (ascending) that are at least `gap` apart, between 0 and 1 if they fit.

    Example:
        >>> [round(place, 2) for place in spread([0.5, 0.5, 0.9], 0.1)]
        [0.45, 0.55, 0.9]
    """
    groups: list[tuple[float, int]] = []  # centre and members of runs that stand shoulder to shoulder
    for place in wanted:
        centre, members = place, 1
        while groups and centre - (members - 1) * gap / 2 < groups[-1][0] + (groups[-1][1] + 1) * gap / 2 - gap / 2:
            before, count = groups.pop()
            centre = (before * count + centre * members) / (count + members)
            members += count
        groups.append((centre, members))
    places = [centre + (i - (members - 1) / 2) * gap for centre, members in groups for i in range(members)]
    over = max(0.0, places[-1] - 1) if places else 0.0
    if over:
        places = [min(place, 1 - (len(places) - 1 - i) * gap) for i, place in enumerate(places)]
    return [max(place, i * gap) for i, place in enumerate(places)]
