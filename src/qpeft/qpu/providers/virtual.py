"""The virtual chip as a provider, in this process: for tests, for rehearsals, and where no chip can be reached.

A job is done when ``submit`` returns. Its id follows from the token of the submission, so a token leads to one job at
most, and ``find`` is proof. With a ``state`` folder every answer is a file there, written whole or not at all, and
jobs outlive the process; without one they live as long as the provider.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from qpeft.chips import ChipSnapshot
from qpeft.chips.virtual import VirtualChip
from qpeft.errors import InputError
from qpeft.qpu.chips import open_chip
from qpeft.qpu.protocol import Caps, Counts, JobState, NotAcceptedError, Price, ProviderError, RawAnswer, Submission

MAX_CIRCUITS = 200  # as Origin's cloud
MIN_SHOTS, MAX_SHOTS = 100, 10_000


class VirtualProvider:
    """A provider that runs on a :class:`~qpeft.chips.virtual.VirtualChip`.

    Args:
        chip: What :func:`qpeft.qpu.chips.open_chip` takes: a preset, a file, a snapshot, ``"ibm-heron-like"``, ....
        crosstalk: As :class:`~qpeft.chips.virtual.VirtualChip` takes it.
        seed: Together with the seed of a submission it decides the shots.
        state: Folder that keeps the answers; ``None`` keeps them in memory.

    Raises:
        InputError: Unknown chip, ``crosstalk`` or ``seed`` out of range.
    """

    def __init__(
        self,
        chip: str | Path | ChipSnapshot = "wukong-72",
        *,
        crosstalk: float = 0.0,
        seed: int = 0,
        state: str | Path | None = None,
    ) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise InputError(f"seed must be a whole number (got {seed!r}); take 0, for example.")
        self._chip = VirtualChip(open_chip(chip), crosstalk=crosstalk)
        self._seed = seed
        self._folder = None if state is None else Path(state)
        self._answers: dict[str, bytes] = {}

    @property
    def name(self) -> str:
        """``virtual:`` and the chip."""
        return f"virtual:{self._chip.snapshot.name}"

    def caps(self) -> Caps:
        """The limits of Origin's cloud; free, and able to find jobs by their tokens."""
        return Caps(
            max_circuits=MAX_CIRCUITS,
            min_shots=MIN_SHOTS,
            max_shots=MAX_SHOTS,
            packs=True,
            finds=True,
            paid=False,
            seeded=True,
            price=Price(),
        )

    def snapshot(self) -> ChipSnapshot:
        """The chip, which never changes."""
        return self._chip.snapshot

    def submit(self, submission: Submission) -> str:
        """Run a job at once; its id.

        Raises:
            NotAcceptedError: The submission does not fit the chip or the limits, or its token belongs to another one.
        """
        self._check(submission)
        job, question = _job(submission.token), fingerprint(submission)
        known = self._read(job)
        if known is not None:
            if json.loads(known)["submission"] != question:
                raise NotAcceptedError("the token belongs to another submission; choose a new one.", lasting=True)
            return job
        seed = int.from_bytes(_digest(f"{self._seed} {submission.seed}")[:7], "little")
        try:
            counts = self._chip.run(submission.templates, submission.circuits, submission.shots, seed)
        except InputError as error:
            raise NotAcceptedError(str(error), lasting=True) from error
        flat = [row.numpy() for blocks in counts for row in blocks]
        numbers = np.concatenate(flat).astype("<u4").tobytes()
        seconds = len(counts) * submission.shots * self._chip.snapshot.repetition_us / 1e6
        answer = {
            "chip": f"{self._chip.snapshot.name} {self._chip.snapshot.id}",
            "submission": question,
            "shots": submission.shots,
            "seconds": seconds,
            "counts": base64.b64encode(zlib.compress(numbers, 1)).decode(),
        }
        self._write(job, json.dumps(answer).encode())
        return job

    def _check(self, submission: Submission) -> None:
        count, shots = len(submission.circuits), submission.shots
        reason = ""
        if not 1 <= count <= MAX_CIRCUITS or not all(submission.circuits):
            reason = f"a job holds 1 to {MAX_CIRCUITS} circuits, each of at least one block (got {count} circuits)"
        elif isinstance(shots, bool) or not isinstance(shots, int) or not MIN_SHOTS <= shots <= MAX_SHOTS:
            reason = f"shots must be a whole number from {MIN_SHOTS} to {MAX_SHOTS} (got {shots!r})"
        elif submission.options:
            reason = f"the virtual chip has no option {min(submission.options)!r}"
        if reason:
            raise NotAcceptedError(f"{reason}; change the submission.", lasting=True)

    def poll(self, job: str) -> JobState:
        """DONE, or an error for a job that is not known."""
        self._known(job)
        return JobState.DONE

    def fetch(self, job: str) -> RawAnswer:
        """The answer of a job."""
        data = self._known(job)
        return RawAnswer(data, {"seconds": json.loads(data)["seconds"]}, job)

    def parse(self, answer: RawAnswer, submission: Submission) -> Counts:
        """Counts from an answer.

        Raises:
            ProviderError: The answer is damaged, or belongs to another submission.
        """
        try:
            record = json.loads(answer.data)
            owner = record["submission"]
            numbers = np.frombuffer(zlib.decompress(base64.b64decode(record["counts"])), dtype="<u4")
        except (KeyError, TypeError, ValueError, zlib.error) as error:
            raise ProviderError(f"the answer of job {answer.job} is damaged; fetch it again.") from error
        if owner != fingerprint(submission):
            raise ProviderError(f"the answer of job {answer.job} belongs to another submission; fetch it again.")
        sizes = [
            [1 << submission.templates[block.template].circuit.n_qubits for block in blocks]
            for blocks in submission.circuits
        ]
        whole = torch.from_numpy(numbers.astype(np.int64))
        if len(whole) != sum(map(sum, sizes)):
            raise ProviderError(f"the answer of job {answer.job} is not whole; fetch it again.")
        counts = [list(part.split(own)) for part, own in zip(whole.split(list(map(sum, sizes))), sizes, strict=True)]
        if any(int(row.sum()) != submission.shots for blocks in counts for row in blocks):
            raise ProviderError(f"the answer of job {answer.job} has another number of shots; fetch it again.")
        return counts

    def cancel(self, job: str) -> bool:
        """Never: every job is done."""
        return False

    def find(self, token: str) -> str | None:
        """The job with a token."""
        job = _job(token)
        return None if self._read(job) is None else job

    def close(self) -> None:
        """Nothing to let go of."""

    def _known(self, job: str) -> bytes:
        data = self._read(job)
        if data is None:
            raise ProviderError(f"{self.name} has no job {job!r}; jobs without a state folder end with their process.")
        return data

    def _read(self, job: str) -> bytes | None:
        if self._folder is None:
            return self._answers.get(job)
        try:
            return self._file(job).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise ProviderError(f"the answers in {self._folder} cannot be read: {error.strerror}.") from error

    def _write(self, job: str, data: bytes) -> None:
        if self._folder is None:
            self._answers[job] = data
            return
        file = self._file(job)
        part = file.with_suffix(f".{os.getpid()}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            part.write_bytes(data)
            part.replace(file)
        except OSError as error:
            with contextlib.suppress(OSError):
                part.unlink()
            raise NotAcceptedError(f"the answer cannot be kept in {self._folder}: {error.strerror}.") from error

    def _file(self, job: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{_digest(job).hex()}.json"


def fingerprint(submission: Submission) -> str:
    """What a submission asks, in short: equal questions have equal fingerprints, whatever their tokens."""
    content = hashlib.blake2b(f"{submission.shots} {submission.seed}".encode(), digest_size=16)
    for template in submission.templates:
        content.update(f" {template.circuit.key} {template.qubits}".encode())
    for blocks in submission.circuits:
        content.update(f" {len(blocks)}".encode())
        for block in blocks:
            content.update(f" {block.template} ".encode() + np.array(block.angles, dtype="<f8").tobytes())
    return content.hexdigest()


def _job(token: str) -> str:
    return f"virtual-{_digest(token).hex()}"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
