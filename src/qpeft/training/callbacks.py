"""What happens beside the training steps: metric lines, complete checkpoints, clean interruption.

Progress is not shown here; whoever starts a run may pass a callback of their own for that.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qpeft.errors import TrainingError
from qpeft.training.run_folder import COMPLETE, RunFolder, read_metrics


class MetricLines(TrainerCallback):
    """Appends one JSON line per logged step to `metrics.jsonl`, with tokens per second of the training steps alone."""

    def __init__(self, folder: RunFolder):
        self.folder = folder
        earlier = [line for line in read_metrics(folder.metrics) if "num_tokens" in line]
        self._tokens_before_resume = earlier[-1]["num_tokens"] if earlier else 0
        self._seconds = 0.0
        self._started: float | None = None
        self._last: tuple[float, float] = (0.0, 0.0)

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stop_clock()
        self._started = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._stop_clock()

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
        if not logs:
            return
        line = {"step": state.global_step, **{key: _plain(value) for key, value in logs.items()}}
        if "loss" in line and "num_tokens" in line:
            tokens = float(line["num_tokens"])
            seconds = self._seconds - self._last[1]
            logs["tokens_per_second"] = line["tokens_per_second"] = (
                (tokens - self._last[0]) / seconds if seconds > 0 else 0.0
            )
            self._last = (tokens, self._seconds)
            line["num_tokens"] = self._tokens_before_resume + tokens
            line["seconds"] = round(self._seconds, 3)
        if state.is_world_process_zero:
            with open(self.folder.metrics, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class CompleteCheckpoints(TrainerCallback):
    """Marks a checkpoint once all of it is on disk, so that a resume never starts from half a checkpoint."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not state.is_world_process_zero:
            return
        folder = os.path.join(str(args.output_dir), f"checkpoint-{state.global_step}")
        for name in os.listdir(folder):
            with open(os.path.join(folder, name), "rb") as file:
                os.fsync(file.fileno())
        with open(os.path.join(folder, COMPLETE), "w", encoding="utf-8") as file:
            os.fsync(file.fileno())


class FiniteGradients(TrainerCallback):
    """Stops before an update that would write NaN or infinity into the adapter."""

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
        total = sum(parameter.grad.sum() for parameter in model.parameters() if parameter.grad is not None)
        if isinstance(total, torch.Tensor) and not torch.isfinite(total).item():
            raise TrainingError(f"the gradient stopped being a number at step {state.global_step + 1}")


class StopOnSignal(TrainerCallback):
    """On Ctrl-C or SIGTERM: finish the step, save a checkpoint, stop. A second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.stopped_at: int | None = None
        self._asked = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopOnSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._asked and self.stopped_at is None:
            self.stopped_at = state.global_step
            control.should_save = True
            control.should_evaluate = False
            control.should_training_stop = True
