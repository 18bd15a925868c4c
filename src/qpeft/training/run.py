"""One training run from recipe to saved adapter; can be killed at any moment and resumed with the same result."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerState, set_seed

from qpeft.adapters import freeze_angles
from qpeft.data import EncodingReport
from qpeft.errors import InputError, Interrupted
from qpeft.training import ranks
from qpeft.training.activations import cached_activations
from qpeft.training.bases import BaseModels
from qpeft.training.callbacks import StopOnSignal
from qpeft.training.datasets import Encoded, encode_examples, held_out_examples, refuse_longer, training_examples
from qpeft.training.diagnostics import refuse_unmeasurable
from qpeft.training.execution import executing
from qpeft.training.explaining import explained
from qpeft.training.memory import peak_memory_bytes, told_if_out_of_memory
from qpeft.training.memory_check import check_memory
from qpeft.training.model_card import write_run_card
from qpeft.training.parameters import parameter_table
from qpeft.training.recipe import Recipe, load_recipe
from qpeft.training.rescue import Rescue
from qpeft.training.run_folder import RunFolder, read_metrics, step_of, versions, write_json, write_text
from qpeft.training.saving import save_adapter, trained_state
from qpeft.training.start import load_trained, scale_lora_start
from qpeft.training.trainer import build_trainer, training_arguments
from qpeft.training.workload import Call, steps_of, training_calls

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainingResult:
    """The numbers of a finished training.

    `train_loss` is the mean of the last tenth of the steps. `parameters` holds trainable numbers by kind
    (`total` always; for QTHA also `tensor_network`, `linear`, `angles`, `classical`, `lora_equivalent`).
    `peak_memory_bytes` is that of the whole process.
    """

    steps: int
    train_loss: float
    eval_loss: float | None
    tokens_per_second: float
    seconds: float
    peak_memory_bytes: int
    parameters: dict[str, int]
    samples: int
    dropped: int


@dataclass(frozen=True)
class Preparation:
    """What `--dry-run` tells: the run would work, and this is its size."""

    parameters: dict[str, int]
    report: EncodingReport
    steps: int


@dataclass(frozen=True)
class Prepared:
    """A run before its first step."""

    model: PeftModel
    tokenizer: PreTrainedTokenizerBase
    data: Encoded
    device: str


def prepare(recipe: Recipe, say: Say = lambda _: None, bases: BaseModels | None = None) -> Prepared:
    """Load the base, read and tokenise the data, attach the adapter (seeded).

    `bases` gives a base that is loaded already (:mod:`qpeft.training.bases`).

    Raises:
        InputError: any part of the recipe cannot be used; nothing has been written.
    """
    train, validation = training_examples(recipe.data)
    if recipe.evaluation.task is not None:  # a wrong test set should show before the training, not after it
        held_out_examples(recipe.data, limit=1)
    config = recipe.adapter.build()
    section, bases = recipe.model, bases or BaseModels()
    tokenizer = bases.tokenizer(section, say)
    say("tokenising")
    data = encode_examples(recipe, train, validation, tokenizer)
    place, device = ranks.device_for(section.device)
    check_memory(recipe, data.train, place, say, loaded=bases.holds(section, place))
    with told_if_out_of_memory(f"loading {section.name}"):
        model = bases.model(section, place, say)
    if place.startswith("cuda:"):
        torch.cuda.set_device(place)  # the trainer moves the model to the current GPU
    refuse_longer(data, model.config, section.name)
    config.task_type = "SEQ_CLS" if section.task == "sequence-classification" else "CAUSAL_LM"
    set_seed(recipe.training.seed)
    try:
        adapted = get_peft_model(model, config)
    except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
        reason = str(error) if isinstance(error, ValueError) else recipe.adapter.explain(error)
        raise InputError(f"the adapter does not fit {section.name}: {reason}") from error
    bases.lend(adapted)
    if recipe.adapter.initial_gain is not None:
        scale_lora_start(adapted, recipe.adapter.initial_gain)
    if recipe.adapter.start_from is not None:
        load_trained(adapted, recipe.adapter.start_from)
    rate = recipe.training.angle_learning_rate
    if rate is not None and not parameter_table(adapted).get("angles"):
        raise InputError(f"training.angle_learning_rate is {rate}, and this adapter has no angles: leave it out")
    if rate == 0:
        freeze_angles(adapted)
    device = adapted.device.type
    # refuses wrong values
    arguments = training_arguments(recipe, RunFolder(recipe.output), device, data.validation is not None)
    if recipe.training.diagnostics_steps is not None:
        refuse_unmeasurable(adapted, arguments)
    return Prepared(adapted, tokenizer, data, device)


def dry_run(recipe: Recipe, say: Say = lambda _: None) -> Preparation:
    """Do everything that a run does before its first step, and write nothing."""
    ready = prepare(recipe, say)
    steps = steps_of(recipe, len(ready.data.train))
    return Preparation(parameter_table(ready.model), ready.data.report, steps)


def train(
    recipe: Recipe,
    resume: bool = False,
    overwrite: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    say: Say = lambda _: None,
    bases: BaseModels | None = None,
    activations: Path | None = None,
) -> TrainingResult:
    """Train the adapter of a recipe and save it in the run folder.

    A run that was interrupted or killed goes on from its last complete checkpoint with `resume=True`, and ends with
    the same adapter as a run that was never stopped.

    Under `torchrun` or `accelerate launch` every process calls this, and gets the same result
    (:mod:`qpeft.training.ranks`).

    `activations` is a folder for the activations below the adapted layers, where `training.cache_activations` is set:
    runs may share it (:mod:`qpeft.training.activations`), and it stays. Without it, the run folder has them until the
    run is finished.

    Raises:
        InputError: something in the recipe cannot be used, or the folder already holds a run; nothing has changed.
        TrainingError: the loss or the gradient stopped being a number, the disk is full, or another process is gone.
        Interrupted: the user stopped the run; a checkpoint has been saved.
        SaidElsewhere: another process of this run raises one of these.
    """
    if resume and overwrite:
        raise InputError("resume goes on with a run and overwrite replaces it: ask for one of them")
    ranks.join()
    folder = RunFolder(recipe.output)
    with ExitStack() as held:
        with ranks.together():
            _check_processes(recipe)
            if ranks.is_first():
                held.enter_context(folder.locked())
        return _train(recipe, folder, resume, overwrite, callbacks, say, bases, activations)


def _train(
    recipe: Recipe,
    folder: RunFolder,
    resume: bool,
    overwrite: bool,
    callbacks: Sequence[TrainerCallback],
    say: Say,
    bases: BaseModels | None,
    activations: Path | None,
) -> TrainingResult:
    finished = ranks.from_first(lambda: _earlier_result(recipe, folder, resume, overwrite))
    if finished is not None:
        return finished
    with ranks.together():
        ready = prepare(recipe, say, bases)
    with explained(recipe, folder):
        checkpoint = ranks.from_first(lambda: _begin(recipe, folder, overwrite))
        if checkpoint is not None:
            say(f"going on from {checkpoint.name}")
        return _run(recipe, folder, ready, checkpoint, callbacks, say, activations or folder.activations)


def _earlier_result(recipe: Recipe, folder: RunFolder, resume: bool, overwrite: bool) -> TrainingResult | None:
    """Refuse a folder that is taken; the result of a run that is finished."""
    if not folder.holds_run() or overwrite:
        return None
    if not resume:
        raise InputError(
            f"{folder.path} already holds a run: go on with it (--resume), replace it (--overwrite), or set "
            "output to another folder"
        )
    _check_same_recipe(recipe, folder)
    if not folder.result.exists():
        return None
    return TrainingResult(**json.loads(folder.result.read_text(encoding="utf-8"))["training"])


def _begin(recipe: Recipe, folder: RunFolder, overwrite: bool) -> Path | None:
    """Make the folder that of this run; the checkpoint to go on from."""
    if overwrite:  # only now, so that a recipe that cannot be used does not cost the earlier run
        folder.clear()
    write_text(folder.recipe, recipe.to_yaml())  # from here on the folder holds a run
    write_json(folder.versions, versions())
    folder.remove_partial_checkpoints()
    checkpoint = folder.last_checkpoint()
    folder.rewind_metrics(step_of(checkpoint) if checkpoint else 0)
    return checkpoint


def _run(
    recipe: Recipe,
    folder: RunFolder,
    ready: Prepared,
    checkpoint: Path | None,
    callbacks: Sequence[TrainerCallback],
    say: Say,
    activations: Path,
) -> TrainingResult:
    calls = planned_calls(recipe, ready) if recipe.execution.executor != "exact" else []
    stop, rescue = StopOnSignal(), Rescue(folder)
    trainer = build_trainer(
        recipe, folder, ready.model, ready.tokenizer, ready.data.train, ready.data.validation, ready.device,
        [stop, rescue, *callbacks], first_step=(step_of(checkpoint) if checkpoint else 0) + 1,
    )  # fmt: skip
    ranks.keep(trainer)
    started = time.monotonic()
    try:
        with stop, executing(recipe.execution, ready.model, folder.path, calls) as execution:
            with (
                cached_activations(ready.model, activations, recipe.training.activation_bytes, say),
                rescue.watching(trainer),
            ):
                _go_on(trainer, checkpoint)
            executed = {} if execution is None else {"execution": asdict(execution.report())}
    finally:
        for callback in callbacks:
            getattr(callback, "close", lambda: None)()
    with ranks.together():
        if stop.stopped_at is not None:
            raise Interrupted(
                f"stopped at step {stop.stopped_at} of {trainer.state.max_steps}, everything is saved; go on with: "
                f"{ranks.launched(f'train {folder.path} --resume')}"
            )
    seconds = time.monotonic() - started
    state = trained_state(ready.model)

    def finish() -> TrainingResult:
        save_adapter(ready.model, ready.tokenizer, folder, state)
        folder.remove_activations()
        result = _result(folder, ready, trainer.state.global_step, seconds)
        numbers = {"training": asdict(result), **executed}
        write_run_card(folder, numbers)
        write_json(folder.result, numbers)  # last: it says that the run is finished
        return result

    return ranks.from_first(finish)


def planned_calls(recipe: Recipe, ready: Prepared) -> list[Call]:
    """Circuits that the training will ask for."""
    validation = ready.data.validation
    return training_calls(recipe, ready.model, ready.data.report, 0 if validation is None else len(validation))


def _go_on(trainer: Any, checkpoint: Path | None) -> None:
    """Train from a checkpoint, or from the start."""
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= state.max_steps:  # killed after its last step; the trainer would do one more
            trainer._load_from_checkpoint(str(checkpoint))
            trainer.state = state
            return
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def _result(folder: RunFolder, ready: Prepared, steps: int, seconds: float) -> TrainingResult:
    metrics = read_metrics(folder.metrics)
    lines = [line for line in metrics if "loss" in line]
    eval_losses = [line["eval_loss"] for line in metrics if "eval_loss" in line]
    tail = [line["loss"] for line in lines[-max(1, len(lines) // 10) :]]
    if not tail:  # fewer steps than logging_steps: the trainer's own mean over all steps
        tail = [line["train_loss"] for line in metrics if "train_loss" in line][-1:]
    speeds = sorted(line["tokens_per_second"] for line in lines if "tokens_per_second" in line)
    return TrainingResult(
        steps=steps,
        train_loss=sum(tail) / len(tail),
        eval_loss=eval_losses[-1] if eval_losses else None,
        tokens_per_second=speeds[len(speeds) // 2] if speeds else 0.0,
        seconds=seconds,
        peak_memory_bytes=peak_memory_bytes(ready.device),
        parameters=parameter_table(ready.model),
        samples=ready.data.report.kept,
        dropped=ready.data.report.dropped,
    )


def _check_processes(recipe: Recipe) -> None:
    if ranks.asks_for_fsdp() and recipe.model.task == "sequence-classification":
        raise InputError("a classifier under an adapter cannot be sharded here: use DDP in place of FSDP")
    if ranks.asks_for_shards() and recipe.execution.executor != "exact":
        raise InputError(
            f"execution.executor is {recipe.execution.executor}, and circuits on an executor go with processes that "
            "hold the whole model: use DDP in place of FSDP or DeepSpeed, or one process"
        )


def _check_same_recipe(recipe: Recipe, folder: RunFolder) -> None:
    before, now = _deciding(load_recipe(folder.recipe)), _deciding(recipe)
    for section in ("model", "adapter", "data", "training", "execution"):  # the others do not change the training
        for key in sorted(before[section].keys() | now[section].keys()):
            was, wanted = before[section].get(key), now[section].get(key)
            if was != wanted:
                raise InputError(
                    f"{folder.path} was started with {section}.{key} = {was!r}, not {wanted!r}: resume with the same "
                    f"recipe (qpeft train {folder.path} --resume), or use --overwrite"
                )


def _deciding(recipe: Recipe) -> dict[str, Any]:
    """The values on which the result depends: what only saves memory may change while a run is interrupted."""
    values = recipe.model_dump()
    training, section = values["training"], recipe.training
    del training["memory_check"], training["gradient_checkpointing"], training["gradient_accumulation_steps"]
    del training["tensorboard"], training["report_to"]
    training["cache_activations"] = training["cache_activations"] is not None  # its bound changes no number
    training["per_device_train_batch_size"] = (
        section.per_device_train_batch_size * section.gradient_accumulation_steps  # as many examples a step
    )
    return values
