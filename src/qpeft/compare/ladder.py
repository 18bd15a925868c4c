"""How far a claim about an adapter is carried by a comparison: six rungs, of which each needs those below.

    1 runs                                                        4 loses when entanglement is removed
    2 ties LoRA with fewer parameters                             5 no cheap surrogate matches it
    3 beats the classical arms of the same count                  6 wins in time or energy

A rung is reached, not reached, or unknown: arms are missing, there is one seed alone, or the design could not have
seen a difference as large as the margin. Rungs 3 to 5 ask for a difference by the task's deciding measure after Holm's
correction, rung 2 for an interval that lies entirely above minus the margin. The controls are those of Bowles et al.,
"Better than classical? The subtle art of benchmarking quantum machine learning models", 2403.07059.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qpeft.compare.intervals import over_seeds
from qpeft.compare.results import SAME_COUNT, CellResult, GridResults
from qpeft.compare.statistics import (
    Comparison,
    all_comparisons,
    amount,
    compare_arms,
    gain,
    is_share,
    not_worse,
    value_of,
)

NAMES = {
    1: "runs",
    2: "ties LoRA with fewer parameters",
    3: "beats the classical arms of the same count",
    4: "loses when entanglement is removed",
    5: "no cheap surrogate matches it",
    6: "wins in time or energy",
}
_LORA, _MATCHED_LORA, _SURROGATE = "lora", "lora-same-count", "classical"
_SURROGATES = ("classical", "surrogate")  # and what begins with these names
#: a tie, and what a design has to be able to see, unless the plan says otherwise
_MARGIN_OF_SHARES, _MARGIN_OF_OTHERS = 0.02, 0.05
_WITHOUT_ENTANGLEMENT = ("no-entanglers", "no-circuit", "frozen-circuit")


@dataclass(frozen=True)
class Rung:
    """One rung at one place.

    Attributes:
        number: 1 to 6.
        name: As in `NAMES`.
        reached: `None` if this comparison cannot tell.
        evidence: One or a few sentences with numbers and intervals.
    """

    number: int
    name: str
    reached: bool | None
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """Where the adapter stands at one place.

    Attributes:
        base: The base model.
        task: The task.
        rung: The highest rung that is reached together with all below it; 0 if the first is not.
        rungs: All six, from the lowest.
        sentence: The verdict for people.
    """

    base: str
    task: str
    rung: int
    rungs: tuple[Rung, ...]
    sentence: str


def climb(
    results: GridResults,
    base: str,
    task: str,
    margin: float | None = None,
    comparisons: Sequence[Comparison] | None = None,
) -> Verdict:
    """The verdict of a place.

    Args:
        results: What was measured, complete or not.
        base: The base model.
        task: The task; `results.metric[task]` decides (without it the training loss).
        margin: How much worse than LoRA still is a tie, in the deciding measure's own unit: 0.02 are two points of
            accuracy. By default `margin` of the plan, or else two points, and for other measures five per cent of
            LoRA's distance from the frozen base, or of LoRA's mean where no base was measured.
        comparisons: Those of `all_comparisons`, if they are at hand.

    Raises:
        MissingDependencyError: without scipy and statsmodels.
    """
    if comparisons is None:
        comparisons = all_comparisons(results, base, task)
    measure = results.metric.get(task, "train_loss")
    if margin is None:
        margin = results.plan.get("margin")
    place = _Place(results, base, task, margin, {each.second: each for each in comparisons if each.measure == measure})
    found = [_runs, _ties, _beats_matched, _needs_entanglement, _beats_surrogate, _is_faster]
    rungs = tuple(Rung(number, NAMES[number], *judge(place)) for number, judge in enumerate(found, start=1))
    missed = next((rung.number for rung in rungs if not rung.reached), len(rungs) + 1)
    return Verdict(base, task, missed - 1, rungs, _sentence(results, base, task, rungs, missed))


@dataclass(frozen=True)
class _Place:
    """One place with its comparisons by the other arm's name, on the deciding measure."""

    results: GridResults
    base: str
    task: str
    margin: float | None
    against: dict[str, Comparison]

    @property
    def adapter(self) -> str:
        return next((arm.name for arm in self.results.arms.values() if arm.kind == "adapter"), "")

    def finals(self, arm: str, done: bool = True) -> list[CellResult]:
        return self.results.select(self.base, self.task, arm, "final", done=done)

    def margin_of(self, comparison: Comparison) -> float:
        """In the unit of the comparison."""
        if self.margin is not None:
            return self.margin
        if is_share(comparison.measure):
            return _MARGIN_OF_SHARES
        # what a loss begins at says more about the task than about the arms: a share of what LoRA took off it
        begun = self.frozen(comparison.measure) or 0.0
        return _MARGIN_OF_OTHERS * abs(begun - self.against.get(_LORA, comparison).second_mean)

    def frozen(self, measure: str) -> float | None:
        """What the frozen base has of a measure, if that was measured."""
        arms = [arm.name for arm in self.results.arms_at(self.base, self.task) if arm.kind == "base"]
        return value_of(self.finals(arms[0])[0], measure) if arms else None

    def missing(self, arm: str) -> str:
        diverged = self.finals(arm, done=False)
        return f"All seeds of {arm} diverged." if diverged else f"The arm {arm} is missing."


