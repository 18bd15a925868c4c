"""`qpeft eval`: measure a run, an adapter or a base model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.cli.console import Steps, calm_libraries, notes, print_json, results
from qpeft.cli.tables import evaluation_table, execution_table
from qpeft.errors import InputError

if TYPE_CHECKING:
    from qpeft.training import Recipe
    from qpeft.training.execution import ExecutionSection
    from qpeft.training.workload import Call


def run(
    target: str,
    overrides: list[str],
    recipe: Path | None,
    task: str | None,
    data: str | None,
    limit: int | None,
    batch_size: int | None,
    max_new_tokens: int | None,
    seed: int,
    output: Path | None,
    as_json: bool,
    execution: Mapping[str, Any] | None = None,
) -> None:
    with Steps() as say:
        say("starting")
        from qpeft.evaluation import TASKS

    if task is not None and task not in TASKS:
        raise InputError(f"there is no task {task!r}: choose one of {', '.join(TASKS)}")
    calm_libraries()
    result = measure(target, overrides, recipe, task, data, limit, batch_size, max_new_tokens, seed, execution)
    if output is not None:
        from qpeft.training.run_folder import write_json

        write_json(output, {"target": target, "evaluation": result})
        notes.print(f"every answer is in {output}")
    shown = {key: value for key, value in result.items() if key != "records"}
    if as_json:
        print_json(shown)
    else:
        results.print(evaluation_table(target, shown))
        if "execution" in shown:
            results.print(execution_table(shown["execution"]))


def measure(
    target: str,
    overrides: Sequence[str] = (),
    recipe_path: Path | None = None,
    task: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    execution: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Open the target, run the task, give metrics and records.

    What is not given comes from `recipe_path`, else from the run's own recipe, else from the defaults. Circuits run on
    the simulator unless `execution` names an executor; what else it needs comes from the recipe's execution section.
    """
    from qpeft.cli.progress import counting
    from qpeft.evaluation import Settings, run_task
    from qpeft.training.datasets import held_out_examples
    from qpeft.training.execution import ExecutionSection, executing
    from qpeft.training.recipe import DataSection, EvaluationSection, load_recipe
    from qpeft.training.target import open_target
    from qpeft.training.workload import evaluation_calls

    own = Path(target) / "recipe.yaml"
    if recipe_path is None and own.is_file():
        recipe_path = own
    if overrides and recipe_path is None:
        raise InputError(f"{overrides[0]} overrides a recipe, and {target} has none: name one with --recipe")
    recipe = load_recipe(recipe_path, overrides) if recipe_path else None
    section = recipe.evaluation if recipe else EvaluationSection()
    source = recipe.data if recipe else DataSection()
    task = task or section.task
    if task is None:
        raise InputError(
            "say what to measure: --task arithmetic, gsm8k, mawps, perplexity, dialogue or classification"
        )
    if data is None and task != "arithmetic" and source.test is None and (recipe is None or task != "perplexity"):
        raise InputError(f"task {task} needs a test set: give one with --data, or a recipe that names data.test")
    if data is not None:
        source = source.model_copy(update={"test": data})
    elif task == "arithmetic":
        source = source.model_copy(update={"test": "arithmetic"})
    where = execution_section(recipe.execution if recipe else ExecutionSection(), execution or {})
    # examples first: a missing file should show before a model is loaded
    examples = held_out_examples(source, limit or section.limit, seed)
    with Steps() as say:
        opened = open_target(target, say=say, num_labels=2 if task == "classification" and recipe is None else None)
    settings = Settings(
        max_new_tokens=max_new_tokens or section.max_new_tokens,
        batch_size=batch_size or section.batch_size,
        max_length=source.max_length,
        format=source.format,
        system=source.system,
    )
    folder = opened.run.path if opened.run else None
    calls: list[Call] = []
    if where.executor != "exact" and task not in ("perplexity", "classification"):
        lengths = [len(opened.tokenizer(example.question)["input_ids"]) for example in examples]
        sizes = (settings.batch_size, settings.max_new_tokens or 256, max(1, sum(lengths) // len(lengths)))
        calls = evaluation_calls(where, opened.model, len(examples), *sizes)
    with executing(where, opened.model, folder, calls) as run, counting(f"{task}, {Path(target).name}") as progress:
        result = run_task(task, opened.model, opened.tokenizer, examples, settings, progress).to_dict()
        return result if run is None else {**result, "execution": asdict(run.report())}


def execution_section(section: ExecutionSection, given: Mapping[str, Any]) -> ExecutionSection:
    """The recipe's section with what the flags say; without `--executor` the simulator, whatever the recipe says."""
    from pydantic import ValidationError

    wanted = {key: value for key, value in given.items() if value is not None}
    if "executor" not in wanted:
        if wanted:
            raise InputError(f"--{next(iter(wanted))} does nothing without --executor: name one, as virtual-wukong")
        return type(section)()
    try:
        return type(section).model_validate({**section.model_dump(), **wanted})
    except ValidationError as error:
        raise InputError(error.errors()[0]["msg"].removeprefix("Value error, ")) from error


def evaluate_run(recipe: Recipe) -> dict[str, Any]:
    """Measure a finished run as its recipe says; keep the metrics in its result and every answer beside it.

    A run that was measured so before is not measured again.
    """
    from qpeft.training.model_card import write_run_card
    from qpeft.training.run_folder import RunFolder, write_json, write_text

    folder = RunFolder(recipe.output)
    stored = json.loads(folder.result.read_text(encoding="utf-8"))
    settings = recipe.evaluation.model_dump()
    if "evaluation" in stored and stored.get("evaluated_with") == settings:
        return stored["evaluation"]
    result = measure(recipe.output, [f"evaluation={json.dumps(settings)}"])
    records = result.pop("records")
    write_text(folder.answers, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records))
    numbers = {**stored, "evaluation": result, "evaluated_with": settings}
    write_run_card(folder, numbers)
    write_json(folder.result, numbers)
    return result
