"""What happens beside the training steps: metric lines, complete checkpoints, clean interruption.

Progress is not shown here; whoever starts a run may pass a callback of their own for that.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qpeft.errors import Diverged
from qpeft.training import ranks
from qpeft.training.run_folder import RunFolder, mark_complete

logger = logging.getLogger(__name__)


class MetricLines(TrainerCallback):
    """Appends one JSON line per logged step to `metrics.jsonl`, with tokens per second of the training steps alone.

    Tokens are counted by the trainer's state, which a resumed run takes up again, and not by TRL's own count, which
    begins at zero there.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self._seconds = 0.0
        self._started: float | None = None
        self._last: tuple[float, float] = (0.0, 0.0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._last = (state.num_input_tokens_seen, 0.0)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stop_clock()
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stop_clock()
        # A resumed run begins a new mean at its checkpoint; so the straight run has to end one there.
        control.should_log |= control.should_save

    def _stop_clock(self) -> None:
        if self._started is not None:
            self._seconds += time.perf_counter() - self._started
            self._started = None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if not logs or "train_loss" in logs:  # the summary at the end speaks of this process alone
            return
        if "loss" in logs:
            tokens, seconds = state.num_input_tokens_seen, self._seconds - self._last[1]
            logs["num_tokens"] = tokens
            logs["tokens_per_second"] = (tokens - self._last[0]) / seconds if seconds > 0 else 0.0
            logs["seconds"] = round(self._seconds, 3)
            self._last = (tokens, self._seconds)
        kept = {key: _plain(value) for key, value in logs.items() if key not in _SINCE_RESUME}
        line = {"step": state.global_step, **kept}
        if state.is_world_process_zero:
            with open(self.folder.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


#: what the libraries count from the start of the process, not of the run
_SINCE_RESUME = frozenset({"train_runtime", "train_tokens_per_second", "num_input_tokens_seen", "eval_num_tokens"})


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint once all of it is on disk, then removes the oldest beyond `keep`.

    The trainer's own removal comes before the mark, so that a kill in between could leave no checkpoint at all.
    """

    def __init__(self, folder: RunFolder, keep: int):
        self.folder = folder
        self.keep = keep

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        mark_complete(self.folder.checkpoints / f"checkpoint-{state.global_step}")
        for old in self.folder.complete_checkpoints()[: -self.keep]:
            if old != Path(state.best_model_checkpoint or ""):
                shutil.rmtree(old, ignore_errors=True)


class FiniteNumbers(TrainerCallback):
    """Stops at a gradient, an adapter or a validation loss that is not a number, before any of it is saved."""

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        if model is None or args.fp16:  # the scaler of fp16 skips such steps by itself
            return
        if not _finite(parameter.grad for parameter in model.parameters() if parameter.grad is not None):
            raise Diverged(f"the gradient stopped being a number at step {state.global_step + 1}")

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        if model is not None and not _finite(p for p in model.parameters() if p.requires_grad):
            raise Diverged(f"the adapter stopped holding finite numbers at step {state.global_step}")

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise Diverged(f"the validation loss became {loss} at step {state.global_step}")


def _finite(tensors: Iterable[torch.Tensor]) -> bool:
    own = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)  # of FSDP: this shard
    total = sum(tensor.detach().sum(dtype=torch.float64).cpu() for tensor in own)
    return math.isfinite(float(total))


class StopOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. A second Ctrl-C stops at once.

    Of several processes all stop at the same step, whichever of them is asked to. Their launcher hands every Ctrl-C on
    to them once more, and kills those that take longer than 30 seconds; so there only the first counts.
    """

    def __init__(self) -> None:
        self.stopped_at: int | None = None
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and ranks.world_size() > 1:
            return  # the launcher ends all where one fails, which must not keep the others from saying what happened
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if ranks.world_size() > 1:
            self._asked = True
            return
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        logger.warning("stopping: this step is finished and saved first; once more stops at once")

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        asked = ranks.in_any(self._asked)
        if asked and state.global_step < state.max_steps:  # after its last step a run may as well finish
            self.stopped_at = state.global_step
            control.should_save = control.should_log = True
            control.should_evaluate = False
            control.should_training_stop = True
