"""Progress of training and of generation: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qpeft.cli.console import Steps, notes

#: seconds between two lines where there is no terminal
LINE_EVERY = 15.0


class ProgressCallback(TrainerCallback):
    """Steps, loss, tokens per second and time left of a training run."""

    def __init__(self, label: str, steps: Steps):
        self._label = label
        self._steps = steps
        self._bar: Progress | None = None
        self._task: Any = None
        self._numbers = ""
        self._line_at = 0.0
        self._first: tuple[int, float] = (0, 0.0)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._steps.close()
        self._first = (state.global_step, time.monotonic())
        if notes.is_terminal and not notes.quiet:
            self._bar = Progress(
                TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                TextColumn("{task.fields[numbers]}"), TimeElapsedColumn(), TextColumn("left"),
                TimeRemainingColumn(elapsed_when_finished=True), console=notes,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(
                self._label, total=state.max_steps, completed=state.global_step, numbers=""
            )

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
        if "eval_loss" in logs:
            self._say(f"{self._label}: step {state.global_step}, validation loss {logs['eval_loss']:.4f}")
        if "loss" in logs:
            self._numbers = f"loss {logs['loss']:.4f}"
            if "reward" in logs:
                self._numbers += f"  reward {logs['reward']:.3f}"
            if "tokens_per_second" in logs:
                self._numbers += f"  {logs['tokens_per_second']:.0f} tok/s"

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=state.global_step, numbers=self._numbers)
            return
        now = time.monotonic()
        if now - self._line_at >= LINE_EVERY and self._numbers:
            self._line_at = now
            done = state.global_step - self._first[0]
            left = (now - self._first[1]) / max(done, 1) * (state.max_steps - state.global_step)
            notes.print(
                f"{self._label}: step {state.global_step}/{state.max_steps}  {self._numbers}  {left:.0f} s left"
            )

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def _say(self, text: str) -> None:
        (self._bar.console if self._bar is not None else notes).print(text)

    def close(self) -> None:
        """Give the terminal back; safe to call at any time."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@contextmanager
def counting(label: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of a count known in advance: call the yielded function with (done, total)."""
    started = time.monotonic()
    if notes.is_terminal and not notes.quiet:
        with Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True), console=notes,
        ) as bar:  # fmt: skip
            task = bar.add_task(label, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    said = started

    def line(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= LINE_EVERY or done == total:
            said = now
            left = (now - started) / max(done, 1) * (total - done)
            notes.print(f"{label}: {done}/{total}  {left:.0f} s left")

    yield line
