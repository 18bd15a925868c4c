"""Answers of one model to several requests at once: one call of `generate`, one row a request.

Prompts are padded on the left. Every row has its own limit, stop strings and way of drawing, tells its text token by
token, and is done when it is: at its end, at its limit, or when nobody waits for it any more. The others go on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from qpeft.errors import QPeftError
from qpeft.serving.drawing import DrawEachRow, Sampling
from qpeft.serving.models import ServedModel
from qpeft.serving.text import AnswerText


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


End = Callable[[Job, Event], None]


def write_answers(jobs: Sequence[Job], end: End) -> None:
    """Write the answers to jobs for one model together, telling every piece of text.

    If the batch fails, jobs that have no token yet are written alone: one long prompt must not take the others along.

    Args:
        jobs: All for the same model.
        end: Receives every job once, as soon as it is done, with its last event.
    """
    rows = [_Row(job, end) for job in jobs]
    rows = [row for row in rows if not row.ends_early()]
    if not rows:
        return
    try:
        _generate(rows)
    except Exception as error:  # one bad request must not end the service
        failure = _sentence(error)
    else:
        return
    for row in rows:  # outside the handler, which keeps the tensors of the failed batch
        if row.done:
            continue
        if len(rows) > 1 and row.n_tokens == 0:
            write_answers([row.job], end)
        else:
            row.finish(Event(failure, "error", row.n_tokens))


def _generate(rows: Sequence[_Row]) -> None:
    served = rows[0].job.served
    samplings = [row.job.sampling for row in rows]
    pad = served.tokenizer.pad_token_id
    pad = pad if pad is not None else 0
    settings = GenerationConfig(
        max_new_tokens=max(sampling.max_new_tokens for sampling in samplings), do_sample=False,
        eos_token_id=served.ends or None, pad_token_id=pad, use_cache=True,
    )  # fmt: skip
    longest = max(len(row.job.prompt) for row in rows)
    gaps = [longest - len(row.job.prompt) for row in rows]
    ids = [[pad] * gap + list(row.job.prompt) for gap, row in zip(gaps, rows, strict=True)]
    mask = [[0] * gap + [1] * (longest - gap) for gap in gaps]
    device = served.model.device
    with torch.no_grad():
        served.model.generate(
            input_ids=torch.tensor(ids, device=device),  # (batch, longest)
            attention_mask=torch.tensor(mask, device=device),
            generation_config=settings,
            logits_processor=LogitsProcessorList([DrawEachRow(samplings, device)]),
            stopping_criteria=StoppingCriteriaList([_TellAndStop(rows)]),
        )


class _Row:
    """One job in the batch: takes its tokens, tells their text, knows when it is done."""

    def __init__(self, job: Job, end: End) -> None:
        self.job = job
        self.n_tokens = 0
        self.done = False
        self._end = end
        self._text = AnswerText(job.served.tokenizer, job.sampling.stop)
        self._ends = frozenset(job.served.ends)

    def push(self, token: int) -> None:
        """Take the next token; whatever follows the end is padding."""
        if self.done or self.ends_early():
            return
        self.n_tokens += 1
        ended = token in self._ends
        piece = "" if ended else self._text.push(token)
        if ended or self._text.stopped:
            self.finish(Event(piece + self._text.rest(), "stop", self.n_tokens))
        elif self.n_tokens == self.job.sampling.max_new_tokens:
            text = piece + self._text.rest()  # which may hold a stop string, too
            self.finish(Event(text, "stop" if self._text.stopped else "length", self.n_tokens))
        elif piece:
            self.job.tell(Event(piece))

    def ends_early(self) -> bool:
        """Whether nobody waits any more."""
        if self.job.cancelled.is_set() and not self.done:
            self.finish(Event("", "cancelled", self.n_tokens))
        return self.done

    def finish(self, event: Event) -> None:
        self.done = True
        self._end(self.job, event)


class _TellAndStop(StoppingCriteria):
    """Hands every new token to its row, and says which rows are done."""

    def __init__(self, rows: Sequence[_Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
            row.push(token)
        return torch.tensor([row.done for row in self._rows], device=input_ids.device)  # (batch,)


def _sentence(error: Exception) -> str:
    if isinstance(error, QPeftError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "t allocate memory" in str(error):
        return "there is not enough memory for this request: send a shorter one"
    return f"the model could not answer ({type(error).__name__}: {' '.join(str(error).split())})"
