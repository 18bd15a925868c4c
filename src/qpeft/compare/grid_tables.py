"""The tables of a grid's report, from its numbers: text that is the same in every format."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from qpeft.compare.document import Table
from qpeft.compare.grid_numbers import ArmNumbers, PlaceNumbers
from qpeft.compare.results import LOWER_IS_BETTER
from qpeft.compare.statistics import Comparison, SeedSummary, amount, is_share, value_of

NOTHING = "–"
_KINDS = {
    "adapter": "under test",
    "reference": "reference",
    "matched": "matched",
    "control": "control",
    "evaluation": "evaluation",
    "base": "frozen base",
}


def name_of(measure: str) -> str:
    """A measure for people: `strict accuracy`."""
    return measure.replace("_", " ")


def headline(place: PlaceNumbers) -> Table:
    """The few arms that matter: the adapter, its references, the best matched method, the best control, the base."""
    against = {each.second: each for each in place.comparisons if each.measure == place.metric}
    rows = []
    for arm in headline_arms(place):
        each = against.get(arm.info.name)
        gap = NOTHING if each is None else f"{each} ({judgement(each)})"
        rows.append(
            (arm.info.label, _count(arm, "trainable"), _percent(arm.share), number(arm.mean("train_loss")),
             number(arm.mean("eval_loss")), _summary(arm.measures.get(place.metric), place.metric), gap)
        )  # fmt: skip
    heads = ("", "trained numbers", _share_head(place), "train loss", "eval loss", _metric_head(place.metric),
             "adapter minus this arm")  # fmt: skip
    return _shown(Table(heads, tuple(rows)), always=5)


def headline_arms(place: PlaceNumbers) -> list[ArmNumbers]:
    """Arms of the headline that have numbers; of several matched methods or controls the best by what decides."""
    chosen: list[ArmNumbers] = []
    for kind, most in (("adapter", 1), ("reference", 2), ("matched", 1), ("control", 1), ("base", 1)):
        arms = [arm for arm in place.arms if arm.info.kind == kind and arm.stage is not None]
        if kind in ("matched", "control"):
            arms.sort(key=lambda arm: _badness(arm, place))
        chosen += arms[:most]
    return chosen


def all_arms(place: PlaceNumbers) -> Table:
    """Every arm with all that was measured; columns that nothing fills are left out."""
    heads = ("arm", "kind", "trained numbers", "of these angles", _share_head(place), "learning rate", "seeds",
             "diverged runs", "train loss", "eval loss", *map(_metric_head, place.metrics), "tokens/s", "adapter",
             "peak memory", "FLOPs", "circuits")  # fmt: skip
    rows = []
    for arm in place.arms:
        final = arm.stage == "final"
        rows.append(
            (
                arm.info.label,
                _KINDS[arm.info.kind],
                _count(arm, "trainable"),
                _count(arm, "angles"),
                _percent(arm.share),
                NOTHING if arm.learning_rate is None else f"{arm.learning_rate:.3g}" + " (edge)" * arm.at_edge,
                "none yet" if arm.stage is None else str(len(arm.seeds)) if final else f"{len(arm.seeds)} (sweep)",
                _diverged(arm),
                *_losses(arm),
                *(_summary(arm.measures.get(metric), metric) for metric in place.metrics),
                _positive(arm, "tokens_per_second", "{:,.0f}"),
                _bytes(arm.accounting.get("adapter_bytes")),
                _bytes(arm.accounting.get("peak_memory_bytes")),
                _positive(arm, "flops", "{:.2e}"),
                _count(arm, "circuits"),
            )
        )
    return _shown(Table(heads, tuple(rows)), always=10)


def comparison_table(place: PlaceNumbers, measure: str) -> Table:
    """The adapter minus every other arm by one measure."""
    labels = {arm.info.name: arm.info.label for arm in place.arms}
    heads = ("adapter minus", "difference [95 %]", "p", "p (Holm)", "minimum detectable", "seeds", "items", "verdict")
    rows = [
        (labels.get(each.second, each.second), str(each), _p(each.p), _p(each.p_holm),
         NOTHING if each.mde is None else amount(each.mde, measure), str(each.n_seeds), str(each.n_items or NOTHING),
         judgement(each))
        for each in comparisons_by(place, measure)
    ]  # fmt: skip
    return Table(heads, tuple(rows))


def judgement(each: Comparison) -> str:
    """What the corrected test says; that one seed stands behind it is never left out."""
    text = {"first": "adapter better", "second": "adapter worse", None: "not told apart"}[each.better]
    if each.p is None:
        text = "no interval"
    return text + ", one seed" * (each.n_seeds == 1)


def comparisons_by(place: PlaceNumbers, measure: str) -> list[Comparison]:
    return [each for each in place.comparisons if each.measure == measure]


def sweep_table(place: PlaceNumbers) -> Table:
    """Mean validation loss of every arm and learning rate; a mark at the chosen one."""
    rates = sorted({rate for arm in place.arms for rate in arm.sweep})
    rows = []
    for arm in place.arms:
        if not arm.sweep:
            continue
        finished = {rate: loss for rate, loss in arm.sweep.items() if loss is not None}
        best = min(finished, key=lambda rate: (finished[rate], rate), default=None)
        cells = [
            NOTHING if rate not in arm.sweep
            else "diverged" if arm.sweep[rate] is None
            else ("✓ " if rate == best else "") + number(arm.sweep[rate])
            for rate in rates
        ]  # fmt: skip
        rows.append((arm.info.label, *cells))
    return Table(("arm", *(f"{rate:.3g}" for rate in rates)), tuple(rows))


def run_table(place: PlaceNumbers) -> Table:
    """Every final run."""
    labels = {arm.info.name: arm.info.label for arm in place.arms}
    heads = ("arm", "seed", "learning rate", "train loss", "mean train loss", "eval loss",
             *map(_metric_head, place.metrics), "seconds", "status")  # fmt: skip
    rows = [
        (labels[cell.arm], str(cell.seed), f"{cell.learning_rate:.3g}" if cell.learning_rate else NOTHING,
         *(number(value_of(cell, name)) for name in ("train_loss", "mean_train_loss", "eval_loss")),
         *(_value(value_of(cell, metric), metric) for metric in place.metrics),
         f"{cell.accounting.seconds:,.1f}" if cell.accounting.seconds else NOTHING,
         "done" if cell.status == "done" else f"diverged: {cell.reason}")
        for cell in place.cells if cell.stage == "final"
    ]  # fmt: skip
    return Table(heads, tuple(rows))


def number(value: float | None) -> str:
    """A loss with as many digits as tell arms apart."""
    if value is None:
        return NOTHING
    return f"{value:.{3 if abs(value) >= 0.1 else 4 if abs(value) >= 0.01 else 6}f}"


def _value(value: float | None, measure: str) -> str:
    return f"{100 * value:.1f}" if is_share(measure) and value is not None else number(value)


def _summary(found: SeedSummary | None, measure: str) -> str:
    """`54.5 [47.6, 61.2]`: mean over the seeds and its interval."""
    if found is None or found.mean is None:
        return NOTHING
    text = _value(found.mean, measure)
    if found.low is None or found.high is None or found.n < 2:
        return text
    return f"{text} [{_value(found.low, measure)}, {_value(found.high, measure)}]"


def _losses(arm: ArmNumbers) -> tuple[str, str]:
    return _summary(arm.measures.get("train_loss"), "train_loss"), _summary(arm.measures.get("eval_loss"), "eval_loss")


def _metric_head(metric: str) -> str:
    return name_of(metric) + (", %" if is_share(metric) else "") + " (test)" * (metric not in ("train_loss",))


def _share_head(place: PlaceNumbers) -> str:
    return "share of " + textwrap.shorten(place.reference or "LoRA", 40, placeholder="…")


def _badness(arm: ArmNumbers, place: PlaceNumbers) -> float:
    value = arm.mean(place.metric)
    if value is not None:
        return value if place.metric in LOWER_IS_BETTER else -value
    loss = arm.mean("eval_loss")
    return float("inf") if loss is None else 1e6 + loss  # after all that were tested


def _diverged(arm: ArmNumbers) -> str:
    parts = [f"{len(arm.diverged)} final"] if arm.diverged else []
    parts += [f"{arm.diverged_sweep} sweep"] if arm.diverged_sweep else []
    return ", ".join(parts) or ("0" if arm.stage else NOTHING)


def _count(arm: ArmNumbers, key: str) -> str:
    known = arm.accounting.get("trainable") or arm.info.kind == "base"  # a diverged run may not have counted
    return f"{arm.accounting[key]:,}" if arm.accounting and known else NOTHING


def _positive(arm: ArmNumbers, key: str, form: str) -> str:
    value = arm.accounting.get(key)
    return form.format(value) if value else NOTHING


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:.1f} %"


def _p(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2g}" if value >= 0.001 else "< 0.001"


def _bytes(value: float | None) -> str:
    if not value:
        return NOTHING
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.0f} B"


def _shown(table: Table, always: int) -> Table:
    """The table without columns that nothing fills, the first ones excepted."""
    keep = [
        place for place in range(len(table.heads))
        if place < always or any(row[place] not in (NOTHING, "0") for row in table.rows)
    ]  # fmt: skip
    return Table(_pick(table.heads, keep), tuple(_pick(row, keep) for row in table.rows))


def _pick(line: Sequence[str], places: Sequence[int]) -> tuple[str, ...]:
    return tuple(line[place] for place in places)
