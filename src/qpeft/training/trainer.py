"""From a recipe to a trainer: TRL's `SFTTrainer` for language models, transformers' `Trainer` for classifiers."""

from __future__ import annotations

import importlib.util
import logging
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from qpeft.adapters import parameter_groups
from qpeft.errors import Diverged, InputError, QPeftError
from qpeft.training import labelled_loss, ranks
from qpeft.training.callbacks import CompleteCheckpoints, FiniteNumbers, MetricLines
from qpeft.training.diagnostics import DiagnosticsCallback
from qpeft.training.memory import is_out_of_memory
from qpeft.training.recipe import Recipe
from qpeft.training.run_folder import RunFolder
from qpeft.training.sharded import ShardedTraining
from qpeft.training.trackers import CloseTrackers, check_trackers

logger = logging.getLogger(__name__)

#: more steps than any run has: the validation loss is then measured at the end alone
_NEVER = 2**31 - 1


class _OwnTraining:
    """Mixed into a trainer: a bad loss ends the run before it reaches the weights; angles may have their own rate."""

    state: Any
    model: Any
    args: Any
    optimizer: Any
    angle_learning_rate: float | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)  # type: ignore[misc]
        if not math.isfinite(loss.item()):
            raise Diverged(f"the loss became {loss.item()} at step {self.state.global_step + 1}")
        return loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        try:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
            if isinstance(error, QPeftError) or is_out_of_memory(error) or ranks.is_lost(error):
                raise
            raise InputError(
                f"{resume_from_checkpoint} does not fit this model, or is damaged "
                f"({' '.join(str(error).split())[:200]}): remove it to go on from the one before, or start again with "
                "--overwrite"
            ) from error

    def _save_rng_state(self, output_dir: str) -> None:
        """The first rank writes the random state of every rank, before the checkpoint is marked as complete."""
        if ranks.world_size() == 1:
            super()._save_rng_state(output_dir)  # type: ignore[misc]
            return
        with TemporaryDirectory() as own:
            super()._save_rng_state(own)  # type: ignore[misc]
            states = ranks.gathered((Path(own) / f"rng_state_{ranks.rank()}.pth").read_bytes())
        if ranks.is_first():
            for number, state in enumerate(states):
                (Path(output_dir) / f"rng_state_{number}.pth").write_bytes(state)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None and self.angle_learning_rate is not None:
            groups = parameter_groups(
                self.model, self.args.learning_rate, self.angle_learning_rate, self.args.weight_decay
            )
            optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class(groups, **settings)
        return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]


class LanguageModelTrainer(_OwnTraining, ShardedTraining, SFTTrainer):
    """TRL's supervised fine-tuning trainer; on a CPU it computes logits only where there is a label."""

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        alone = self.accelerator.num_processes == 1 and model is self.model  # else the wrapper's forward must run
        if return_outputs or not alone or model.device.type != "cpu" or not labelled_loss.supports(model):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        total, right, labels = labelled_loss.labelled_loss(model, inputs)
        n = labels if num_items_in_batch is None else torch.as_tensor(num_items_in_batch)
        mode = "train" if model.training else "eval"
        self._metrics[mode]["mean_token_accuracy"].append((right / labels.clamp(min=1)).item())
        if mode == "train":
            self._total_train_tokens += int(inputs["attention_mask"].sum())
        self._metrics[mode]["num_tokens"] = [self._total_train_tokens]
        return total / n.clamp(min=1)


class ClassifierTrainer(_OwnTraining, ShardedTraining, Trainer):
    """transformers' trainer, stopping at a loss that is not a number."""


def training_arguments(recipe: Recipe, folder: RunFolder, device: str, has_validation: bool) -> TrainingArguments:
    """The recipe's training section as `SFTConfig` (or `TrainingArguments` for a classifier).

    The base is loaded in its own precision and adapters compute in float32, so autocast is off unless the recipe
    asks for it under `training.trl`.

    Raises:
        InputError: transformers or TRL refuse a value.
        MissingDependencyError: A tracker's package is missing.
    """
    section = recipe.training
    check_trackers(section.report_to, "training.report_to")
    values: dict[str, Any] = {
        key: getattr(section, key)
        for key in (
            "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size",
            "per_device_eval_batch_size", "gradient_accumulation_steps", "gradient_checkpointing",
            "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "seed", "logging_steps",
            "save_steps",
        )
    }  # fmt: skip
    if has_validation:
        values |= {"eval_strategy": "steps", "eval_steps": section.eval_steps or _NEVER}
    values |= {
        "output_dir": str(folder.checkpoints),
        "save_strategy": "steps",
        "logging_strategy": "steps",
        "logging_first_step": True,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "non_padding",
        "report_to": list(section.report_to),  # TensorBoard is added with its own folder
        "run_name": folder.path.name,
        "disable_tqdm": True,
        "use_cpu": device == "cpu",
        "bf16": False,
        "ddp_find_unused_parameters": False,  # every number of an adapter takes part in every step
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
    first_step: int = 1,
) -> Trainer:
    """The trainer of a recipe. `train` and `validation` are tokenised, with labels."""
    arguments = training_arguments(recipe, folder, device, has_validation=validation is not None)
    keep = recipe.training.save_total_limit
    own: list[TrainerCallback] = [MetricLines(folder), CompleteCheckpoints(folder, keep), FiniteNumbers()]
    if recipe.training.diagnostics_steps is not None:
        own.append(DiagnosticsCallback(recipe.training.diagnostics_steps, folder.metrics))
    if recipe.training.tensorboard and ranks.is_first():
        own += _tensorboard(folder, first_step)
    if recipe.training.report_to:
        own.append(CloseTrackers())
    common: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": train,
        "eval_dataset": validation,
        "processing_class": tokenizer,
        "callbacks": [*own, *callbacks],
    }
    trainer_class = ClassifierTrainer if recipe.model.task == "sequence-classification" else LanguageModelTrainer
    trainer = trainer_class(**common)
    if recipe.model.quantization is not None:  # TRL casts what is trained to bfloat16 there, too coarse for angles
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    trainer.angle_learning_rate = recipe.training.angle_learning_rate
    trainer.remove_callback(PrinterCallback)  # whoever starts a run shows its progress
    return trainer


def _tensorboard(folder: RunFolder, first_step: int) -> list[TrainerCallback]:
    """Event files in the run folder, without what a killed run wrote of `first_step` and later.

    Nothing where the optional package is missing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        logger.info("no TensorBoard files are written, since tensorboard is missing: pip install qpeft[tensorboard]")
        return []
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    return [TensorBoardCallback(SummaryWriter(str(folder.tensorboard), purge_step=first_step))]
