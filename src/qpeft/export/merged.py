"""Writing a model with its adapter merged into the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel

from qpeft.errors import InputError, MergeError


def save_merged(model: PeftModel, path: str | Path) -> None:
    """Merge the active adapter into the base and write the whole model in transformers' format.

    The model given is consumed: its base holds the merged weights afterwards. Merge into a float32 base where the
    result's precision matters; a half-precision base rounds each changed weight once.

    Args:
        model: A model with one adapter of any method of peft.
        path: Folder to write to; created where it does not exist.

    Raises:
        InputError: The model has no adapter.
        MergeError: The adapter is not a fixed matrix.
    """
    if not isinstance(model, PeftModel):
        raise InputError("there is nothing to merge: the model has no adapter")
    try:
        merged: Any = model.merge_and_unload(safe_merge=True)
    except MergeError:
        raise
    except NotImplementedError as error:
        raise MergeError(f"this adapter cannot be merged: {error}") from error
    merged.save_pretrained(str(path))
