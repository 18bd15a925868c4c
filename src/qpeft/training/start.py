"""Starting a run from what an earlier one has trained, with a fresh optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors import SafetensorError

from qpeft.errors import InputError


def load_trained(model: PeftModel, source: str) -> None:
    """Put the trained numbers of an earlier adapter into a new one of the same kind.

    Args:
        model: With the new adapter.
        source: Run folder or adapter folder.

    Raises:
        InputError: There is no adapter, or one of other sizes.
    """
    folder = Path(source)
    folder = folder / "adapter" if (folder / "adapter" / "adapter_config.json").is_file() else folder
    if not (folder / "adapter_config.json").is_file():
        raise InputError(f"adapter.start_from names {source}, which holds no trained adapter: name a finished run")
    try:
        found: Any = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except (RuntimeError, KeyError, OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the adapter in {folder} does not fit the adapter section ({reason}): give the section the same keys"
        ) from error
    trained = {name.replace(".default", "") for name, value in model.named_parameters() if value.requires_grad}
    wrong = [name for name in found.missing_keys if name.replace(".default", "") in trained] + found.unexpected_keys
    if wrong:
        raise InputError(
            f"the adapter in {folder} does not fit the adapter section (at {wrong[0]}): give the section the same keys"
        )
