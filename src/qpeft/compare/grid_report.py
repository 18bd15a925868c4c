"""The report of a grid: `report.html`, `report.md` and `report.json`, the verdict first, at any moment of the grid.

All three come from one list of numbers and blocks, so that they agree; the HTML page opens without a network.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from qpeft.compare import grid_plots, grid_tables
from qpeft.compare.document import (
    Block,
    Bullets,
    Code,
    Details,
    Heading,
    Paragraph,
    Picture,
    Table,
    to_html,
    to_markdown,
)
from qpeft.compare.grid_numbers import PlaceNumbers, expected_places, finite, measure_place, shown_cells
from qpeft.compare.results import GridResults
from qpeft.compare.statistics import is_share
from qpeft.training.run_folder import write_json, write_text


@dataclass(frozen=True)
class GridReport:
    """What was written.

    Attributes:
        html: The page.
        markdown: The same as markdown.
        json: Its numbers.
        plots: The pictures.
        sentences: How far the grid is, and the verdict of each place.
        headlines: Of each place its name and the table at the top of the page.
    """

    html: Path
    markdown: Path
    json: Path
    plots: tuple[Path, ...]
    sentences: tuple[str, ...]
    headlines: tuple[tuple[str, Table], ...]


def write_grid_report(results: GridResults, folder: Path) -> GridReport:
    """Write the report of what has been measured so far; `plots/` beside it holds the pictures.

    Args:
        results: Complete or not, or nothing yet.
        folder: Where `report.html`, `report.md`, `report.json` and `plots/` go.

    Raises:
        MissingDependencyError: Without scipy and statsmodels.
    """
    folder = Path(folder)
    places = [measure_place(results, base, task) for base, task in results.places()]
    progress = _progress(results)
    pictures = {place.base + "/" + place.task: _draw(place, folder / "plots") for place in places}
    blocks: list[Block] = [Paragraph(progress[0], "" if _is_complete(results) else "warning")]
    blocks += [Paragraph(sentence, "warning") for sentence in progress[1:]]
    for place in places:
        blocks += _top(place)
    for place in places:
        blocks += _section(place, pictures[place.base + "/" + place.task])
    blocks += _how(results, places)

    values = {
        "title": results.title,
        "progress": {
            "sentences": progress,
            "cells": len(results.cells),
            "planned": results.planned,
            "diverged": sum(cell.status == "diverged" for cell in results.cells),
            "complete": _is_complete(results),
        },
        "places": [
            {
                **place.to_dict(),
                "plots": [
                    picture.path.relative_to(folder).as_posix() for picture in pictures[f"{place.base}/{place.task}"]
                ],
            }
            for place in places
        ],
        "command": results.command,
        "plan": results.plan,
        "made_on": _made_on(results),
    }
    write_json(folder / "report.json", finite(values))
    write_text(folder / "report.md", to_markdown(results.title, blocks, folder))
    write_text(folder / "report.html", to_html(results.title, blocks))
    return GridReport(
        html=folder / "report.html",
        markdown=folder / "report.md",
        json=folder / "report.json",
        plots=tuple(picture.path for found in pictures.values() for picture in found),
        sentences=(*progress, *(_verdict(place) for place in places)),
        headlines=tuple((f"{place.base}, {place.task}", grid_tables.headline(place)) for place in places),
    )


def _top(place: PlaceNumbers) -> Iterator[Block]:
    """What a reader takes away in ten seconds."""
    yield Heading(f"{place.base}, {place.task}")
    yield Paragraph(_verdict(place), "verdict")
    yield grid_tables.headline(place)
    matched, controls = (sum(arm.info.kind == kind for arm in place.arms) for kind in ("matched", "control"))
    notes = []
    if place.has_final:
        notes.append("Brackets: 95 % intervals, of a mean over seeds, and of a difference over seeds and test items.")
    if matched > 1 or controls > 1:
        notes.append(f"Of {matched} matched methods and {controls} controls the best of each is shown; all are below.")
    if notes:
        yield Paragraph(" ".join(notes), "note")


def _verdict(place: PlaceNumbers) -> str:
    if place.verdict is None:
        return f"{place.base}, {place.task}: no verdict. {place.problem}"
    if not place.has_final:
        return f"{place.base}, {place.task}: no verdict yet, for no final run is finished; numbers are of the sweep."
    return place.verdict.sentence


def _section(place: PlaceNumbers, pictures: Sequence[Picture]) -> Iterator[Block]:
    """What a reader checks in ten minutes."""
    yield Heading(f"{place.base}, {place.task}: in full")
    missing = _missing(place)
    if missing:
        yield Paragraph(missing, "warning")
    for arm in place.arms:
        if arm.diverged:
            seeds = "; ".join(f"seed {seed}: {reason or 'diverged'}" for seed, reason in arm.diverged)
            yield Paragraph(
                f"{arm.info.label} diverged in {_runs(len(arm.diverged))} ({seeds}); no mean holds what diverged.",
                "warning",
            )
    if place.verdict and place.has_final:
        yield Heading("The ladder of claims", 3)
        states = {True: "reached", False: "not reached", None: "not known"}
        yield Table(
            ("rung", "", "evidence"),
            tuple((f"{each.number} {each.name}", states[each.reached], each.evidence) for each in place.verdict.rungs),
            prose=True,
        )
    yield Heading("All arms", 3)
    yield grid_tables.all_arms(place)
    yield Paragraph(
        "Train loss: mean of the last tenth of the steps. Eval loss: validation set, after the last step. Peak "
        "memory: of the process, with all it had run before. FLOPs: matrix products of the training. "
        "(edge): the best learning rate is the lowest or highest tried, so that a better one may lie beyond.",
        "note",
    )
    notes = tuple(
        f"{arm.info.label} ({arm.info.name})" + (f": {arm.info.note}" if arm.info.note else "") for arm in place.arms
    )
    if notes:
        yield Details("What each arm is for, and its name in the plan", (Bullets(notes),))
    yield from _comparisons(place)
    if pictures:
        yield Heading("Plots", 3)
        yield from pictures
    if any(arm.sweep for arm in place.arms):
        yield Details("Validation loss at every learning rate (✓ the lowest)", (grid_tables.sweep_table(place),))
    if any(cell.stage == "final" for cell in place.cells):
        yield Details("Every final run", (grid_tables.run_table(place),))


def _comparisons(place: PlaceNumbers) -> Iterator[Block]:
    measures = list(dict.fromkeys(each.measure for each in place.comparisons))
    if not measures:
        return
    yield Heading("The adapter against every other arm", 3)
    for measure in measures:
        table = grid_tables.comparison_table(place, measure)
        if measure == place.metric:
            yield Paragraph(f"By {grid_tables.name_of(measure)}, which decides:")
            yield table
        else:
            yield Details(f"By {grid_tables.name_of(measure)}", (table,))
    yield Paragraph(
        "Differences are paired: over the seeds that both arms finished, and over test items where there are any. "
        "Intervals are not corrected; p (Holm) and the verdict are, over all arms. Minimum detectable: a true "
        "difference of this size would be found with power 0.8 at 5 %.",
        "note",
    )


def _runs(n: int) -> str:
    return "1 final run" if n == 1 else f"{n} final runs"


def _missing(place: PlaceNumbers) -> str:
    """`Final runs are missing: seeds 3, 4 of all arms; seed 2 of LoRA.`"""
    by_seeds: dict[tuple[int, ...], list[str]] = {}
    for arm in place.arms:
        if arm.missing:
            by_seeds.setdefault(arm.missing, []).append(arm.info.label)
    parts = []
    for seeds, labels in by_seeds.items():
        who = "all arms" if len(labels) == len(place.arms) else ", ".join(labels)
        parts.append(f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))} of {who}")
    return f"Final runs are missing: {'; '.join(parts)}." if parts else ""


def _is_complete(results: GridResults) -> bool:
    return len(results.cells) >= results.planned > 0


def _progress(results: GridResults) -> list[str]:
    """How far the grid is."""
    done, planned = len(results.cells), results.planned
    if not done:
        first = f"Nothing is measured yet: 0 of {planned} cells." if planned else "Nothing is measured yet."
    elif not planned:
        first = f"{done} cells are finished."
    elif done < planned:
        first = f"This is a partial report: {done} of {planned} cells are finished."
    else:
        first = (
            f"All {planned} cells are finished."
            if done == planned
            else f"{done} cells are finished ({planned} planned)."
        )
    diverged = sum(cell.status == "diverged" for cell in results.cells)
    if diverged:
        first += f" {diverged} of them diverged."
    waiting = [pair for pair in expected_places(results) if pair not in results.places()]
    if done and waiting:
        return [first, "Nothing is measured yet of " + "; ".join(", ".join(pair) for pair in waiting) + "."]
    return [first]


def _draw(place: PlaceNumbers, folder: Path) -> list[Picture]:
    """The pictures of a place that there is something for."""
    base, task, metric = place.base, place.task, place.metric
    folder, stem = folder / base, task  # a folder each, since names may hold hyphens
    final = place.has_final
    trained = [arm for arm in place.arms if arm.info.kind not in ("evaluation", "base")]
    by_arm = {arm.info.name: [cell for cell in place.cells if cell.arm == arm.info.name] for arm in place.arms}
    quality = metric if final else "eval_loss"
    points = []
    for arm in place.arms:
        found = arm.measures.get(quality)
        if found is not None and found.mean is not None and (arm.stage == "final") == final:
            low, high = (
                (found.low, found.high) if found.low is not None and found.high is not None else (found.mean,) * 2
            )
            points.append((arm.info, int(arm.accounting["trainable"]), found.mean, low, high))
    infos = {arm.info.name: arm.info for arm in place.arms}
    groups = [
        (grid_tables.name_of(measure) + (", points" if is_share(measure) else ""),
         [(infos[each.second], each) for each in grid_tables.comparisons_by(place, measure)
          if infos[each.second].kind != "base"])
        for measure in dict.fromkeys((metric, "train_loss"))
    ]  # fmt: skip
    sweep_only = "" if final else " No final run is finished: runs of the sweep at each arm's best rate so far."
    one_seed = ""
    if any(each.n_seeds == 1 for each in place.comparisons):
        one_seed = " Where there is one seed, intervals are over test items alone, or missing (hollow)."
    named = grid_tables.name_of(quality)
    drawn = [
        (grid_plots.plot_training([(arm.info, shown_cells(by_arm[arm.info.name])) for arm in trained],
                                  folder / f"{stem}-training.png"),
         "Training loss (running mean) over the steps: mean of the seeds, band from the lowest to the highest seed."
         + sweep_only),
        (grid_plots.plot_quality(points, folder / f"{stem}-quality.png", named + (", %" if is_share(quality) else ""),
                                 is_share(quality)),
         f"{named.capitalize()} {'on the test set ' * final}against trained numbers, with 95 % intervals over seeds."
         + sweep_only),
        (grid_plots.plot_differences(groups, folder / f"{stem}-differences.png"),
         "The adapter minus every other arm, with uncorrected 95 % intervals; in colour what holds after Holm's "
         "correction. The frozen base is left out." + one_seed),
        (grid_plots.plot_rates([(arm.info, [cell for cell in by_arm[arm.info.name] if cell.stage == "sweep"])
                                for arm in trained], folder / f"{stem}-rates.png"),
         "Validation loss against learning rate in the sweep. Rings: the lowest; crosses: a run diverged."),
        (grid_plots.plot_counts([(arm.info, arm.accounting.get("trainable", 0), arm.accounting.get("angles", 0))
                                 for arm in trained], folder / f"{stem}-counts.png"),
         "Trained numbers of each arm; black: angles of circuits."),
    ]  # fmt: skip
    return [Picture(path, caption) for path, caption in drawn if path is not None]


def _how(results: GridResults, places: Sequence[PlaceNumbers]) -> Iterator[Block]:
    yield Heading("How it was made")
    if places:
        text = "Every arm sees the same data, in the same order, for the same number of steps."
        if any(arm.sweep for place in places for arm in place.arms):
            text += (
                " Its learning rate is that of the lowest validation loss in a sweep; then fresh seeds are trained at "
                "this rate."
            )
        text += (
            " The test set is opened once for each final run. Arms, rates, seeds and steps were written down before"
        )
        yield Paragraph(text + " the first step.")
    if results.command:
        yield Code(results.command)
    made_on = _made_on(results)
    if made_on:
        yield Bullets(tuple(made_on))
    if results.plan:
        text = yaml.safe_dump(finite(results.plan), sort_keys=False, allow_unicode=True).rstrip("\n")
        yield Details("The plan, as written before the first step", (Code(text),))


def _made_on(results: GridResults) -> list[str]:
    """Packages and machines, and how many cells each of them measured."""
    counts: dict[str, int] = {}
    for cell in results.cells:
        if cell.versions:
            text = _describe(cell.versions)
            counts[text] = counts.get(text, 0) + 1
    return [f"{text} ({n} cell{'s' if n > 1 else ''})" for text, n in counts.items()]


def _describe(versions: dict[str, Any]) -> str:
    values = {**versions, **(versions.get("packages") or {})}
    values.pop("packages", None)
    threads, processor = values.pop("threads", None), values.pop("processor", None)
    parts = [f"{name} {value}" for name, value in values.items() if value is not None]
    parts += [str(processor)] if processor else []
    parts += [f"{threads} thread{'' if threads == 1 else 's'}"] if threads else []
    return ", ".join(parts)
