"""The trained adapter on disk: written beside its place by the first rank, and moved there whole.

Where FSDP or ZeRO-3 hold a part of every parameter on each rank, the trained ones are put together first; the frozen
base, which no adapter file holds, stays where it is.
"""

from __future__ import annotations

import shutil

import torch
from peft import PeftModel
from peft.utils.integrations import gather_params_ctx
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase

from qpeft.training.run_folder import RunFolder


def trained_state(model: PeftModel) -> dict[str, torch.Tensor] | None:
    """The whole trained parameters of a sharded model by name; every rank has to ask.

    Returns:
        Tensors on the CPU, and buffers; `None` for a model that is not sharded and needs no gathering.
    """
    if not is_sharded(model):
        return None
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # parts of the model stay whole after a forward pass without a backward one
    trained = {  # and angles that were left as they started, which the adapter is nothing without
        name: value for name, value in model.named_parameters() if value.requires_grad or ".qtha_circuit." in name
    }
    with gather_params_ctx(list(trained.values())):  # of ZeRO-3; does nothing elsewhere
        whole = {name: whole_tensor(value).clone() for name, value in trained.items()}
    return whole | dict(model.named_buffers())


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether each rank holds a part of the model only."""
    return any(isinstance(value, DTensor) or hasattr(value, "ds_id") for value in model.parameters())


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """A tensor put together from the shards of all ranks, on the CPU; every rank has to ask."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()


def save_adapter(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: RunFolder,
    state: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write the adapter and the tokenizer, without a card; `state` is :func:`trained_state` of the model."""
    fresh = folder.path / ".adapter"
    shutil.rmtree(fresh, ignore_errors=True)
    model.save_pretrained(str(fresh), state_dict=state)
    # peft's empty form; the card of the run needs numbers that are not there yet
    (fresh / "README.md").unlink(missing_ok=True)
    tokenizer.save_pretrained(fresh)
    shutil.rmtree(folder.adapter, ignore_errors=True)
    fresh.rename(folder.adapter)
