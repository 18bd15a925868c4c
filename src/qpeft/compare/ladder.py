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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from qpeft.compare.intervals import over_seeds
from qpeft.compare.results import CellResult, GridResults
from qpeft.compare.statistics import Comparison, all_comparisons, amount, compare_arms, gain, is_share, not_worse

NAMES = {
    1: "runs",
    2: "ties LoRA with fewer parameters",
    3: "beats the classical arms of the same count",
    4: "loses when entanglement is removed",
    5: "no cheap surrogate matches it",
    6: "wins in time or energy",
}
_LORA, _SAME_COUNT, _SURROGATE = "lora", "lora-same-count", "classical"
_WITHOUT_ENTANGLEMENT = ("no-entanglers", "no-circuit", "frozen-circuit")


@dataclass(frozen=True)
class Margin:
    """How much worse than LoRA still counts as a tie, and what a design has to be able to see.

    Attributes:
        accuracy: For shares: 0.02 are two points.
        relative: For all else, of LoRA's (for a comparison: the other arm's) mean: 0.05 are five per cent.
    """

    accuracy: float = 0.02
    relative: float = 0.05

    def of(self, comparison: Comparison) -> float:
        """The margin in the unit of a comparison."""
        if is_share(comparison.measure):
            return self.accuracy
        return self.relative * abs(comparison.second_mean)


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
    margin: Margin | None = None,
    comparisons: Sequence[Comparison] | None = None,
) -> Verdict:
    """The verdict of a place.

    Args:
        results: What was measured, complete or not.
        base: The base model.
        task: The task; `results.metric[task]` decides (without it the training loss).
        margin: Of the plan; by default two points of accuracy, or five per cent of a loss.
        comparisons: Those of `all_comparisons`, if they are at hand.

    Raises:
        MissingDependencyError: without scipy and statsmodels.
    """
    if comparisons is None:
        comparisons = all_comparisons(results, base, task)
    measure = results.metric.get(task, "train_loss")
    place = _Place(
        results, base, task, margin or Margin(), {each.second: each for each in comparisons if each.measure == measure}
    )
    found = [_runs, _ties, _beats_matched, _needs_entanglement, _beats_surrogate, _is_faster]
    rungs = tuple(Rung(number, NAMES[number], *judge(place)) for number, judge in enumerate(found, start=1))
    missed = next((rung.number for rung in rungs if not rung.reached), len(rungs) + 1)
    return Verdict(base, task, missed - 1, rungs, _sentence(base, task, rungs, missed))


@dataclass(frozen=True)
class _Place:
    """One place with its comparisons by the other arm's name, on the deciding measure."""

    results: GridResults
    base: str
    task: str
    margin: Margin
    against: dict[str, Comparison]

    @property
    def adapter(self) -> str:
        return next((arm.name for arm in self.results.arms.values() if arm.kind == "adapter"), "")

    def finals(self, arm: str, done: bool = True) -> list[CellResult]:
        return self.results.select(self.base, self.task, arm, "final", done=done)


_Finding = tuple[bool | None, str]


def _runs(place: _Place) -> _Finding:
    cells = place.finals(place.adapter, done=False) if place.adapter else []
    if not cells:
        return None, "No final cell of the adapter is finished."
    diverged = sum(cell.status == "diverged" for cell in cells)
    if diverged:
        return False, (
            f"{diverged} of {len(cells)} seeds diverged; what stands above is about the others, and so too favourable."
        )
    return True, f"{_seeds(len(cells))} ran to the end."


def _ties(place: _Place) -> _Finding:
    comparison = place.against.get(_LORA)
    if comparison is None:
        return None, f"The arm {_LORA} is missing."
    ours, theirs = (_trainable(place.finals(arm)) for arm in (place.adapter, _LORA))
    counts = f"{ours:,} against {theirs:,} trained numbers."
    if ours >= theirs:
        return False, f"It does not train fewer: {counts}"
    margin = place.margin.of(comparison)
    counts += f" Margin {amount(margin, comparison.measure)}: {_against(comparison)}"
    if comparison.n_seeds < 2:
        return None, f"{counts} One seed says nothing about another."
    if not_worse(comparison, margin):
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
    frozen = [arm.name for arm in place.results.arms_at(place.base, place.task) if arm.kind == "base"]
    if not frozen or measure not in place.finals(frozen[0])[0].metrics:
        return True, f"{evidence} No frozen base was measured, so that two arms which learn nothing would tie too."
    learned = compare_arms(place.results, place.base, place.task, _LORA, frozen[0], measure)
    if learned.better == "first":
        return True, evidence
    return None, f"{evidence} But LoRA is not told apart from the frozen base here, and ties say nothing."


