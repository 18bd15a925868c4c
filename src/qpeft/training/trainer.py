"""From a recipe to a trainer: TRL's `SFTTrainer` for language models, transformers' `Trainer` for classifiers."""

from __future__ import annotations

import math
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from qpeft.adapters import parameter_groups
from qpeft.errors import InputError, TrainingError
from qpeft.training.callbacks import CompleteCheckpoints, FiniteGradients, MetricLines
from qpeft.training.recipe import Recipe
from qpeft.training.run_folder import RunFolder


class _StopsAtBadLoss:
    """Mixed into a trainer: a loss that is not a number ends the run before it reaches the weights."""

    state: Any

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not math.isfinite(loss.item()):
            raise TrainingError(f"the loss became {loss.item()} at step {self.state.global_step + 1}")
        return loss


class LanguageModelTrainer(_StopsAtBadLoss, SFTTrainer):
    """TRL's supervised fine-tuning trainer that stops at a loss that is not a number."""


class ClassifierTrainer(_StopsAtBadLoss, Trainer):
    """transformers' trainer that stops at a loss that is not a number."""


def training_arguments(recipe: Recipe, folder: RunFolder, device: str, has_validation: bool) -> TrainingArguments:
    """The recipe's training section as `SFTConfig` (or `TrainingArguments` for a classifier).

    The base is loaded in its own precision and adapters compute in float32, so autocast is off unless the recipe
    asks for it under `training.trl`.

    Raises:
        InputError: transformers or TRL refuse a value.
    """
    section = recipe.training
    values: dict[str, Any] = {
        key: getattr(section, key)
        for key in (
            "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
            "per_device_eval_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
            "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "logging_steps",
            "save_steps", "save_total_limit",
        )
    }  # fmt: skip
    if has_validation:
        values |= {"eval_strategy": "steps", "eval_steps": section.eval_steps} if section.eval_steps else {}
    values |= {
        "output_dir": str(folder.checkpoints),
        "save_strategy": "steps",
        "logging_strategy": "steps",
        "logging_nan_inf_filter": False,
        "report_to": ["tensorboard"] if section.tensorboard else [],
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": False,
        "dataloader_pin_memory": device.startswith("cuda"),
        "prediction_loss_only": True,
    }
    values |= section.trl
    try:
        if recipe.model.task == "sequence-classification":
            return TrainingArguments(**values)
        return SFTConfig(**values, dataset_kwargs={"skip_prepare_dataset": True}, max_length=None)
    except (TypeError, ValueError) as error:
        raise InputError(f"the training section is not usable: {error}") from error


def build_trainer(
    recipe: Recipe,
    folder: RunFolder,
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Any,
    validation: Any | None,
    device: str,
    callbacks: list[TrainerCallback],
) -> Trainer:
    """The trainer of a recipe. `train` and `validation` are tokenised, with labels."""
    arguments = training_arguments(recipe, folder, device, has_validation=validation is not None)
    common: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": tokenizer,
        "callbacks": [MetricLines(folder), CompleteCheckpoints(), FiniteGradients(), *callbacks],
    }
    if recipe.training.angle_learning_rate is not None:
        groups = parameter_groups(model, recipe.training.learning_rate, recipe.training.angle_learning_rate)
        common["optimizers"] = (torch.optim.AdamW(groups, weight_decay=recipe.training.weight_decay), None)
    trainer_class = ClassifierTrainer if recipe.model.task == "sequence-classification" else LanguageModelTrainer
    trainer = trainer_class(**common)
    # the command line shows progress; the trainer's own printing would mix with it
    for callback in list(trainer.callback_handler.callbacks):
        if type(callback).__name__ == "PrinterCallback":
            trainer.remove_callback(callback)
    return trainer