_Finding = tuple[bool | None, str]


def _runs(place: _Place) -> _Finding:
    cells = place.finals(place.adapter, done=False) if place.adapter else []
    if not cells:
        return None, "No final cell of the adapter is finished."
    diverged = sum(cell.status == "diverged" for cell in cells)
    if diverged:
        return False, (
            f"{diverged} of {len(cells)} seeds diverged; all other numbers are about the rest, and so too favourable."
        )
    return True, f"{_range([len(cells)], 'seed')} ran to the end."


def _ties(place: _Place) -> _Finding:
    comparison = place.against.get(_LORA)
    if comparison is None:
        return None, place.missing(_LORA)
    ours, theirs = (_trainable(place.finals(arm)) for arm in (place.adapter, _LORA))
    counts = f"{ours:,} against {theirs:,} trained numbers."
    if ours >= theirs:
        return False, f"It does not train fewer: {counts}"
    margin = place.margin_of(comparison)
    counts += f" {_design([comparison])} {_against(comparison)} The margin is {amount(margin, comparison.measure)}."
    if comparison.n_seeds < 2:
        return None, f"{counts} One seed says nothing about another."
    if not_worse(comparison, margin):
        counts += " LoRA is better, by less than that." if comparison.better == "second" else ""
        return _worth_a_tie(place, comparison.measure, counts)
    if comparison.better == "second":
        return False, f"{counts} LoRA is better."
    high = gain(comparison)[2]
    if high is not None and high < -margin:
        return False, f"{counts} LoRA is better by more than the margin."
    if comparison.mde is None or comparison.mde > margin:
        return None, f"{counts} The interval reaches past the margin, {_blind(comparison)}"
    return False, f"{counts} The interval reaches past the margin."


def _worth_a_tie(place: _Place, measure: str, evidence: str) -> _Finding:
    """Two arms that learn nothing tie as well: LoRA has to be better than the frozen base where there is one."""
    if place.frozen(measure) is None:
        return True, f"{evidence} No frozen base was measured, so that two arms which learn nothing would tie too."
    frozen = next(arm.name for arm in place.results.arms_at(place.base, place.task) if arm.kind == "base")
    learned = compare_arms(place.results, place.base, place.task, _LORA, frozen, measure)
    if learned.better == "first":
        return True, evidence
    return None, f"{evidence} But LoRA is not told apart from the frozen base here, and ties say nothing."


def _beats_matched(place: _Place) -> _Finding:
    matched = [
        arm.name
        for arm in place.results.arms.values()
        if arm.kind == "matched" and not arm.name.startswith(_SURROGATES)
    ]
    return _beats(place, dict.fromkeys((_MATCHED_LORA, *matched)), _beats_same_count)


def _needs_entanglement(place: _Place) -> _Finding:
    adapter = place.results.arms.get(place.adapter)
    if adapter is not None and not adapter.circuit:
        return False, "The adapter has no circuit with entanglement."
    return _beats(place, _WITHOUT_ENTANGLEMENT)


def _beats_surrogate(place: _Place) -> _Finding:
    present = [name for name in place.results.arms if name.startswith(_SURROGATES)]
    return _beats(place, dict.fromkeys((_SURROGATE, *present)))


def _beats(place: _Place, arms: Iterable[str], judge: Callable[[_Place, str], _Finding] | None = None) -> _Finding:
    """Whether the adapter is better than every one of the arms: one that it does not beat is enough to miss a rung."""
    names = list(arms)
    judged = [(judge or _beats_one)(place, arm) for arm in names]
    verdicts = [reached for reached, _ in judged]
    reached = False if False in verdicts else None if None in verdicts else True
    sentences = [evidence for _, evidence in judged]
    measured = [place.against[arm] for arm in names if arm in place.against]
    if measured:
        sentences.insert(0, _design(measured))
    return reached, " ".join(sentences)


def _beats_one(place: _Place, arm: str) -> _Finding:
    comparison = place.against.get(arm)
    if comparison is None:
        return None, place.missing(arm)
    text = _against(comparison)
    if comparison.better == "second":
        return False, f"{text} {arm} is better."
    if comparison.n_seeds < 2:
        return None, f"{text} One seed says nothing about another."
    if comparison.better == "first":
        return True, text
    text += f" {_not_told_apart(comparison)}"
    if comparison.mde is None or comparison.mde > place.margin_of(comparison):
        return None, f"{text}, {_blind(comparison)}"
    return False, f"{text}."


