"""`qpeft train`: one recipe, one run folder."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from qpeft.cli.console import Steps, be_quiet, calm_libraries, notes, print_json, results
from qpeft.cli.tables import number, training_table
from qpeft.errors import InputError


def run(recipe_path: Path, overrides: list[str], resume: bool, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    if "LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0":
        be_quiet(True)  # of several processes the first one speaks
    with Steps() as say:
        say("starting")
        from qpeft.training import ranks

    ranks.join()
    try:
        _run(recipe_path, overrides, resume, overwrite, dry_run, as_json)
    except ranks.SaidElsewhere as error:
        raise typer.Exit(1) from error


def _run(recipe_path: Path, overrides: list[str], resume: bool, overwrite: bool, dry_run: bool, as_json: bool) -> None:
    from qpeft.training import ranks

    with ranks.together():
        recipe = _read(recipe_path, overrides)
    calm_libraries()
    if dry_run:
        _dry_run(recipe, as_json)
        return

    from qpeft.cli.progress import ProgressCallback
    from qpeft.training import RunFolder, train

    with Steps() as say:
        progress = ProgressCallback(Path(recipe.output).name, say)
        result = train(recipe, resume=resume, overwrite=overwrite, callbacks=[progress], say=say)
    if not ranks.is_first():
        return  # the first one measures and reports
    if recipe.training.diagnostics_steps is not None:
        _draw_diagnostics(RunFolder(recipe.output))
    summary: dict[str, Any] = {"run": recipe.output, "training": asdict(result)}
    if recipe.evaluation.task is not None:
        from qpeft.cli.evaluate import evaluate_run

        summary["evaluation"] = evaluate_run(recipe)
    if as_json:
        print_json(summary)
    else:
        results.print(training_table(summary))
        notes.print(f"adapter, metrics and recipe are in {recipe.output}")


def _read(recipe_path: Path, overrides: list[str]) -> Any:
    from qpeft.training.recipe import load_recipe

    if recipe_path.is_dir():
        if not (recipe_path / "recipe.yaml").exists():
            raise InputError(f"{recipe_path} is a folder without recipe.yaml: give a recipe or a run folder")
        # the folder may have been moved, or be named from another place than before
        overrides = [f"output={json.dumps(str(recipe_path))}", *overrides]
        recipe_path = recipe_path / "recipe.yaml"
    return load_recipe(recipe_path, overrides)


def _draw_diagnostics(folder: Any) -> None:
    from qpeft.compare.diagnostics_plot import plot_diagnostics
    from qpeft.training.run_folder import read_metrics

    picture = plot_diagnostics(read_metrics(folder.metrics), folder.plots / "diagnostics.png")
    if picture is not None:
        notes.print(f"what the adapters did: {picture}")


def _dry_run(recipe: Any, as_json: bool) -> None:
    from qpeft.training import dry_run, ranks

    with Steps() as say, ranks.together():
        ready = dry_run(recipe, say)
    if not ranks.is_first():
        return
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
