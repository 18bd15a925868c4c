"""What a command is pointed at: a run folder, an adapter folder, or a base model; opened ready for use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from safetensors import SafetensorError
from transformers import PreTrainedTokenizerBase

import qpeft  # noqa: F401  (registers the adapters with peft)
from qpeft.errors import InputError
from qpeft.models import load_model, load_tokenizer
from qpeft.training.recipe import Recipe, load_recipe
from qpeft.training.run_folder import RunFolder


@dataclass(frozen=True)
class Target:
    """An opened model: with its adapter if it has one, with its run's recipe if it comes from a run."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    recipe: Recipe | None
    run: RunFolder | None


def open_target(
    target: str,
    dtype: str = "float32",
    device: str = "auto",
    num_labels: int | None = None,
    say: Callable[[str], None] = lambda _: None,
    quantized: bool = True,
) -> Target:
    """Open a run folder, an adapter folder, or a base model (name, folder or GGUF file).

    Args:
        target: What to open.
        dtype: Precision of the base. Decoding on a CPU is fastest in float32.
        device: As for `qpeft.models.load_model`.
        num_labels: Opens a base model or adapter as a classifier with so many classes; runs know it themselves.
        say: Receives one sentence a step.
        quantized: Whether a run's base is quantised as it was in the training.

    Raises:
        InputError: it is none of these, the run is not finished, or its adapter does not fit its base.
    """
    found = find_target(target)
    num_labels = num_labels if found.recipe is None else found.num_labels
    task: Any = "causal-lm" if num_labels is None else "sequence-classification"
    quantization = found.recipe.model.quantization if found.recipe is not None and quantized else None
    if quantization is not None and found.recipe is not None:
        dtype = found.recipe.model.dtype  # what is left, and what matrices are used in, is as it was too
    model: Any = load_model(
        found.base, task=task, dtype=dtype, device=device, num_labels=num_labels, quantization=quantization,
        progress=say,
    )  # fmt: skip
    if found.adapter is not None:
        say("attaching the adapter")
        model = attach_adapter(model, found.adapter, found.base)
    return Target(model.eval(), load_tokenizer(found.base, progress=say), found.recipe, found.run)


@dataclass(frozen=True)
class Found:
    """What a target consists of, before anything large is loaded."""

    base: str
    adapter: Path | None
    recipe: Recipe | None
    run: RunFolder | None

    @property
    def num_labels(self) -> int | None:
        """Classes of a run that trained a classifier."""
        model = self.recipe.model if self.recipe else None
        return model.num_labels if model is not None and model.task == "sequence-classification" else None


def find_target(target: str) -> Found:
    """Say what a run folder, an adapter folder or a base model consists of.

    Raises:
        InputError: The run is not finished, or the adapter does not name its base.
    """
    path = Path(target)
    run = RunFolder(path) if (path / "recipe.yaml").is_file() else None
    recipe = load_recipe(run.recipe) if run else None
    adapter = run.adapter if run else path
    if run and not (adapter / "adapter_config.json").is_file():
        raise InputError(f"the run in {path} is not finished: go on with it (qpeft train {path} --resume)")
    has_adapter = (adapter / "adapter_config.json").is_file()
    own = recipe.model.name if recipe is not None else None
    base = own or (_base_of(adapter) if has_adapter else target)
    return Found(base, adapter if has_adapter else None, recipe, run)


def attach_adapter(model: Any, adapter: Path, base: str) -> PeftModel:
    """Put the adapter of a folder on its loaded base, whose name is told where it does not fit.

    Raises:
        InputError: The adapter lacks its weights, is damaged, or belongs to another base.
    """
    weights = adapter / SAFETENSORS_WEIGHTS_NAME
    if not weights.is_file() and not (adapter / WEIGHTS_NAME).is_file():  # peft would look for them on the hub
        raise InputError(f"the adapter in {adapter} lacks its weights ({weights.name}): copy or train it again")
    try:
        return PeftModel.from_pretrained(model, str(adapter))
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"{weights} is damaged ({error}): copy or train it again") from error
    except (ValueError, RuntimeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"the adapter in {adapter} does not fit {base}, or is damaged: {reason}") from error


def _base_of(adapter: Path) -> str:
    try:
        base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    except InputError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{adapter / 'adapter_config.json'} cannot be read ({error}): save it again") from error
    if not base:
        raise InputError(
            f"{adapter / 'adapter_config.json'} does not name its base model: add base_model_name_or_path"
        )
    return str(base)
