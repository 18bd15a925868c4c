"""A layout as a picture: the chip, what works on it how well, and the blocks."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from qpeft.chips.chip_map import grid_columns, positions, used_couplers
from qpeft.chips.layout import Layout
from qpeft.chips.snapshot import ChipSnapshot

#: block colours, light enough for dark print on them; blue is for fidelities
COLOURS = ("#ffb703", "#a7c957", "#f4a6c0", "#c8b6ff", "#e0b084", "#7bdcb5", "#ff8f78", "#b8c0cc", "#e9e27a")


def plot_layout(layout: Layout, snapshot: ChipSnapshot, path: Path, title: str = "") -> Path:
    """Draw the chip with its blocks.

    Blocks are coloured patches with their number, best first. The shade of a coupler is the fidelity of its CZ, that
    of a qubit the fidelity of its readout: dark is good. Dead couplers are dotted, unavailable qubits crossed out.

    Args:
        layout: What :func:`~qpeft.chips.packing.plan_layout` gave.
        snapshot: The chip it was made for.
        path: Picture to write; its suffix says the format (PNG, SVG, PDF).
        title: First line of the heading; the chip's name where it is empty.

    Returns:
        The path.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    spots = positions(snapshot)
    if grid_columns(snapshot) is not None:  # long side across, as screens are
        width, height = (1 + max(spot[axis] for spot in spots.values()) for axis in (0, 1))
        if height > width:
            spots = {qubit: (y, x) for qubit, (x, y) in spots.items()}
    width, height = (1.2 + max(spot[axis] for spot in spots.values()) for axis in (0, 1))
    unit = min(0.75, 15 / width)  # inches between neighbours
    wide, high = unit * width, unit * height
    whole = max(wide, 5.6) + 2.4, max(high, 1.5) + 1.2  # room for the legend below and the scales to the right
    figure = plt.figure(figsize=whole, dpi=160)
    axes = figure.add_axes((0.2 / whole[0], 0.5 / whole[1], wide / whole[0], high / whole[1]))
    axes.set(xlim=(-0.6, width - 0.6), ylim=(height - 0.6, -0.6))
    axes.axis("off")

    scale = 72 * unit  # points between neighbours
    _draw_blocks(axes, layout, spots, scale)
    shades = _draw_couplers(axes, layout, snapshot, spots, scale)
    dots = _draw_qubits(axes, layout, snapshot, spots, scale)
    for artist, label, inches in ((dots, "readout (qubits)", 2.0), (shades, "CZ (couplers)", 0.95)):
        if artist is not None:
            place = (1 - inches / whole[0], 0.5 / whole[1], 0.16 / whole[0], 1 - 1.2 / whole[1])
            bar = figure.colorbar(artist, cax=figure.add_axes(place))
            bar.set_label(f"fidelity of {label}", fontsize=9)
            bar.ax.tick_params(labelsize=8)
            bar.outline.set_visible(False)
    _draw_legend(axes)
    worst, best = min(layout.scores), max(layout.scores)
    buffer = f", buffer {layout.buffer}" if layout.buffer else ""
    axes.set_title(
        f"{title or snapshot.name}\n{layout.n_blocks} blocks of {len(layout.templates[0].qubits)} qubits{buffer}, "
        f"expected fidelity {worst:.2f} to {best:.2f}",
        fontsize=11,
        loc="left",
    )
    figure.savefig(path)
    plt.close(figure)
    return path


def _colours(layout: Layout, spots: dict[int, tuple[float, float]]) -> list[str]:
    """A colour for each block, other than those of the blocks around it as far as there are enough."""
    colours: list[str] = []
    for block, template in enumerate(layout.templates):
        around = {
            colours[other]
            for other, earlier in enumerate(layout.templates[:block])
            if min(math.dist(spots[a], spots[b]) for a in template.qubits for b in earlier.qubits) < 2.5
        }
        turned = [COLOURS[(block + turn) % len(COLOURS)] for turn in range(len(COLOURS))]
        colours.append(next((colour for colour in turned if colour not in around), turned[0]))
    return colours


def _draw_blocks(axes: Any, layout: Layout, spots: dict[int, tuple[float, float]], scale: float) -> None:
    """Patches: thick round lines along the couplers in use and a round spot at every qubit."""
    colours = _colours(layout, spots)
    for block, template in enumerate(layout.templates):
        for qubit in template.qubits:
            axes.plot(*spots[qubit], "o", color=colours[block], markersize=0.78 * scale, markeredgewidth=0, zorder=1)
    for (a, b), block in used_couplers(layout).items():
        xs, ys = zip(spots[a], spots[b], strict=True)
        axes.plot(xs, ys, color=colours[block], linewidth=0.78 * scale, solid_capstyle="round", zorder=1)