def _beats_matched(place: _Place) -> _Finding:
    matched = [arm.name for arm in place.results.arms.values() if arm.kind == "matched" and arm.name != _SURROGATE]
    return _beats(place, dict.fromkeys((_SAME_COUNT, *matched)))


def _needs_entanglement(place: _Place) -> _Finding:
    adapter = place.results.arms.get(place.adapter)
    if adapter is not None and not adapter.circuit:
        return False, "The adapter has no circuit with entanglement."
    return _beats(place, _WITHOUT_ENTANGLEMENT)


def _beats_surrogate(place: _Place) -> _Finding:
    return _beats(place, (_SURROGATE,))


def _beats(place: _Place, arms: Iterable[str]) -> _Finding:
    """Whether the adapter is better than every one of the arms: one that it does not beat is enough to miss a rung."""
    judged = {arm: _beats_one(place, arm) for arm in arms}
    verdicts = [reached for reached, _ in judged.values()]
    reached = False if False in verdicts else None if None in verdicts else True
    return reached, " ".join(evidence for _, evidence in judged.values())


def _beats_one(place: _Place, arm: str) -> _Finding:
    comparison = place.against.get(arm)
    if comparison is None:
        return None, f"The arm {arm} is missing."
    text = _against(comparison)
    if comparison.n_seeds < 2:
        return None, f"{text} One seed says nothing about another."
    if comparison.better == "first":
        return True, text
    if comparison.better == "second":
        return False, f"{text} {arm} is better."
    text += f" {_not_told_apart(comparison)}"
    if comparison.mde is None or comparison.mde > place.margin.of(comparison):
        return None, f"{text}, {_blind(comparison)}"
    return False, f"{text}."


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


def _against(comparison: Comparison) -> str:
    """`Against lora +3.1 points [1.2, 5.0] (answer accuracy, 5 seeds, 400 items, p = 0.01 corrected).`"""
    parts = [comparison.measure.replace("_", " "), _seeds(comparison.n_seeds)]
    if comparison.n_items:
        parts.append(f"{comparison.n_items} items")
    if comparison.p_holm is not None:
        parts.append(f"p = {comparison.p_holm:.2g} corrected")
    text = f"Against {comparison.second} {comparison} ({', '.join(parts)})."
    if comparison.diverged:
        text += f" Without {comparison.diverged} diverged."
    return text


def _not_told_apart(comparison: Comparison) -> str:
    low, high = comparison.low, comparison.high
    if low is None or high is None:
        return "The seeds do not differ, so that there is no interval"
    if low <= 0 <= high:
        return "The interval does not tell the two apart"
    return "The interval leaves zero out, but not after the correction for all arms"


def _blind(comparison: Comparison) -> str:
    if comparison.mde is None:
        return "and what the design could have seen is unknown."
    design = f"with {_seeds(comparison.n_seeds)}"
    if comparison.n_items:
        design += f" and {comparison.n_items} items"
    return f"and {design} a difference below {amount(comparison.mde, comparison.measure)} could not have been seen."


def _sentence(base: str, task: str, rungs: Sequence[Rung], missed: int) -> str:
    if missed > len(rungs):
        return f"{base}, {task}: all {len(rungs)} rungs are reached."
    reached = f"rung {missed - 1} of {len(rungs)} ({NAMES[missed - 1]})" if missed > 1 else f"no rung of {len(rungs)}"
    rung = rungs[missed - 1]
    why = "not reached" if rung.reached is False else "not known"
    text = f"{base}, {task}: {reached} is reached; rung {missed} ({rung.name}) is {why}."
    above = [str(other.number) for other in rungs[missed:] if other.reached]
    if above:
        text += f" Rung {' and '.join(above)} would be reached, and does not count above a missed one."
    return text


def _trainable(cells: Sequence[CellResult]) -> int:
    return max((cell.accounting.trainable for cell in cells), default=0)


def _seconds_per_step(cell: CellResult) -> float | None:
    steps = max((step for step, _ in cell.losses), default=0)
    return cell.accounting.seconds / steps if steps > 0 and cell.accounting.seconds > 0 else None


def _seeds(n: int) -> str:
    return "1 seed" if n == 1 else f"{n} seeds"