def _beats_same_count(place: _Place, arm: str) -> _Finding:
    """An arm that could not match the count decides only where the difference in numbers speaks against its result."""
    reached, text = _beats_one(place, arm)
    ours, theirs = (_trainable(place.finals(name)) for name in (place.adapter, arm))
    if not theirs or abs(theirs - ours) <= SAME_COUNT * ours:
        return reached, text
    told = f"{text} It trains {theirs:,} numbers, not {ours:,}"
    if reached is not None and reached == (theirs < ours):
        return None, f"{told}, and does not decide."
    return reached, f"{told}."


def _is_faster(place: _Place) -> _Finding:
    unmeasured = "Energy was not measured."
    ours, theirs = (
        {cell.seed: seconds for cell in place.finals(arm) if (seconds := _seconds_per_step(cell)) is not None}
        for arm in (place.adapter, _LORA)
    )
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None, f"Times of the adapter and of {_LORA} are missing. {unmeasured}"
    ratio = over_seeds(np.log([ours[seed] / theirs[seed] for seed in seeds]))
    text = f"A step takes {math.exp(ratio.value):.2f} times LoRA's wall clock"
    if ratio.low is None or ratio.high is None:
        return None, f"{text}, measured on one seed. {unmeasured}"
    text += f" [{math.exp(ratio.low):.2f}, {math.exp(ratio.high):.2f}]."
    if ratio.low <= 0 <= ratio.high:
        return None, f"{text} The interval does not tell the two apart. {unmeasured}"
    return ratio.high < 0, f"{text} {unmeasured}"


def _design(comparisons: Sequence[Comparison]) -> str:
    """`By strict accuracy, with 5 seeds and 400 items, p corrected for all arms.`"""
    parts = [_range([comparison.n_seeds for comparison in comparisons], "seed")]
    items = [comparison.n_items for comparison in comparisons if comparison.n_items]
    if items:
        parts.append(_range(items, "item"))
    return f"By {comparisons[0].measure.replace('_', ' ')}, with {' and '.join(parts)}, p corrected for all arms."


def _against(comparison: Comparison) -> str:
    """`Against lora +3.1 points [1.2, 5.0], p = 0.01.`"""
    text = f"Against {comparison.second} {comparison}"
    if comparison.p_holm is not None:
        text += f", p = {comparison.p_holm:.2g}"
    left_out = [
        f"{count} {why}"
        for count, why in ((comparison.diverged, "diverged"), (comparison.unpaired, "in one arm alone"))
        if count
    ]
    return text + (f" (seeds left out: {', '.join(left_out)})." if left_out else ".")


def _not_told_apart(comparison: Comparison) -> str:
    low, high = comparison.low, comparison.high
    if low is None or high is None:
        return "The seeds do not differ, so that there is no interval"
    if low <= 0 <= high:
        return "The interval does not tell the two apart"
    return "The interval leaves zero out, but not after the correction for all arms"


def _blind(comparison: Comparison) -> str:
    if comparison.mde is None:
        return "and what the design could have seen is not known."
    design = f"with {_range([comparison.n_seeds], 'seed')}"
    if comparison.n_items:
        design += f" and {_range([comparison.n_items], 'item')}"
    return f"and {design} a difference below {amount(comparison.mde, comparison.measure)} could not have been seen."


def _sentence(results: GridResults, base: str, task: str, rungs: Sequence[Rung], missed: int) -> str:
    place = f"{base}, {task}"
    if missed > len(rungs):
        text = f"{place}: all {len(rungs)} rungs are reached."
    else:
        rung = rungs[missed - 1]
        below = f"rung {missed - 1} of {len(rungs)} ({NAMES[missed - 1]})" if missed > 1 else "no rung"
        why = "not reached" if rung.reached is False else "not known"
        text = f"{place}: {below} is reached; rung {missed} ({rung.name}) is {why}."
    text += "".join(
        f" Rung {above.number} ({above.name}) is met by itself, and does not count above a missed one."
        for above in rungs[missed:]
        if above.reached
    )
    if results.planned > len(results.cells):
        text += f" {len(results.cells)} of {results.planned} cells are finished: this may change."
    return text


def _trainable(cells: Sequence[CellResult]) -> int:
    return max((cell.accounting.trainable for cell in cells), default=0)


def _seconds_per_step(cell: CellResult) -> float | None:
    steps = max((step for step, _ in cell.losses), default=0)
    return cell.accounting.seconds / steps if steps > 0 and cell.accounting.seconds > 0 else None


def _range(counts: Sequence[int], noun: str) -> str:
    """`5 seeds`, or `4 to 5 seeds`."""
    low, high = min(counts), max(counts)
    return f"{high} {noun}{'' if high == 1 else 's'}" if low == high else f"{low} to {high} {noun}s"