def _draw_couplers(axes: Any, layout: Layout, snapshot: ChipSnapshot, spots: dict[int, tuple[float, float]],
                   scale: float) -> Any:  # fmt: skip
    from matplotlib.collections import LineCollection

    live = snapshot.live_couplers
    working = {coupler.qubits for coupler in live}
    dead = [[spots[q] for q in coupler.qubits] for coupler in snapshot.couplers if coupler.qubits not in working]
    axes.add_collection(LineCollection(dead, colors="#c4c4c4", linewidths=0.03 * scale, linestyles=":", zorder=2))
    if not live:
        return None
    used = used_couplers(layout)
    lines = LineCollection(
        [[spots[q] for q in coupler.qubits] for coupler in live],
        array=[coupler.fidelity for coupler in live],
        cmap=_shades(),
        norm=_scale([coupler.fidelity for coupler in live]),
        linewidths=[(0.13 if coupler.qubits in used else 0.06) * scale for coupler in live],
        zorder=3,
    )
    axes.add_collection(lines)
    return lines


def _draw_qubits(axes: Any, layout: Layout, snapshot: ChipSnapshot, spots: dict[int, tuple[float, float]],
                 scale: float) -> Any:  # fmt: skip
    live = [qubit for qubit in snapshot.qubits if qubit.available]
    xs, ys = zip(*(spots[qubit.index] for qubit in live), strict=True)
    readout = [1 - (qubit.p10 + qubit.p01) / 2 for qubit in live]
    dots = axes.scatter(
        xs,
        ys,
        c=readout,
        norm=_scale(readout),
        cmap=_shades(),
        s=(0.5 * scale) ** 2,
        edgecolors="#333333",
        linewidths=0.015 * scale,
        zorder=4,
    )
    owner = {qubit: block + 1 for block, template in enumerate(layout.templates) for qubit in template.qubits}
    for qubit, fidelity in zip(live, readout, strict=True):
        text = owner.get(qubit.index)
        if text is not None:
            colour = "white" if dots.norm(fidelity) > 0.5 else "black"
            axes.text(*spots[qubit.index], str(text), ha="center", va="center", fontsize=0.26 * scale,
                      fontweight="bold", color=colour, zorder=5)  # fmt: skip
    for qubit in snapshot.qubits:
        x, y = spots[qubit.index]
        axes.text(x + 0.27, y - 0.27, str(qubit.index), ha="center", va="center", fontsize=0.13 * scale,
                  color="#555555", zorder=5)  # fmt: skip
        if not qubit.available:
            axes.plot(x, y, "x", color="#999999", markersize=0.3 * scale, markeredgewidth=0.05 * scale, zorder=4)
    return dots


def _shades() -> Any:
    """White-grey to dark blue; the palest quarter is left out, for pale lines get lost on white."""
    import matplotlib
    from matplotlib.colors import ListedColormap

    return ListedColormap(matplotlib.colormaps["Blues"]([0.2 + 0.78 * step / 255 for step in range(256)]))


def _scale(fidelities: list[float]) -> Any:
    """From the worst to the best, and never so narrow that equal numbers look different."""
    from matplotlib.colors import Normalize

    best = max(fidelities)
    return Normalize(min(min(fidelities), best - 0.01), best)


def _draw_legend(axes: Any) -> None:
    from matplotlib.lines import Line2D

    entries = [
        Line2D([], [], color=COLOURS[0], linewidth=9, label="block and its number"),
        Line2D([], [], color="#2a6fb0", linewidth=4, label="coupler in use"),
        Line2D([], [], color="#2a6fb0", linewidth=1.5, label="coupler, idle"),
        Line2D([], [], color="#c4c4c4", linewidth=1.5, linestyle=":", label="dead coupler"),
        Line2D([], [], color="#999999", marker="x", linestyle="", markeredgewidth=2, label="unavailable qubit"),
    ]
    axes.legend(handles=entries, loc="upper left", bbox_to_anchor=(0, 0), ncols=5, frameon=False, fontsize=8,
                handlelength=1.6, columnspacing=1.2)  # fmt: skip
