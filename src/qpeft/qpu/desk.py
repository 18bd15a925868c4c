"""One provider's desk: hand in a job, ask about it, take its answer; each step is written down before the next.

Nothing here loops or waits: the broker decides when.
"""

from __future__ import annotations

import math
import tempfile
from contextlib import suppress
from itertools import chain

import torch

from qpeft.errors import MissingDependencyError, QPeftError
from qpeft.qpu.budget import Spend, cost_of
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.policy import PAID_RATE, Failures, Policy, TokenBucket
from qpeft.qpu.protocol import (
    Counts,
    JobState,
    NotAcceptedError,
    Provider,
    ProviderError,
    RawAnswer,
    Submission,
    UnknownOutcome,
)
from qpeft.qpu.reading import Job
from qpeft.qpu.records import scrubbed
from qpeft.qpu.schema import State
from qpeft.qpu.storage import LedgerError


class VendorDown(ProviderError):
    """The vendor failed several times in a row and is given up for now."""


class Desk:
    """What the broker knows of one provider.

    Args:
        provider: The provider.
        ledger: Where every step is written.
        policy: Patience.
    """

    def __init__(self, provider: Provider, ledger: Ledger, policy: Policy) -> None:
        self.provider, self.ledger, self.policy = provider, ledger, policy
        self.name = provider.name
        self.caps = provider.caps()
        self.refusals = Failures(policy.failures)
        self.silences = Failures(policy.failures)
        rate = policy.rate or (PAID_RATE if self.caps.paid else math.inf)
        self.bucket = TokenBucket(rate, policy.in_flight)
        self.wait = 0.0
        """Seconds that the last refusal asks for."""

    def expected(self, circuits: int, shots: int, repetition_us: float) -> Spend:
        """What a job will use."""
        return cost_of(circuits, shots, self.caps, repetition_us)

    def hand_in(self, job: Job) -> Job:
        """Hand in a job whose intent is committed; afterwards it is SUBMITTED, NOT_TAKEN or UNKNOWN.

        Raises:
            VendorDown: It was refused, and so were several before it.
            ProviderError, InputError: It was refused for good (NOT_TAKEN).
            LedgerError: The vendor took it and that could not be written; the message holds the vendor's id.
        """
        vendor_id: str | None = None
        sending = False
        try:
            submission = self.ledger.submission(job)
            sending = True
            vendor_id = self.provider.submit(submission)
        except NotAcceptedError as error:
            job = self.ledger.move(job, State.NOT_TAKEN, str(error))
            if error.lasting:
                raise
            down = self.refusals.failed()
            self.wait = self.policy.wait_after(self.refusals.count, error.retry_after)
            if down:
                raise VendorDown(f"{self.name} refused {self.refusals.count} times in a row: {error}") from error
            return job
        except UnknownOutcome as error:
            return self.ledger.move(job, State.UNKNOWN, str(error))
        except QPeftError as error:
            self.ledger.move(job, State.NOT_TAKEN, str(error))
            raise
        except BaseException as error:
            if vendor_id is not None:
                self._taken(job, vendor_id)
                raise
            state = State.UNKNOWN if sending else State.NOT_TAKEN
            self.ledger.move(job, state, f"{type(error).__name__}: {error}")
            if isinstance(error, Exception):
                raise ProviderError(_fault(self.name, "handing in a job", error)) from error
            raise
        return self._taken(job, vendor_id)

    def _taken(self, job: Job, vendor_id: str) -> Job:
        """Commit the vendor's id of a job."""
        if not isinstance(vendor_id, str) or not vendor_id:
            return self.ledger.move(job, State.UNKNOWN, f"the vendor gave {vendor_id!r} for an id")
        with suppress(QPeftError):
            other = self.ledger.job(vendor_id)
            if other.provider == job.provider and other.id != job.id:
                self.ledger.move(job, State.UNKNOWN, f"the vendor gave the id {vendor_id}, which job {other.id} has")
                return self.ledger.job(job.id)
        self.refusals.worked()
        try:
            return self.ledger.move(job, State.SUBMITTED, f"taken as {vendor_id}", vendor_id=vendor_id)
        except KeyboardInterrupt:
            if self.ledger.job(job.id).state is not State.SUBMITTED:
                self.ledger.move(job, State.SUBMITTED, f"taken as {vendor_id}", vendor_id=vendor_id)
            raise
        except LedgerError as error:
            raise LedgerError(
                f"{self.name} took a job as {vendor_id}, and that could not be written: {error} Then settle it with: "
                f"qpeft qpu resolve {self.ledger.folder} {job.token} --job-id {vendor_id}"
            ) from error

    def find(self, job: Job) -> str | None:
        """The vendor's id of a job by its token, where the vendor can say so.

        Raises:
            ProviderError: It cannot be asked now.
        """
        try:
            return self.provider.find(job.token)
        except QPeftError:
            raise
        except Exception as error:
            raise ProviderError(_fault(self.name, "looking for a job", error)) from error

    def ask(self, job: Job) -> Job:
        """Ask about a job and take its answer if it is there; the job as it is then.

        A failure to ask is counted, and the job stays as it is.

        Raises:
            VendorDown: Several questions in a row were not answered.
            LedgerError: The answer came and could not be written; where it is now is said.
        """
        if job.state is State.FETCHED:
            return self._read(job)
        assert job.job is not None
        try:
            state = self.provider.poll(job.job)
            answer = self.provider.fetch(job.job) if state is JobState.DONE else None
        except (MissingDependencyError, LedgerError):
            raise
        except Exception as error:
            if self.silences.failed():
                sentence = str(error) if isinstance(error, QPeftError) else _fault(self.name, "asking", error)
                raise VendorDown(
                    f"{self.name} could not be asked about job {job.job} {self.silences.count} times in a row: "
                    f"{scrubbed(sentence)}"
                ) from error
            return job
        self.silences.worked()
        if answer is not None:
            return self._read(self._keep(job, answer))
        if state is JobState.FAILED:
            return self.ledger.move(job, State.FAILED, "the vendor says that it failed")
        if state is JobState.CANCELLED:
            return self.ledger.move(job, State.CANCELLED, "the vendor says that it was cancelled")
        return job

    def _keep(self, job: Job, answer: RawAnswer) -> Job:
        """Commit an answer; where that fails, put it into a file elsewhere."""
        try:
            return self.ledger.keep_answer(job, answer)
        except LedgerError as error:
            kept = "the vendor has it still"
            with suppress(OSError), tempfile.NamedTemporaryFile(prefix="qpeft-answer-", delete=False) as file:
                file.write(answer.data)
                kept = f"it is in {file.name}"
            raise LedgerError(
                f"the answer of job {job.job} came and could not be written, {kept}: {error} Then fetch it with: "
                f"qpeft qpu resume {self.ledger.folder}"
            ) from error

    def _read(self, job: Job) -> Job:
        """Read the answer that is kept; DONE, or QUARANTINED where it is not whole or not right."""
        submission = self.ledger.submission(job)
        answer = self.ledger.answer(job)
        assert answer is not None
        try:
            counts = checked(self.provider.parse(answer, submission), submission)
        except MissingDependencyError:
            raise
        except Exception as error:  # whatever an answer makes of a parser, it is the answer that is wrong
            reason = str(error) if isinstance(error, QPeftError) else f"{type(error).__name__}: {error}"
            return self.ledger.move(job, State.QUARANTINED, reason)
        return self.ledger.finish(job, counts)


