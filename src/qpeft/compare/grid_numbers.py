"""The numbers of a grid's report: of each place the verdict, the comparisons and a record of every arm.

What is missing is said, not guessed: an arm without final cells shows what its sweep gave at the best learning rate so
far, an arm without any cell shows nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, median
from typing import Any

from qpeft.compare.ladder import Verdict, climb
from qpeft.compare.results import LOWER_IS_BETTER, ArmInfo, CellResult, GridResults, chosen_rate
from qpeft.compare.statistics import Comparison, SeedSummary, all_comparisons, summarise, value_of
from qpeft.errors import InputError

LOSSES = ("train_loss", "mean_train_loss", "eval_loss")


@dataclass(frozen=True)
class ArmNumbers:
    """What one arm did at one place.

    Attributes:
        info: The arm.
        stage: Where its losses come from: `"final"`, or `"sweep"` while no final cell is finished; `None` without any.
        learning_rate: Of these cells; `None` for an arm that trains nothing.
        at_edge: Whether the chosen rate is the lowest or highest of its sweep, so that a better one may lie beyond.
        seeds: Finished seeds of that stage.
        missing: Planned final seeds without a cell.
        diverged: Final runs that diverged: seed and reason.
        diverged_sweep: Number of sweep runs that diverged.
        measures: Losses and test metrics over the seeds.
        share: Trained numbers as a share of the reference's.
        accounting: Trained numbers, bytes and circuits of a cell; times averaged, memory the highest.
        sweep: Learning rate to mean validation loss; `None` where a seed diverged.
    """

    info: ArmInfo
    stage: str | None
    learning_rate: float | None
    at_edge: bool
    seeds: tuple[int, ...]
    missing: tuple[int, ...]
    diverged: tuple[tuple[int, str], ...]
    diverged_sweep: int
    measures: dict[str, SeedSummary]
    share: float | None
    accounting: dict[str, Any]
    sweep: dict[float, float | None]

    def mean(self, measure: str) -> float | None:
        found = self.measures.get(measure)
        return found.mean if found else None


@dataclass(frozen=True)
class PlaceNumbers:
    """One base model and task.

    Attributes:
        base: The base model.
        task: The task.
        metric: What decides.
        metrics: All test metrics, the deciding one first.
        reference: Label of the arm whose trained numbers are 100 %.
        arms: In the order of the plan.
        comparisons: Of the adapter with every other arm.
        verdict: `None` if it could not be found.
        problem: Why the verdict or the comparisons are missing.
    """

    base: str
    task: str
    metric: str
    metrics: tuple[str, ...]
    reference: str | None
    arms: tuple[ArmNumbers, ...]
    comparisons: tuple[Comparison, ...] = ()
    verdict: Verdict | None = None
    problem: str = ""
    cells: tuple[CellResult, ...] = field(default=(), repr=False)

    @property
    def has_final(self) -> bool:
        return any(arm.stage == "final" for arm in self.arms)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: every number behind the page, without the losses of single steps and the test items."""
        return {
            "base": self.base,
            "task": self.task,
            "metric": self.metric,
            "lower_is_better": self.metric in LOWER_IS_BETTER,
            "verdict": asdict(self.verdict) if self.verdict else None,
            "problem": self.problem,
            "arms": [
                {**asdict(arm.info), **{key: value for key, value in asdict(arm).items() if key != "info"}}
                for arm in self.arms
            ],
            "comparisons": [{**asdict(each), "text": str(each)} for each in self.comparisons],
            "cells": [
                {key: value for key, value in cell.to_dict().items() if key not in _LONG} for cell in self.cells
            ],
        }


_LONG = ("losses", "eval_losses", "items", "versions", "base", "task")


def expected_places(results: GridResults) -> list[tuple[str, str]]:
    """The (base, task) pairs of the plan, and those that were measured besides."""
    plan = results.plan
    pairs = [tuple(pair) for pair in plan.get("places") or []] or [
        (base, task) for base in plan.get("bases") or () for task in plan.get("tasks") or ()
    ]
    return list(dict.fromkeys([*pairs, *results.places()]))


