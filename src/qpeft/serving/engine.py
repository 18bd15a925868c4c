"""One worker that writes answers, one after the other, and a bounded queue before it.

One at a time is what a processor does best with short prompts, and makes an answer independent of who else asks. A
full queue is told at once, with the time after which to ask again, instead of letting clients wait without end. A
cancelled job leaves the queue, or stops at its next token.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from qpeft.errors import QPeftError
from qpeft.serving.models import ServedModel
from qpeft.serving.text import AnswerText

_PATIENCE = 60  # seconds after which, at the latest, a refused client may ask again
_MEMORY = 0.9  # share of the earlier mean in the running mean of seconds a job


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: Most tokens of the answer.
        temperature: 0 always takes the likeliest token.
        top_p: Draw among the likeliest tokens that have this probability together.
        seed: Of drawing; `None` for another answer every time.
        stop: Strings before which the answer ends.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Event:
    """What became of a job: a piece of its text, or with a reason its end.

    Attributes:
        text: The next piece of the answer.
        reason: `"stop"`, `"length"`, `"cancelled"`, or `"error"`, which leaves the sentence in `text`.
        n_tokens: Tokens written, at the end.
    """

    text: str
    reason: str | None = None
    n_tokens: int = 0


@dataclass(eq=False)
class Job:
    """One answer to write; `tell` receives its events in the worker's thread."""

    served: ServedModel
    prompt: Sequence[int]
    sampling: Sampling
    tell: Callable[[Event], None]
    cancelled: threading.Event = field(default_factory=threading.Event)


class QueueFull(Exception):
    """There is no room for another job; `seconds` later there may be."""

    def __init__(self, waiting: int, seconds: int) -> None:
        super().__init__(f"{waiting} requests are waiting already: ask again in {seconds} s")
        self.seconds = seconds


class Engine:
    """The worker and its queue.

    Args:
        queue_size: Most jobs that wait.
        report: Receives a job, its last event and its seconds when it ends.
    """

    def __init__(self, queue_size: int = 64, report: Callable[[Job, Event, float], None] = lambda *_: None) -> None:
        self.queue_size = queue_size
        self.answered = 0
        self._report = report
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._mean_seconds = 1.0
        self._closed = False
        self._changed = threading.Condition()
        self._worker = threading.Thread(target=self._work, name="qpeft-engine", daemon=True)
        self._worker.start()

    @property
    def open_jobs(self) -> int:
        """Jobs that wait or are being written."""
        with self._changed:
            return len(self._waiting) + (self._running is not None)

    def submit(self, job: Job) -> None:
        """Take a job.

        Raises:
            QueueFull: There is no room.
        """
        with self._changed:
            if len(self._waiting) >= self.queue_size or self._closed:
                seconds = min(_PATIENCE, max(1, math.ceil(self._mean_seconds * len(self._waiting))))
                raise QueueFull(len(self._waiting), seconds)
            self._waiting.append(job)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Forget a job; one that has ended stays as it is."""
        job.cancelled.set()
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)

    def close(self) -> None:
        """Cancel everything and end the worker."""
        with self._changed:
            self._closed = True
            for job in [*self._waiting, *([self._running] if self._running else [])]:
                job.cancelled.set()
            self._changed.notify()
        self._worker.join()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            start = time.perf_counter()
            try:
                end = write_answer(job)
            except Exception as error:  # one bad request must not end the service
                end = Event(_sentence(error), "error")
            seconds = time.perf_counter() - start
            with self._changed:
                self._running = None
                self.answered += end.reason in ("stop", "length")
                self._mean_seconds = _MEMORY * self._mean_seconds + (1 - _MEMORY) * seconds
            job.tell(end)
            self._report(job, end, seconds)

    def _next(self) -> Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._running = self._waiting.popleft() if self._waiting else None
            return self._running


def write_answer(job: Job) -> Event:
    """Write one answer, telling every piece of text; gives the last event."""
    served, sampling = job.served, job.sampling
    if job.cancelled.is_set():
        return Event("", "cancelled")
    writing = _Writing(job, AnswerText(served.tokenizer, sampling.stop), frozenset(served.ends))
    drawn = sampling.temperature > 0
    if drawn and sampling.seed is None:
        torch.seed()
    elif drawn and sampling.seed is not None:
        torch.manual_seed(sampling.seed)
    # top_k is off because its usual default of 50 would be a second limit nobody asked for
    drawing = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if drawn else {}
    pad = served.tokenizer.pad_token_id
    settings = GenerationConfig(
        max_new_tokens=sampling.max_new_tokens, do_sample=drawn, eos_token_id=served.ends or None,
        pad_token_id=pad if pad is not None else 0, use_cache=True, **drawing,
    )  # fmt: skip
    ids = torch.tensor([list(job.prompt)], device=served.model.device)  # (1, prompt)
    with torch.no_grad():
        served.model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings, streamer=writing,
            stopping_criteria=StoppingCriteriaList([_Until(writing)]),
        )  # fmt: skip
    return writing.finish()


class _Writing(BaseStreamer):
    """Receives every token from transformers and tells its text."""

    def __init__(self, job: Job, text: AnswerText, ends: frozenset[int]) -> None:
        self.job = job
        self.text = text
        self.ended = False
        self._ends = ends
        self._n_tokens = 0
        self._is_prompt = True

    def put(self, value: Tensor) -> None:
        if self._is_prompt:
            self._is_prompt = False
            return
        token = int(value)
        self._n_tokens += 1
        if token in self._ends:
            self.ended = True
        elif piece := self.text.push(token):
            self.job.tell(Event(piece))

    def end(self) -> None:
        """The rest of the text is told by `finish`, with the reason."""

    def finish(self) -> Event:
        if self.job.cancelled.is_set():
            return Event("", "cancelled", self._n_tokens)
        rest = self.text.rest()
        reason = "stop" if self.ended or self.text.stopped else "length"
        return Event(rest, reason, self._n_tokens)


class _Until(StoppingCriteria):
    """Ends the writing at a stop string, or when nobody waits for it any more."""

    def __init__(self, writing: _Writing) -> None:
        self._writing = writing

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        done = self._writing.text.stopped or self._writing.job.cancelled.is_set()
        return torch.full((input_ids.shape[0],), done, dtype=torch.bool, device=input_ids.device)  # (1,)


def _sentence(error: Exception) -> str:
    if isinstance(error, QPeftError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error):
        return "there is not enough memory for this request: send a shorter one"
    return f"the model could not answer ({type(error).__name__}: {' '.join(str(error).split())})"