def checked(counts: Counts, submission: Submission) -> Counts:
    """Counts as int64, if they are complete: one tensor for every block, whole numbers from 0 on, sum = shots.

    Raises:
        ProviderError: They are not; the message says where.

    Example:
        >>> checked([[torch.tensor([3.0, float("nan")])]], submission)  # doctest: +SKIP
        Traceback (most recent call last):
        qpeft.qpu.protocol.ProviderError: the answer holds numbers that are no counts (circuit 0).
    """
    if len(counts) != len(submission.circuits):
        raise ProviderError(f"the answer holds {len(counts)} of {len(submission.circuits)} circuits.")
    homes, sizes = [], []
    for place, (circuit, blocks) in enumerate(zip(submission.circuits, counts, strict=True)):
        if len(blocks) != len(circuit):
            raise ProviderError(f"the answer holds {len(blocks)} of {len(circuit)} blocks of circuit {place}.")
        for block, values in zip(circuit, blocks, strict=True):
            wanted = 2 ** submission.templates[block.template].circuit.n_qubits
            if tuple(values.shape) != (wanted,):
                raise ProviderError(f"circuit {place} has counts of shape {tuple(values.shape)}, not ({wanted},).")
            homes.append(place)
            sizes.append(wanted)
    flat = torch.cat(list(chain.from_iterable(counts))).detach().to("cpu", torch.float64)  # (total,)
    ends = torch.tensor(sizes).cumsum(0)  # (blocks,)
    bad = ~(torch.isfinite(flat) & (flat >= 0) & (flat == flat.round()))
    if bool(bad.any()):
        place = homes[int(torch.searchsorted(ends, int(bad.nonzero()[0]), right=True))]
        raise ProviderError(f"the answer holds numbers that are no counts (circuit {place}).")
    totals = flat.cumsum(0)[ends - 1].diff(prepend=torch.zeros(1, dtype=torch.float64))  # (blocks,)
    wrong = (totals != submission.shots).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise ProviderError(
            f"the counts of circuit {homes[first]} sum to {totals[first]:g}, not to {submission.shots} shots."
        )
    whole = iter(flat.to(torch.int64).split(sizes))
    return [[next(whole) for _ in blocks] for blocks in counts]


def _fault(name: str, doing: str, error: Exception) -> str:
    return scrubbed(f"{name} failed at {doing} in an unforeseen way ({type(error).__name__}: {error}).")
