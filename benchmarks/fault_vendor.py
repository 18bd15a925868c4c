"""A vendor of quantum computing whose side of the world is a folder, so that it survives the client.

Accepting a job is one rename: either the vendor has it or not, at whatever moment the client dies. Counts follow from
a circuit's angles alone. Faults are played from a script, one word for each call.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from qpeft.chips import ChipSnapshot, Coupler, NativeTemplate, Qubit
from qpeft.circuits import Circuit, Gate, Input
from qpeft.qpu.protocol import (
    Block,
    Caps,
    Counts,
    JobState,
    NotAcceptedError,
    Price,
    ProviderError,
    RawAnswer,
    Submission,
    UnknownOutcome,
)

CHIP = ChipSnapshot(
    "folder-chip",
    tuple(Qubit(i, 0.998, 0.02, 0.04, 20.0, 15.0) for i in range(8)),
    tuple(Coupler((i, i + 1), 0.97) for i in range(7)),
)


def template(*qubits: int) -> NativeTemplate:
    """A pulse and a free angle on each qubit."""
    gates = [g for w in range(len(qubits)) for g in (Gate("RX", (w,), math.pi / 2), Gate("RZ", (w,), Input(w)))]
    return NativeTemplate(
        Circuit(len(qubits), tuple(gates)), tuple(qubits), tuple(range(len(qubits))), lambda inputs, weights: inputs
    )


def circuits(n: int, start: int = 0) -> list[tuple[Block, ...]]:
    """Different circuits of one block of two qubits, on template 0."""
    return [(Block(0, ((start + i) * 1e-3, 0.5)),) for i in range(n)]


class FolderVendor:
    """A provider.

    Args:
        folder: The vendor's side.
        finds: Whether it can be asked for a job by its token.
        paid: Whether it charges.
        max_circuits: Most circuits in a job.
        submits: What happens at each submission: ``ok``, ``refused``, ``refused-for-good``, ``busy`` (with a time to
            wait), ``silent`` (taken, but nobody says so), ``dropped`` (not taken, and nobody says so), ``crash`` (an
            error that is no ProviderError), ``interrupt`` (Ctrl-C after it was taken), ``no-id``, ``same-id``.
        polls: At each question: ``ok``, ``error``, ``queued``, ``unknown``, ``failed``, ``cancelled``, ``interrupt``.
        answers: At each answer: ``ok``, ``error``, ``partial``, ``twice``, ``shuffled``, ``nan``, ``negative``,
            ``fraction``, ``bits``, ``blocks``, ``sum``, ``text``, ``empty``.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        finds: bool = True,
        paid: bool = True,
        max_circuits: int = 5,
        price: Price | None = None,
        submits: Iterable[str] = (),
        polls: Iterable[str] = (),
        answers: Iterable[str] = (),
    ) -> None:
        self.folder = Path(folder)
        (self.folder / "jobs").mkdir(parents=True, exist_ok=True)
        self._caps = Caps(
            max_circuits, 1, 10_000, packs=True, finds=finds, paid=paid, price=price, seconds_per_job=1.0
        )
        self.script = {"submit": iter(submits), "poll": iter(polls), "answer": iter(answers)}
        self.calls: Counter[str] = Counter()

    name = "folder:chip"

    def _next(self, call: str) -> str:
        self.calls[call] += 1
        return next(self.script[call], "ok")

    def caps(self) -> Caps:
        return self._caps

    def snapshot(self) -> ChipSnapshot:
        return CHIP

    def submit(self, submission: Submission) -> str:
        what = self._next("submit")
        if what == "refused":
            raise NotAcceptedError("503: the service is not available.")
        if what == "busy":
            raise NotAcceptedError("429: too many requests.", retry_after=0.01)
        if what == "refused-for-good":
            raise NotAcceptedError("400: the circuit is not allowed.", lasting=True)
        if what == "dropped":
            raise UnknownOutcome("the connection broke.")
        job = self._accept(submission, "one-and-the-same" if what == "same-id" else f"job-{uuid.uuid4().hex[:12]}")
        if what == "silent":
            raise UnknownOutcome("no answer within 60 s.")
        if what == "crash":
            raise ValueError("an error of the client")
        if what == "interrupt":
            raise KeyboardInterrupt
        return "" if what == "no-id" else job

    def _accept(self, submission: Submission, job: str) -> str:
        record = {
            "token": submission.token,
            "shots": submission.shots,
            "circuits": [
                [[*submission.templates[block.template].qubits], [*block.angles]]
                for circuit in submission.circuits
                for block in circuit
            ],
            "sizes": [len(circuit) for circuit in submission.circuits],
        }
        part = self.folder / f"{job}.{os.getpid()}.part"
        part.write_text(json.dumps(record))
        part.rename(self.folder / "jobs" / f"{job}@{submission.token}")
        return job

    def poll(self, job: str) -> JobState:
        what = self._next("poll")
        if what == "error":
            raise ProviderError("503: the service is not available.")
        if what == "interrupt":
            raise KeyboardInterrupt
        if what in ("queued", "unknown", "failed", "cancelled"):
            return JobState(what)
        return JobState.DONE

    def fetch(self, job: str) -> RawAnswer:
        what = self._next("answer")
        if what == "error":
            raise ProviderError("the connection broke.")
        record = json.loads(next((self.folder / "jobs").glob(f"{job}@*")).read_text())
        blocks = [{"of": _name(*block), "counts": _counts(block, record["shots"])} for block in record["circuits"]]
        answer: list[list[Any]] = []
        for size in record["sizes"]:
            answer.append(blocks[:size])
            blocks = blocks[size:]
        usage = {"seconds": len(answer) * 0.5, "note": os.environ.get("FOLDER_API_KEY", "")}
        return RawAnswer(_spoiled(answer, what), usage, job)

    def parse(self, answer: RawAnswer, submission: Submission) -> Counts:
        record = json.loads(answer.data)
        for circuit, blocks in zip(submission.circuits, record, strict=False):
            for block, found in zip(circuit, blocks, strict=False):
                if found["of"] != _name(list(submission.templates[block.template].qubits), list(block.angles)):
                    raise ProviderError("the answer's circuits are not in order.")
        return [[torch.tensor(block["counts"]) for block in blocks] for blocks in record]

    def cancel(self, job: str) -> bool:
        return self._next("cancel") == "ok" if "cancel" in self.script else False

    def find(self, token: str) -> str | None:
        self.calls["find"] += 1
        found = next((self.folder / "jobs").glob(f"*@{token}"), None)
        return found and found.name.partition("@")[0]

    def close(self) -> None:
        self.calls["close"] += 1

    def taken(self) -> Counter[str]:
        """How often each circuit was accepted: the vendor's own books."""
        books: Counter[str] = Counter()
        for job in (self.folder / "jobs").iterdir():
            record = json.loads(job.read_text())
            blocks = iter(record["circuits"])
            books.update("".join(_name(*next(blocks)) for _ in range(size)) for size in record["sizes"])
        return books


