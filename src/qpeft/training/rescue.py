"""A checkpoint at the moment the memory runs out, so that no finished step is lost.

When a forward or backward pass fails for lack of memory, weights and optimiser are those after the last finished step;
only counters and random states have moved on. These are kept at the beginning of every step and put back before the
checkpoint is written: a run that goes on from it ends as one that never stopped. Failures elsewhere, as in the middle
of an optimiser's step, leave nothing that could be saved.
"""

from __future__ import annotations

import gc
import logging
import random
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qpeft.training import ranks
from qpeft.training.memory import OutOfMemory, is_out_of_memory
from qpeft.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


class Rescue(TrainerCallback):
    """Keeps what a checkpoint of the last finished step needs.

    Args:
        folder: Of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.trainer: Any = None
        self._inside = False
        self._kept: tuple[Any, ...] = ()

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        randomness = random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda
        loss = self.trainer._tr_loss.clone() if self.trainer is not None else None
        self._kept = randomness, state.num_input_tokens_seen, loss
        self._inside = True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self._inside = False

    @contextmanager
    def watching(self, trainer: Any) -> Iterator[None]:
        """Save what is finished where the memory runs out.

        Raises:
            OutOfMemory: It did.
        """
        self.trainer = trainer
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            step = trainer.state.global_step + 1
            traceback.clear_frames(error.__traceback__)  # they hold the activations of the step
            self._save()
            reason = " ".join(str(error).split())[:150] or type(error).__name__
            raise OutOfMemory(f"the memory did not suffice at step {step} ({reason})") from error
        finally:
            self.trainer = None

    def _save(self) -> None:
        trainer, finished = self.trainer, self.trainer.state.global_step
        known = self.folder.last_checkpoint()
        if not self._inside or ranks.world_size() > 1 or finished == 0:  # other processes wait in their own step
            return
        if known is not None and known.name == f"checkpoint-{finished}":
            return
        randomness, trainer.state.num_input_tokens_seen, loss = self._kept
        try:
            trainer.model.zero_grad()
            gc.collect()
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
            _restore(*randomness)
            trainer.control.should_log = trainer.control.should_save = True
            trainer.control.should_evaluate = False
            trainer._maybe_log_save_evaluate(loss, None, trainer.model, None, trainer.state.epoch, None, None)
        except Exception as error:  # there may be too little memory, or disk, for that too: the one before has to do
            logger.warning("no checkpoint of step %d could be saved (%s)", finished, error)
            self.folder.remove_partial_checkpoints()


def _restore(python: Any, numpy: Any, cpu: torch.Tensor, cuda: list[torch.Tensor]) -> None:
    random.setstate(python)
    np.random.set_state(numpy)
    torch.set_rng_state(cpu)
    if cuda:
        torch.cuda.set_rng_state_all(cuda)
