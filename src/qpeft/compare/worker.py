"""Doing one job of a comparison: train, measure, give back plain values. Runs in a process of an engine.

The base model of the last job stays loaded. What is measured is always the adapter as it was saved, put on that base
again, so that a job that was killed between training and measuring goes on where it stopped; what it had measured
lies in the run folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from qpeft.adapters.execution import quantum_layers, run_on
from qpeft.compare.cells import Job, Part
from qpeft.compare.results import Accounting, CellResult
from qpeft.data import Example, encode_dataset
from qpeft.errors import Diverged, InputError
from qpeft.evaluation import Settings, run_task
from qpeft.evaluation.perplexity import measure_loss
from qpeft.layer import QuantumLayer
from qpeft.training import library_noise, ranks
from qpeft.training.bases import BaseModels
from qpeft.training.datasets import held_out_examples, training_examples
from qpeft.training.execution import ExecutionSection, executing
from qpeft.training.recipe import Recipe, make_recipe
from qpeft.training.run import TrainingResult, train
from qpeft.training.run_folder import RunFolder, read_metrics, versions, write_json
from qpeft.training.target import attach_adapter

#: folder of a run that holds what was measured of it, a file a part
_MEASURED = "measured"

#: samples of the validation set whose mean a branch is replaced by
_REFERENCE_SAMPLES = 64

#: item-wise measures by the key of a task's records
_ITEMS = {"answer_correct": "answer", "strict_correct": "strict", "loss": "loss", "tokens": "tokens"}


def work(values: Mapping[str, Any]) -> dict[str, Any]:
    """Do a job, given and answered as plain values: `{"cells": [result of every part, in order]}`.

    Raises:
        InputError: The job's recipe cannot be used.
        Interrupted: The process was asked to stop; a checkpoint has been saved.
    """
    job = Job.from_dict(values)
    bases = _bases()
    try:
        cells = _measure_base(job, bases) if job.recipe.get("adapter") is None else _train(job, bases)
    finally:
        bases.release()
    return {"cells": [cell.to_dict() for cell in cells]}


@cache
def _bases() -> BaseModels:
    library_noise.turn_off()
    return BaseModels(keep=True)


def _train(job: Job, bases: BaseModels) -> list[CellResult]:
    recipe = make_recipe(job.recipe, source=job.name)
    folder = RunFolder(recipe.output)
    # what a killed worker left is gone on with; what cannot be gone on with is done again
    started = folder.recipe.exists()
    try:
        result = train(recipe, resume=started, bases=bases, activations=_path(job.cache_folder))
    except Diverged as error:
        bases.release()
        shutil.rmtree(folder.path, ignore_errors=True)
        return [_cell(job, part, status="diverged", reason=str(error).split(";")[0]) for part in job.parts]
    finally:
        bases.release()
    lines = read_metrics(folder.metrics)
    losses = [(line["step"], _rounded(line["loss"])) for line in lines if "loss" in line]
    trained: dict[str, Any] = {
        "train_loss": _rounded(result.train_loss),
        "mean_train_loss": _rounded(sum(loss for _, loss in losses) / len(losses)) if losses else None,
        "eval_loss": None if result.eval_loss is None else _rounded(result.eval_loss),
        "losses": tuple(losses),
        "eval_losses": tuple((line["step"], _rounded(line["eval_loss"])) for line in lines if "eval_loss" in line),
        "versions": versions(),
    }
    place, _ = ranks.device_for(recipe.model.device)
    model = attach_adapter(bases.model(recipe.model, place), folder.adapter, recipe.model.name)
    bases.lend(model)
    tokens = max((line.get("num_tokens", 0) for line in lines), default=0)
    trained["accounting"] = _accounting(job, recipe, folder, result, model, bases, int(tokens))
    if job.stage == "sweep":
        cells = [_cell(job, job.parts[0], **trained)]
    else:
        test = held_out_examples(recipe.data, recipe.evaluation.limit)
        cells = []
        for part in job.parts:
            file = folder.path / _MEASURED / f"{part.name}.json"
            measured = _read_measured(file, part)
            if measured is None:
                with _evaluated_as(part, model, recipe, bases):
                    measured = _measure(model, recipe, bases, test)
                write_json(file, {"key": part.key, **measured})
            cells.append(_cell(job, part, **{**trained, **measured}))
    if not job.keep_adapter:
        bases.release()
        shutil.rmtree(folder.path, ignore_errors=True)
    return cells


def _read_measured(file: Path, part: Part) -> dict[str, Any] | None:
    """What a job that was stopped had measured of a part; None where that is nothing, or something else."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values.pop("key") != part.key:
            return None
        return {**values, "items": {name: tuple(column) for name, column in values["items"].items()}}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _measure_base(job: Job, bases: BaseModels) -> list[CellResult]:
    recipe = make_recipe(job.recipe, source=job.name)
    place, _ = ranks.device_for(recipe.model.device)
    model = bases.model(recipe.model, place).eval()
    test = held_out_examples(recipe.data, recipe.evaluation.limit)
    return [_cell(job, job.parts[0], versions=versions(), **_measure(model, recipe, bases, test))]