def _name(qubits: list[int], angles: list[float]) -> str:
    return hashlib.sha256(json.dumps([qubits, angles]).encode()).hexdigest()


def _counts(block: list[Any], shots: int) -> list[float]:
    """Counts that follow from the block alone."""
    size = 2 ** len(block[0])
    weights = hashlib.sha256(_name(*block).encode()).digest()[:size]
    counts = [shots * weight // (sum(weights) + 1) for weight in weights]
    counts[0] += shots - sum(counts)
    return [float(count) for count in counts]


def _spoiled(answer: list[Any], how: str) -> bytes:
    if how in ("text", "empty"):
        return b"<html>busy</html>" if how == "text" else b""
    if how == "partial":
        answer = answer[:-1]
    elif how == "twice":
        answer = [answer[0], *answer]
    elif how == "shuffled":
        answer = answer[::-1]
    elif how == "blocks":
        answer[0] = []
    elif how == "bits":
        answer[0][0]["counts"] = [*answer[0][0]["counts"], 0.0, 0.0, 0.0, 0.0]
    elif how == "nan":
        answer[-1][0]["counts"][1] = float("nan")
    elif how == "negative":
        counts = answer[-1][0]["counts"]
        counts[0], counts[1] = counts[0] + counts[1] + 1, -1.0
    elif how == "fraction":
        counts = answer[-1][0]["counts"]
        counts[0], counts[1] = counts[0] + 0.5, counts[1] - 0.5
    elif how == "sum":
        answer[-1][0]["counts"][0] += 1
    return json.dumps(answer).encode()
