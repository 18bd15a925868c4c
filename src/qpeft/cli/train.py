"""`qpeft train`: one recipe, one run folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qpeft.cli.console import Steps, calm_libraries, notes, print_json, results
from qpeft.cli.tables import number, training_table
from qpeft.errors import InputError


def run(recipe_path: Path, overrides: list[str], resume: bool, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    with Steps() as say:
        say("starting")
        from qpeft.training.recipe import load_recipe

    if recipe_path.is_dir():
        if not (recipe_path / "recipe.yaml").exists():
            raise InputError(f"{recipe_path} is a folder without recipe.yaml: give a recipe or a run folder")
        # the folder may have been moved, or be named from another place than before
        overrides = [f"output={json.dumps(str(recipe_path))}", *overrides]
        recipe_path = recipe_path / "recipe.yaml"
    recipe = load_recipe(recipe_path, overrides)
    calm_libraries()
    if dry_run:
        _dry_run(recipe, as_json)
        return

    from qpeft.cli.progress import ProgressCallback
    from qpeft.training import train

    with Steps() as say:
        progress = ProgressCallback(Path(recipe.output).name, say)
        result = train(recipe, resume=resume, overwrite=overwrite, callbacks=[progress], say=say)
    summary: dict[str, Any] = {"run": recipe.output, "training": asdict(result)}
    if recipe.evaluation.task is not None:
        from qpeft.cli.evaluate import evaluate_run

        summary["evaluation"] = evaluate_run(recipe)
    if as_json:
        print_json(summary)
    else:
        results.print(training_table(summary))
        notes.print(f"adapter, metrics and recipe are in {recipe.output}")


def _dry_run(recipe: Any, as_json: bool) -> None:
    from qpeft.training import dry_run

    with Steps() as say:
        ready = dry_run(recipe, say)
    if as_json:
        print_json({"parameters": ready.parameters, "steps": ready.steps, "data": asdict(ready.report)})
        return
    report = ready.report
    results.print(recipe.to_yaml().rstrip(), markup=False)
    results.print(
        f"\nThe recipe is good: {ready.steps} steps over {report.kept} examples "
        f"({report.dropped} dropped, longest {report.longest} tokens), "
        f"{number(ready.parameters['total'])} trainable parameters. Nothing was written."
    )
