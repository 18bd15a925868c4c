"""`qpeft eval --harness`: a run, an adapter or a base model on tasks of lm-evaluation-harness."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from qpeft.cli.console import Steps, calm_libraries, notes, print_json, results
from qpeft.cli.evaluate import execution_section
from qpeft.cli.tables import execution_table, number
from qpeft.errors import InputError

if TYPE_CHECKING:
    from qpeft.evaluation.harness import HarnessMetric, HarnessResult


def run(
    target: str,
    overrides: list[str],
    recipe_path: Path | None,
    tasks: str,
    folder: Path | None,
    n_shot: int | None,
    chat_template: bool,
    limit: int | None,
    batch_size: int | None,
    max_new_tokens: int | None,
    seed: int,
    output: Path | None,
    as_json: bool,
    execution: Mapping[str, Any],
) -> None:
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    if not names:
        raise InputError("--harness needs tasks: --harness gsm8k,hellaswag")
    with Steps() as say:
        say("starting")
        calm_libraries()
        from qpeft.evaluation.harness import load_tasks, run_harness
        from qpeft.training.execution import ExecutionSection, executing
        from qpeft.training.recipe import load_recipe
        from qpeft.training.target import open_target

        own = Path(target) / "recipe.yaml"
        recipe_path = recipe_path or (own if own.is_file() else None)
        if overrides and recipe_path is None:
            raise InputError(f"{overrides[0]} overrides a recipe, and {target} has none: name one with --recipe")
        recipe = load_recipe(recipe_path, overrides) if recipe_path else None
        where = execution_section(recipe.execution if recipe else ExecutionSection(), execution)
        say("reading the tasks")
        loaded = load_tasks(names, folder)
        opened = open_target(target, say=say)
    if opened.recipe is not None and opened.recipe.model.task == "sequence-classification":
        raise InputError(f"{target} is a classifier, and the harness asks language models: use --task classification")
    system = recipe.data.system if recipe and chat_template else None
    ledger = opened.run.path if opened.run else None
    with executing(where, opened.model, ledger) as chip, _bars():
        measured = run_harness(
            opened.model, opened.tokenizer, loaded, limit, batch_size or 8, n_shot, max_new_tokens, chat_template,
            system, seed,
        )  # fmt: skip
        report = None if chip is None else asdict(chip.report())
    found = _to_json(target, measured, report)
    if output is not None:
        from qpeft.training.run_folder import write_json

        records = {result.task: [_plain(record) for record in result.records] for result in measured}
        write_json(output, {**found, "records": records})
        notes.print(f"every answer is in {output}")
    if as_json:
        print_json(found)
        return
    results.print(_table(target, measured))
    if report is not None:
        results.print(execution_table(report))


def _table(target: str, measured: list[HarnessResult]) -> Table:
    table = Table(title=f"{Path(target).name}: lm-evaluation-harness")
    for heading in ("task", "metric"):
        table.add_column(heading)
    for heading in ("n", "shots", "value", "± stderr", "95 % interval"):
        table.add_column(heading, justify="right")
    for result in measured:
        first = (result.task, str(result.n or ""), "" if result.n_shot is None else str(result.n_shot))
        for name, metric in result.metrics.items():
            table.add_row(first[0], name.replace(",", ", "), first[1], first[2], *_shown(metric))
            first = ("", "", "")
    return table


def _shown(metric: HarnessMetric) -> tuple[str, str, str]:
    scale, unit = (100, " %") if metric.is_share else (1, "")
    values = [None if one is None else number(scale * one) for one in (metric.value, metric.stderr)]
    interval = "" if metric.low is None or metric.high is None else f"[{number(scale * metric.low)}, "
    return (
        f"{values[0]}{unit}",
        values[1] or "",
        interval and f"{interval}{number(scale * float(metric.high or 0))}]",
    )


def _to_json(target: str, measured: list[HarnessResult], report: dict[str, Any] | None) -> dict[str, Any]:
    from importlib.metadata import version

    tasks = {}
    for result in measured:
        plain = asdict(result)
        del plain["records"], plain["task"]
        tasks[result.task] = _plain(plain)
    found = {"target": target, "harness": version("lm_eval"), "tasks": tasks}
    return found if report is None else {**found, "execution": report}


def _plain(value: Any) -> Any:
    """Values JSON knows: a number it does not (NaN, infinity) becomes null, any other object its text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


@contextlib.contextmanager
def _bars() -> Iterator[None]:
    """The harness draws bars of its own on the error stream; `--quiet` keeps them away, too."""
    if not notes.quiet:
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield
