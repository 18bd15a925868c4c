"""How a run starts: from what an earlier one has trained, with a fresh optimiser, or with another size of LoRA's A.

QTHA draws A uniformly with variance 2 / d_in, LoRA with 1 / (3 d_in); sqrt(6) times LoRA's is QTHA's. Where B is zero
at the start, that size is also the size of B's first gradients: a comparison of methods has to hold it equal, or to
sweep learning rates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError

from qpeft.errors import InputError


@torch.no_grad()
def scale_lora_start(model: PeftModel, gain: float) -> None:
    """Multiply the A of every LoRA layer of a new adapter, which adds nothing yet whatever its A is."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for leaf in module.lora_A.values():
                leaf.weight.mul_(gain)  # type: ignore[operator]


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