def measure_place(results: GridResults, base: str, task: str) -> PlaceNumbers:
    """Gather a place; what cannot be compared is left out, with the reason."""
    cells = results.select(base, task, done=False)
    metric = results.metric.get(task, "train_loss")
    names = dict.fromkeys([metric, *(name for cell in cells for name in cell.metrics)])
    metrics = tuple(name for name in names if name not in LOSSES)
    infos = results.arms_on(base)
    counts = {name: _trained(_by_arm(cells, name)) for name in infos}
    reference = next((arm for arm in infos.values() if arm.kind == "reference" and counts[arm.name]), None)
    arms = tuple(
        _measure_arm(results, arm, _by_arm(cells, arm.name), metrics, counts[reference.name] if reference else 0)
        for arm in infos.values()
    )
    place = PlaceNumbers(
        base, task, metric, metrics, reference.label if reference else None, arms,
        cells=tuple(cell for name in infos for cell in _by_arm(cells, name)),
    )  # fmt: skip
    try:
        comparisons = tuple(all_comparisons(results, base, task))
        verdict = climb(results, base, task, comparisons=comparisons)
    except InputError as error:
        return PlaceNumbers(**{**vars(place), "problem": str(error)})
    return PlaceNumbers(**{**vars(place), "comparisons": comparisons, "verdict": verdict})


def _by_arm(cells: Sequence[CellResult], arm: str) -> list[CellResult]:
    return [cell for cell in cells if cell.arm == arm]


def _trained(cells: Sequence[CellResult]) -> int:
    return max((cell.accounting.trainable for cell in cells), default=0)


def shown_cells(cells: Sequence[CellResult]) -> list[CellResult]:
    """The finished cells that stand for an arm: the final ones, before there are any those of the best sweep rate."""
    final = [cell for cell in cells if cell.stage == "final" and cell.status == "done"]
    sweep = [cell for cell in cells if cell.stage == "sweep"]
    best = chosen_rate(sweep)
    return final or [cell for cell in sweep if cell.status == "done" and cell.learning_rate == best]


def _measure_arm(
    results: GridResults, arm: ArmInfo, cells: Sequence[CellResult], metrics: Sequence[str], reference: int
) -> ArmNumbers:
    shown = shown_cells(cells)
    final = [cell for cell in cells if cell.stage == "final"]
    sweep = [cell for cell in cells if cell.stage == "sweep"]
    rate = shown[0].learning_rate if shown else chosen_rate(sweep)
    rates = sorted({cell.learning_rate for cell in sweep})
    planned = [int(seed) for seed in (results.plan.get("seeds") or {}).get("final") or ()]
    found = {cell.seed for cell in final}
    missing = tuple(seed for seed in planned if seed not in found)
    trained = _trained(cells)
    return ArmNumbers(
        info=arm,
        stage=shown[0].stage if shown else None,
        learning_rate=rate or None,
        at_edge=len(rates) > 1 and rate in (rates[0], rates[-1]),
        seeds=tuple(sorted({cell.seed for cell in shown})),
        missing=() if arm.kind == "base" and found else missing,  # nothing of a frozen base depends on the seed
        diverged=tuple((cell.seed, cell.reason) for cell in final if cell.status == "diverged"),
        diverged_sweep=sum(cell.status == "diverged" for cell in sweep),
        measures={name: summarise(final if shown and shown[0].stage == "final" else shown, name)
                  for name in (*LOSSES, *metrics)},
        share=trained / reference if reference and trained else None,
        accounting=_account(shown or cells),
        sweep={each: _mean_loss([cell for cell in sweep if cell.learning_rate == each]) for each in rates},
    )  # fmt: skip


def _mean_loss(cells: Sequence[CellResult]) -> float | None:
    values = [value_of(cell, "eval_loss") if cell.status == "done" else None for cell in cells]
    found = [value for value in values if value is not None]
    return fmean(found) if len(found) == len(values) else None


def _account(cells: Sequence[CellResult]) -> dict[str, Any]:
    books = [cell.accounting for cell in cells]
    if not books:
        return {}
    flops = [book.flops for book in books if book.flops is not None]
    return {
        "trainable": max(book.trainable for book in books),
        "angles": max(book.angles for book in books),
        "adapter_bytes": max(book.adapter_bytes for book in books),
        "peak_memory_bytes": max(book.peak_memory_bytes for book in books),
        "seconds": fmean(book.seconds for book in books),
        "tokens_per_second": median(book.tokens_per_second for book in books),
        "flops": fmean(flops) if flops else None,
        "circuits": max(book.circuits for book in books),
    }


def finite(value: Any) -> Any:
    """Plain values for JSON: numbers it does not know (NaN, infinity) become `None`, keys become text."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
