"""What the broker and a provider say to each other: plain data in, plain data out, no vendor types.

The unit of work is a :class:`Submission`: circuits, each of which holds one or more blocks side by side on the chip,
every block a compiled template with its row of angles. A list of OriginIR programs, an array of PUBs and a batch of
the virtual chip are all made from it, and all answers come back as counts of bit strings, block by block.

``submit`` is where money is spent and where networks fail, so its failures are told apart:

==========================  ====================================================================================
raised                      means
==========================  ====================================================================================
:class:`NotAcceptedError`   it is proven that the vendor did not take the job: sending it again costs nothing
:class:`UnknownOutcome`     the vendor may have taken it: it must not be sent again before somebody has found out
:class:`ProviderError`      anything else, which a new attempt would not mend (credentials, an unknown chip, ...)
==========================  ====================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from torch import Tensor

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.errors import QPeftError


class ProviderError(QPeftError, RuntimeError):
    """A provider cannot do what was asked; the message says why and what to do."""


class NotAcceptedError(ProviderError):
    """The vendor has certainly not taken the job.

    Args:
        message: Why.
        retry_after: Seconds that the vendor asked to wait, where it did.
        lasting: Whether a new attempt would fail likewise (a refused circuit, say).
    """

    def __init__(self, message: str, retry_after: float | None = None, lasting: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.lasting = lasting


class UnknownOutcome(ProviderError):
    """Nobody knows whether the vendor has taken the job."""


class JobState(StrEnum):
    """Where a job of the vendor stands. UNKNOWN is for every answer that is not understood: keep asking."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Price:
    """What a provider charges; parts that do not apply are 0.

    Args:
        currency: ISO code, or ``"s"`` for seconds of a quota.
        per_job: For every submission.
        per_circuit: For every (packed) circuit.
        per_shot: For every shot of every (packed) circuit.
        per_second: For every second of chip time.
    """

    currency: str = "EUR"
    per_job: float = 0.0
    per_circuit: float = 0.0
    per_shot: float = 0.0
    per_second: float = 0.0


@dataclass(frozen=True)
class Caps:
    """What a provider can do.

    Args:
        max_circuits: Most (packed) circuits in one submission; see :meth:`circuits_per_job`.
        min_shots: Fewest shots.
        max_shots: Most shots.
        packs: Whether blocks may stand side by side in one circuit.
        finds: Whether :meth:`Provider.find` can tell if a job with a given token exists.
        paid: Whether submissions cost money or quota: answers are then never thrown away, and nothing is sent twice.
        seeded: Whether equal submissions with equal seeds give equal counts.
        price: What it charges, or ``None`` where that is not known.
        seconds_per_job: Overhead of a job besides its shots, for estimates.
        max_executions: Most circuits times shots in one submission, or ``None`` where only their number is limited.
    """

    max_circuits: int
    min_shots: int
    max_shots: int
    packs: bool
    finds: bool
    paid: bool
    seeded: bool = False
    price: Price | None = None
    seconds_per_job: float = 0.0
    max_executions: int | None = None

    def circuits_per_job(self, shots: int) -> int:
        """Most (packed) circuits of so many shots that one submission may hold, at least 1.

        Example:
            >>> caps = Caps(5000, 1, 100_000, packs=True, finds=True, paid=True, max_executions=10_000_000)
            >>> caps.circuits_per_job(shots=1000), caps.circuits_per_job(shots=4000)
            (5000, 2500)
        """
        if self.max_executions is None:
            return self.max_circuits
        return max(1, min(self.max_circuits, self.max_executions // max(shots, 1)))


@dataclass(frozen=True)
class Block:
    """One small circuit at one place: which template, and its native angles (radians, rounded to 8 decimals)."""

    template: int
    angles: tuple[float, ...]


@dataclass(frozen=True)
class Submission:
    """One job for a vendor.

    Args:
        templates: What blocks refer to.
        circuits: Each a tuple of blocks on disjoint qubits, which run side by side.
        shots: Shots of every circuit.
        token: Chosen by the client, unique for ever; a vendor that accepts tags gets it.
        seed: For simulated chips; others ignore it.
        options: Further settings of the provider (JSON values).
    """

    templates: tuple[NativeTemplate, ...]
    circuits: tuple[tuple[Block, ...], ...]
    shots: int
    token: str
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RawAnswer:
    """What a vendor answered, as it came, to be kept.

    Args:
        data: The answer; :meth:`Provider.parse` reads it again at any time, without a network.
        usage: What the job used, where the vendor says so: ``seconds``, ``cost``, ``currency``, and its own fields.
        job: Which job it was.
    """

    data: bytes
    usage: dict[str, Any]
    job: str


Counts = list[list[Tensor]]
"""Of every circuit and every block: whole numbers ``(2**k,)`` for the k wires of the block's template; wire 0 is the
most significant bit of the index. Their sum is the number of shots."""


class Provider(Protocol):
    """A way to run circuits. Calls may block for a while, not for ever; the module says what ``submit`` raises."""

    @property
    def name(self) -> str:
        """Name and chip, as the ledger keeps them: ``"virtual:wukong-72"``."""

    def caps(self) -> Caps:
        """What it can do."""

    def snapshot(self) -> ChipSnapshot:
        """The chip as it is now."""

    def submit(self, submission: Submission) -> str:
        """Hand in a job; the vendor's id of it.

        Raises:
            NotAcceptedError, UnknownOutcome, ProviderError: See the module.
        """

    def poll(self, job: str) -> JobState:
        """Where a job stands. Raises ProviderError where the vendor cannot be asked now."""

    def fetch(self, job: str) -> RawAnswer:
        """The answer of a job that is DONE. Raises ProviderError."""

    def parse(self, answer: RawAnswer, submission: Submission) -> Counts:
        """Counts from an answer, checked for completeness. Raises ProviderError for one that is not whole or right."""

    def cancel(self, job: str) -> bool:
        """Ask to stop a job; whether the vendor agreed. It may be done all the same."""

    def find(self, token: str) -> str | None:
        """The job with a token; ``None`` proves that there is none. Only where ``caps().finds``."""

    def close(self) -> None:
        """Let go of processes and connections."""
