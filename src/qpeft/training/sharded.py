"""Training a model that FSDP2 shards: every rank holds 1/R of each parameter (Zhao et al., arXiv:2304.11277).

accelerate would write a checkpoint that only FSDP can read. What is trained here is small, so it is put together
instead and saved as one process saves it: a run goes on from such a checkpoint in any number of processes, sharded or
not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map_only

from qpeft.training import ranks
from qpeft.training.saving import is_sharded, trained_state, whole_tensor
from qpeft.training.start import load_trained

_OPTIMIZER, _SCHEDULER = "optimizer.pt", "scheduler.pt"


class ShardedTraining:
    """Mixed into a trainer before transformers' own; does nothing where FSDP is not asked for."""

    accelerator: Any
    model: Any
    args: Any
    optimizer: Any
    lr_scheduler: Any
    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()  # type: ignore[misc]
        # accelerate shards on accelerators alone; torch does so on the CPU as well, where it can be tried
        if ranks.asks_for_fsdp() and self.accelerator.distributed_type == DistributedType.MULTI_CPU:
            self.accelerator.state.distributed_type = DistributedType.FSDP
            self.accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()
            self.is_fsdp_enabled = True

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        if self.is_fsdp_enabled and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint)
        return super()._prepare_for_training(  # type: ignore[misc]
            max_steps, train_dataloader, resume_from_checkpoint
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Under FSDP weights are loaded before they are sharded; the later call by the trainer finds them there."""
        if not self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        elif not is_sharded(self.model):
            load_trained(self.model, resume_from_checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not self.is_fsdp_enabled:
            super().save_model(output_dir, _internal_call)  # type: ignore[misc]
            return
        self._save(output_dir, state_dict=trained_state(self.model))  # type: ignore[attr-defined]

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)  # type: ignore[misc]
            return
        state = tree_map_only(DTensor, whole_tensor, self.optimizer.state_dict())
        if self.args.should_save:
            torch.save(state, Path(output_dir) / _OPTIMIZER)
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / _SCHEDULER)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)  # type: ignore[misc]
            return
        if checkpoint is None:
            return
        state = torch.load(Path(checkpoint) / _OPTIMIZER, map_location="cpu", weights_only=True)
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        for number, moments in state["state"].items():
            state["state"][number] = {key: _as_sharded(value, parameters[number]) for key, value in moments.items()}
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / _SCHEDULER, weights_only=True))


def _as_sharded(value: Any, parameter: torch.Tensor) -> Any:
    """A moment of the optimiser, sharded as its parameter is; its count of steps stays as it is."""
    if not isinstance(parameter, DTensor) or not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
