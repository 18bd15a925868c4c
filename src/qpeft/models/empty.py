"""A model without numbers: its modules and shapes on torch's meta device, for counting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from qpeft.errors import InputError
from qpeft.models.resolve import resolve_model
from qpeft.models.shapes import known_shape


def model_config(name: str) -> Any:
    """The config of a model: from its folder, which needs no weights, from the known shapes, or from the hub.

    Raises:
        InputError: There is no such model, or its config cannot be read.
    """
    from transformers import AutoConfig

    own = Path(name).expanduser() / "config.json"
    if not own.is_file():
        known = known_shape(name)
        if known is not None:
            return known
    folder = own.parent if own.is_file() else resolve_model(name).folder
    try:
        return AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"the config of '{name}' cannot be read ({reason}): check its config.json") from error


def empty_model(name: str, task: str = "causal-lm", **changes: Any) -> Any:
    """A model of a name on the meta device, all frozen.

    Args:
        name: As for `model_config`.
        task: `"causal-lm"` or `"sequence-classification"`.
        **changes: Of the config, as `num_labels=3`.

    Raises:
        InputError: There is no such model, or its config cannot be read.

    Example:
        >>> from qpeft.models.empty import empty_model
        >>> sum(parameter.numel() for parameter in empty_model("qwen2.5-7b").parameters())
        7615616512
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    classes = {"causal-lm": AutoModelForCausalLM, "sequence-classification": AutoModelForSequenceClassification}
    config = model_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.device("meta"):
        model: Any = classes[task].from_config(config, dtype=torch.float32)
        model.tie_weights()
    return model.requires_grad_(False)
