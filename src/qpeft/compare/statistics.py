"""What a grid says about its arms: means over seeds, and paired differences with intervals and corrected p-values.

The numbers come from `qpeft.compare.intervals`. Only *final* cells count: those of the sweep chose learning rates.
A diverged cell is counted and never averaged; two arms are compared on the seeds that both finished.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from qpeft.compare.intervals import (
    ALPHA,
    Difference,
    holm,
    minimum_detectable_effect,
    over_seeds,
    over_seeds_and_items,
)
from qpeft.compare.results import LOWER_IS_BETTER, CellResult, GridResults
from qpeft.errors import InputError


@dataclass(frozen=True)
class SeedSummary:
    """A measure over the seeds of an arm.

    Attributes:
        mean: Over the seeds that did not diverge; `None` without any.
        low: Lower end of the 95 % interval of the mean (Student t); `None` for fewer than two seeds.
        high: Upper end.
        n: Seeds in the mean.
        diverged: Seeds that are not in it because they diverged.
    """

    mean: float | None
    low: float | None
    high: float | None
    n: int
    diverged: int


@dataclass(frozen=True)
class Comparison:
    """Two arms at one place by one measure. `str()` gives `+3.1 points [1.2, 5.0]`.

    Attributes:
        first: Name of the arm.
        second: Name of the arm it is compared with.
        measure: As `"answer_accuracy"` or `"train_loss"`.
        difference: First minus second, in the measure's own unit (an accuracy lies between 0 and 1).
        low: Lower end of its 95 % interval, not corrected; `None` where nothing but one number is known.
        high: Upper end.
        p: Two-sided p-value.
        p_holm: The same after Holm's correction over the comparisons it was made with.
        n_seeds: Seeds that both arms finished.
        n_items: Test items; 0 for a measure that has none.
        mde: Minimum detectable effect: a true difference of this size is found with power 0.8 (5 %, uncorrected).
        better: Which arm is better at the corrected level, if either.
        first_mean: Mean of the first arm over these seeds.
        second_mean: Mean of the second.
        diverged: Final cells of either arm that diverged and are in no number here.
        unpaired: Other seeds left out because one arm alone has them.
    """

    first: str
    second: str
    measure: str
    difference: float
    low: float | None
    high: float | None
    p: float | None
    p_holm: float | None
    n_seeds: int
    n_items: int
    mde: float | None
    better: Literal["first", "second"] | None
    first_mean: float
    second_mean: float
    diverged: int = 0
    unpaired: int = 0

    def __str__(self) -> str:
        text = amount(self.difference, self.measure, signed=True)
        if self.low is None or self.high is None:
            return text
        scale, digits = (100, 1) if is_share(self.measure) else (1, 4)
        return f"{text} [{scale * self.low:.{digits}f}, {scale * self.high:.{digits}f}]"


def is_share(measure: str) -> bool:
    """Whether a measure is a share between 0 and 1, which people read in points."""
    return measure in ("answer", "strict", "empty") or measure.endswith(("accuracy", "templates"))


def amount(value: float, measure: str, signed: bool = False) -> str:
    """A difference of a measure for people: `4.1 points`, `0.0210 nats a token`, `1.3000` for others."""
    sign = "+" if signed else ""
    if is_share(measure):
        return f"{100 * value:{sign}.1f} points"
    return f"{value:{sign}.4f}" + (" nats a token" if measure.endswith("loss") else "")


def value_of(cell: CellResult, measure: str) -> float | None:
    """A cell's finite number for a measure: one of its losses, or of its test metrics."""
    if measure in ("train_loss", "mean_train_loss", "eval_loss"):
        value = getattr(cell, measure)
    else:
        value = cell.metrics.get(measure)
    return value if value is not None and math.isfinite(value) else None


def summarise(cells: Sequence[CellResult], measure: str) -> SeedSummary:
    """Mean of a measure over the seeds of one arm with Student's interval, mean ± t s / √n.

    Diverged cells are counted, and are in no mean.

    Args:
        cells: Of one arm, place and learning rate, the diverged ones among them.
        measure: A name in `CellResult.metrics`, or `train_loss`, `mean_train_loss`, `eval_loss`.

    Example:
        >>> losses = {0: 1.0, 1: 2.0}
        >>> cells = [CellResult("b", "t", "lora", 1e-3, seed, "final", train_loss=losses[seed]) for seed in losses]
        >>> summarise(cells, "train_loss").mean
        1.5
    """
    values = [value for cell in cells if cell.status == "done" and (value := value_of(cell, measure)) is not None]
    diverged = sum(cell.status == "diverged" for cell in cells)
    if not values:
        return SeedSummary(None, None, None, 0, diverged)
    found = over_seeds(np.array(values, dtype=float))
    if len(values) > 1 and found.low is None:  # all seeds gave the same number
        found = replace(found, low=found.value, high=found.value)
    return SeedSummary(found.value, found.low, found.high, len(values), diverged)


