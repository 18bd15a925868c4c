"""Publishes finished comparisons, and writes their tables into the page of the study.

    python benchmarks/study.py arithmetic chip ...    runs/compare/NAME -> docs/results/NAME, then all tables
    python benchmarks/study.py                        the tables alone, from what is published

In docs/results/study.md a table stands between two comments, of which the first says what it is:

    <!-- table: arithmetic -->             every arm's final runs
    <!-- rates: arithmetic mean_train_loss adapter lora ... -->    a loss of the sweep by learning rate
    <!-- executors: chip -->               the trained adapter, evaluated in several ways
    <!-- settings: search -->              the search: validation loss of the sweep, then fresh seeds
    <!-- losses: smollm2-counsel -->       losses of the final runs
    <!-- end -->
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RUNS, RESULTS = ROOT / "runs" / "compare", ROOT / "docs" / "results"
PUBLISHED = ("report.md", "report.json", "cells.jsonl", "plan.yaml", "arms.json")
TABLE = re.compile(r"(<!-- (\w+): ([^>]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def publish(name: str) -> None:
    """Copy a comparison's report and raw numbers; of the machine's name for itself only its kind is kept."""
    source, target = RUNS / name, RESULTS / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in PUBLISHED:
        text = (source / file).read_text(encoding="utf-8")
        text = re.sub(r"Linux-[^\",;]*?x86_64-with-glibc[0-9.]+", "Linux x86_64", text)
        (target / file).write_text(text, encoding="utf-8")
    shutil.copytree(source / "plots", target / "plots")


def place_of(name: str) -> dict[str, Any]:
    """The numbers of a comparison with one base and one task."""
    (place,) = json.loads((RESULTS / name / "report.json").read_text(encoding="utf-8"))["places"]
    return dict(place)


def table(name: str) -> Iterable[Sequence[str]]:
    place = place_of(name)
    metric = place["metric"]
    share = "accuracy" in metric
    against = {each["second"]: each for each in place["comparisons"] if each["measure"] == metric}
    heads = ["arm", "trained", "train loss", "validation loss"]
    points = ", points" if share else ""
    yield [
        *heads,
        named(metric) + (", %" if share else ""),
        f"QTHA minus this arm{points}",
        "p (Holm)",
        f"MDE{points}",
    ]
    for arm in place["arms"]:
        if arm["stage"] != "final" or not arm["seeds"]:
            continue
        each = against.get(arm["name"])
        yield [
            arm["label"], size_of(arm)[0],
            "" if arm["kind"] == "evaluation" else mean_of(arm, "train_loss"),
            mean_of(arm, "eval_loss"),
            interval_of(arm, metric, 100 if share else 1, 1 if share else 3),
            each["text"].replace(" points", "") if each else "",
            f"{each['p_holm']:.3f}" if each and each["p_holm"] is not None else "",
            _amount(each["mde"], share) if each else "",
        ]  # fmt: skip


def rates(name: str, measure: str, *arms: str) -> Iterable[Sequence[str]]:
    place = place_of(name)
    labels = {arm["name"]: arm["label"] for arm in place["arms"]}
    found: dict[str, dict[float, list[float | None]]] = {}
    for cell in place["cells"]:
        if cell["stage"] == "sweep" and cell["arm"] in arms:
            found.setdefault(cell["arm"], {}).setdefault(cell["learning_rate"], []).append(cell[measure])
    columns = sorted(set().union(*(found[arm] for arm in arms)))
    yield ["arm", *(f"{rate:g}" for rate in columns)]
    for arm in arms:
        yield [labels[arm], *(_mean_text(found[arm][rate]) if rate in found[arm] else "" for rate in columns)]


def executors(name: str) -> Iterable[Sequence[str]]:
    place = place_of(name)
    by_arm: dict[str, list[dict[str, Any]]] = {}
    for cell in place["cells"]:
        by_arm.setdefault(cell["arm"], []).append(cell)
    exact = by_arm["adapter"]
    yield [
        "circuits",
        f"validation loss, {len(exact)} seed{'s' * (len(exact) > 1)}",
        "minus exact, mean",
        "strict accuracy, %",
    ]
    for arm in place["arms"]:
        cells = sorted(by_arm.get(arm["name"], []), key=lambda cell: int(cell["seed"]))
        if arm["kind"] not in ("adapter", "evaluation") or not cells:
            continue
        before = {cell["seed"]: cell["eval_loss"] for cell in exact}
        more = [cell["eval_loss"] - before[cell["seed"]] for cell in cells]
        yield [
            "exact, as trained" if arm["kind"] == "adapter" else arm["label"],
            ", ".join(f"{cell['eval_loss']:.3f}" for cell in cells),
            "" if arm["kind"] == "adapter" else f"{sum(more) / len(more):+.4f}",
            ", ".join(f"{100 * cell['metrics']['strict_accuracy']:.0f}" for cell in cells),
        ]


def settings(name: str) -> Iterable[Sequence[str]]:
    place = place_of(name)
    swept: dict[str, float] = {}
    for cell in place["cells"]:
        if cell["stage"] == "sweep" and cell["eval_loss"] is not None:
            swept[cell["arm"]] = min(cell["eval_loss"], swept.get(cell["arm"], float("inf")))
    final = f"final, {max(len(arm['seeds']) for arm in place['arms'])} seeds:"
    heads = ["arm", "trained", "rate", "sweep: validation loss", f"{final} train loss", "mean train loss"]
    yield [*heads, "validation loss", "strict accuracy, %"]
    for arm in sorted(place["arms"], key=lambda arm: swept.get(arm["name"], float("inf"))):
        if arm["name"] in swept:
            measures = [mean_of(arm, each) for each in ("train_loss", "mean_train_loss", "eval_loss")]
            accuracy = interval_of(arm, "strict_accuracy", 100, 1)
            yield [arm["label"], *size_of(arm), f"{swept[arm['name']]:.3f}", *measures, accuracy]


def losses(name: str) -> Iterable[Sequence[str]]:
    place = place_of(name)
    yield [
        "arm",
        *(f"{each}, nats a token" for each in ("mean train loss", "train loss", "validation loss", "test loss")),
    ]
    for arm in place["arms"]:
        measures = ("mean_train_loss", "train_loss", "eval_loss", "loss")
        yield [arm["label"], *(interval_of(arm, each, 1, 3) for each in measures)]


def size_of(arm: dict[str, Any]) -> tuple[str, str]:
    """Trained numbers and learning rate."""
    rate = f"{arm['learning_rate']:g}" if arm["learning_rate"] else ""
    return f"{int(arm['accounting'].get('trainable') or 0):,}", rate


def mean_of(arm: dict[str, Any], measure: str) -> str:
    found = arm["measures"].get(measure) or {}
    return "" if found.get("mean") is None else f"{found['mean']:.3f}"


def interval_of(arm: dict[str, Any], measure: str, scale: float, digits: int) -> str:
    found = arm["measures"].get(measure) or {}
    if found.get("mean") is None:
        return ""
    text = f"{scale * found['mean']:.{digits}f}"
    if found["low"] is None:
        return text
    return f"{text} [{scale * found['low']:.{digits}f}, {scale * found['high']:.{digits}f}]"


def named(measure: str) -> str:
    return "test loss" if measure == "loss" else measure.replace("_", " ")


def _amount(difference: float | None, share: bool) -> str:
    if difference is None:
        return ""
    return f"{100 * difference:.1f}" if share else f"{difference:.3f}"


def _mean_text(losses: Sequence[float | None]) -> str:
    known = [loss for loss in losses if loss is not None]
    return f"{sum(known) / len(known):.3f}" if len(known) == len(losses) else "diverged"


KINDS: dict[str, Callable[..., Iterable[Sequence[str]]]] = {
    "table": table, "rates": rates, "executors": executors, "settings": settings, "losses": losses,
}  # fmt: skip


def refresh(page: str) -> str:
    """The page with every table written anew."""

    def written(match: re.Match[str]) -> str:
        heads, *rows = KINDS[match[2]](*match[3].split())
        lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
        return match[1] + "\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + match[4]

    return TABLE.sub(written, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="comparisons in runs/compare to publish first")
    for name in parser.parse_args().names:
        publish(name)
    page = RESULTS / "study.md"
    page.write_text(refresh(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