def _cell(job: Job, part: Part, **values: Any) -> CellResult:
    return CellResult(
        base=job.base, task=job.task, arm=part.arm, learning_rate=job.learning_rate, seed=job.seed, stage=job.stage,
        **values,
    )  # fmt: skip


def _measure(model: nn.Module, recipe: Recipe, bases: BaseModels, test: Sequence[Example]) -> dict[str, Any]:
    """Test metrics, item by item too, and the validation loss."""
    section, data, tokenizer = recipe.evaluation, recipe.data, bases.tokenizer(recipe.model)
    settings = Settings(
        max_new_tokens=section.max_new_tokens,
        batch_size=section.batch_size,
        max_length=data.max_length,
        format=data.format,
        system=data.system,
    )
    result = run_task(str(section.task), model, tokenizer, test, settings)
    items = {
        name: tuple(_rounded(float(record[key])) for record in result.records)
        for key, name in _ITEMS.items()
        if result.records and all(record.get(key) is not None for record in result.records)
    }
    measured: dict[str, Any] = {
        "metrics": {name: _rounded(metric.value) for name, metric in result.metrics.items()},
        "items": items,
    }
    if recipe.model.task == "causal-lm":
        measured["eval_loss"] = _rounded(measure_loss(model, _validation(recipe, bases)).loss)
    return measured


def _validation(recipe: Recipe, bases: BaseModels) -> Any:
    data = recipe.data
    examples = training_examples(data)[1]
    if not examples:
        raise InputError("the comparison needs a validation set to choose learning rates with: raise the share kept")
    tokenizer = bases.tokenizer(recipe.model)
    return encode_dataset(examples, tokenizer, data.max_length, data.format, data.system, too_long=data.too_long)[0]


@contextmanager
def _evaluated_as(part: Part, model: nn.Module, recipe: Recipe, bases: BaseModels) -> Iterator[None]:
    """The model as one arm evaluates it: as trained, a branch replaced, or on another executor."""
    with ExitStack() as stack:
        if part.how.get("branch") == "mean":
            ids = _validation(recipe, bases)["input_ids"][:_REFERENCE_SAMPLES]
            reference = [{"input_ids": torch.tensor([row])} for row in ids]
            stack.enter_context(run_on(model, branch="mean", reference=reference))
        elif "branch" in part.how:
            stack.enter_context(run_on(model, branch="off"))
        elif "execution" in part.how:
            stack.enter_context(executing(ExecutionSection(**part.how["execution"]), model, None))
        yield


def _accounting(
    job: Job, recipe: Recipe, folder: RunFolder, result: TrainingResult, model: PeftModel, bases: BaseModels,
    tokens: int,
) -> Accounting:  # fmt: skip
    circuits = len(quantum_layers(model)) if any(isinstance(m, QuantumLayer) for m in model.modules()) else 0
    per_token = _flops_per_token(model, recipe, bases) if recipe.model.task == "causal-lm" else None
    return Accounting(
        trainable=result.parameters["total"],
        angles=result.parameters.get("angles", 0),
        adapter_bytes=sum(file.stat().st_size for file in folder.adapter.glob("adapter_model.*")),
        peak_memory_bytes=result.peak_memory_bytes,
        seconds=_rounded(result.seconds),
        tokens_per_second=_rounded(result.tokens_per_second),
        flops=None if per_token is None else _rounded(per_token * tokens),
        circuits=circuits * tokens,
    )


def _flops_per_token(model: PeftModel, recipe: Recipe, bases: BaseModels) -> float:
    """Operations of the matrix products of one training sample's forward and backward pass, by token."""
    sample = _validation(recipe, bases)[0]
    ids = torch.tensor([sample["input_ids"]])  # (1, length)
    device = next(model.parameters()).device
    model.set_adapter("default")  # trainable, as in the training; it was opened for inference
    with FlopCounterMode(display=False) as counter, torch.enable_grad():
        output = model(input_ids=ids.to(device), labels=ids.to(device), use_cache=False)
        output.loss.backward()
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    return counter.get_total_flops() / ids.shape[1]


def _path(folder: str | None) -> Path | None:
    return None if folder is None else Path(folder)


def _rounded(value: float) -> float:
    """Six digits are more than any of these numbers is known to, and keep the files small."""
    return float(f"{value:.6g}")