def compare_arms(results: GridResults, base: str, task: str, first: str, second: str, measure: str) -> Comparison:
    """The difference of two arms at one place, paired over their common seeds and over test items where there are any.

    A frozen base is the same for every seed: its one cell stands against each of the other arm.
    `p_holm` is `p`: a family of one.

    Args:
        results: What was measured.
        base: The base model.
        task: The task.
        first: Name of an arm.
        second: Name of another.
        measure: A name in `CellResult.metrics`, or `train_loss`, `mean_train_loss`, `eval_loss`.

    Raises:
        InputError: if the arms have no finished seed with this measure in common, an arm has two final cells for a
            seed, or the arms were measured on different items.
        MissingDependencyError: without scipy and statsmodels.
    """
    cells = [_by_seed(results, base, task, arm, measure) for arm in (first, second)]
    for own, other, name in ((0, 1, first), (1, 0, second)):
        if name in results.arms and results.arms[name].kind == "base" and cells[own]:
            cells[own] = dict.fromkeys(cells[other], next(iter(cells[own].values())))
    seeds = sorted(cells[0].keys() & cells[1].keys())
    if not seeds:
        raise InputError(
            f"{first} and {second} at {base}, {task} have no finished seed with {measure} in common: "
            "run their final cells first."
        )
    pairs = [(cells[0][seed], cells[1][seed]) for seed in seeds]
    values = np.array([[value_of(cell, measure) for cell in pair] for pair in pairs], dtype=float)  # (n_seeds, 2)
    n_items, found = _difference(pairs, values, measure)
    diverged = [
        cell
        for arm in (first, second)
        for cell in results.select(base, task, arm, "final", done=False)
        if cell.status == "diverged"
    ]
    comparison = Comparison(
        first=first,
        second=second,
        measure=measure,
        difference=found.value,
        low=found.low,
        high=found.high,
        p=found.p,
        p_holm=None,
        n_seeds=len(seeds),
        n_items=n_items,
        mde=minimum_detectable_effect(found.error, found.freedom) if found.error and found.freedom else None,
        better=None,
        first_mean=float(values[:, 0].mean()),
        second_mean=float(values[:, 1].mean()),
        diverged=len(diverged),
        unpaired=len((cells[0].keys() ^ cells[1].keys()) - {cell.seed for cell in diverged}),
    )
    return _judged(comparison, found.p)


def all_comparisons(results: GridResults, base: str, task: str) -> list[Comparison]:
    """The adapter under test against every other arm: by the task's deciding measure, then training and eval loss.

    Holm's correction is over the arms, for each measure by itself: the deciding one is what is tested, the losses are
    there to be read. Arms without a common seed or measure are left out.
    """
    adapter = next((arm.name for arm in results.arms.values() if arm.kind == "adapter"), None)
    if adapter is None:
        return []
    measures = dict.fromkeys((results.metric.get(task, "train_loss"), "train_loss", "eval_loss"))
    found: list[Comparison] = []
    for measure in measures:
        own = _by_seed(results, base, task, adapter, measure)
        family = []
        for arm in results.arms_at(base, task):
            if arm.kind == "evaluation" and measure == "train_loss":
                continue  # the adapter's own training
            other = _by_seed(results, base, task, arm.name, measure)
            if arm.name != adapter and (own.keys() & other.keys() or (own and other and arm.kind == "base")):
                family.append(compare_arms(results, base, task, adapter, arm.name, measure))
        corrected = iter(holm([comparison.p for comparison in family if comparison.p is not None]))
        found += [_judged(each, None if each.p is None else next(corrected)) for each in family]
    return found


def gain(comparison: Comparison) -> tuple[float, float | None, float | None]:
    """Difference and interval, turned so that more is better for the first arm: `(value, low, high)`."""
    if comparison.measure not in LOWER_IS_BETTER:
        return comparison.difference, comparison.low, comparison.high
    low, high = comparison.low, comparison.high
    return -comparison.difference, None if high is None else -high, None if low is None else -low


def not_worse(comparison: Comparison, margin: float) -> bool:
    """Whether the first arm is worse by less than a margin: the interval of its gain lies entirely above -margin.

    Args:
        comparison: Its 95 % interval is used, so that the chance to be wrong is 2.5 %.
        margin: In the measure's own unit, as 0.02 for two points of accuracy.
    """
    low = gain(comparison)[1]
    return low is not None and low > -margin


def _judged(comparison: Comparison, p_holm: float | None) -> Comparison:
    better: Literal["first", "second"] | None = None
    if p_holm is not None and p_holm < ALPHA:
        better = "first" if gain(comparison)[0] > 0 else "second"
    return replace(comparison, p_holm=p_holm, better=better)


def _by_seed(results: GridResults, base: str, task: str, arm: str, measure: str) -> dict[int, CellResult]:
    cells = [cell for cell in results.select(base, task, arm, "final") if value_of(cell, measure) is not None]
    found = {cell.seed: cell for cell in cells}
    if len(found) < len(cells):
        raise InputError(f"{arm} at {base}, {task} has two final cells for one seed: keep those of one learning rate.")
    return found


def _difference(
    pairs: Sequence[tuple[CellResult, CellResult]], values: np.ndarray, measure: str
) -> tuple[int, Difference]:
    """Number of items and the difference; over seeds alone where the cells hold no items of the measure."""
    name = "answer" if measure == "accuracy" else measure.removesuffix("_accuracy")
    cells = [cell for pair in pairs for cell in pair]
    if not all(cell.items.get(name) for cell in cells):
        return 0, over_seeds(values[:, 0] - values[:, 1])
    lengths = {len(cell.items[name]) for cell in cells}
    tokens = {cell.items.get("tokens") for cell in cells} if name == "loss" else {None}
    if len(lengths) > 1 or len(tokens) > 1:
        raise InputError(
            f"{cells[0].arm} and {cells[1].arm} were measured on different items ({sorted(lengths)} of them): "
            "measure both on one test set."
        )
    items = np.array([np.subtract(first.items[name], second.items[name]) for first, second in pairs], dtype=float)
    weights = tokens.pop()
    return items.shape[1], over_seeds_and_items(items, None if weights is None else np.array(weights, dtype=float))
