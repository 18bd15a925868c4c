"""Reading a ledger: batches, jobs, answers, spending. Works beside the process that writes it."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qpeft.chips import NativeTemplate
from qpeft.errors import InputError
from qpeft.qpu.budget import Spend
from qpeft.qpu.protocol import RawAnswer, Submission
from qpeft.qpu.records import Placed, read_circuit, read_counts, read_template
from qpeft.qpu.schema import HELD, OPEN, SPENT, State
from qpeft.qpu.storage import Store

if TYPE_CHECKING:
    from sqlite3 import Row


@dataclass(frozen=True)
class Job:
    """A submission as the ledger has it.

    Args:
        id: Its number in the ledger.
        batch: Number of its batch.
        provider: Name of the provider.
        token: Chosen by the client.
        state: Where it stands.
        job: The vendor's id, once it is known.
        positions: Places of its circuits in the batch.
        shots: Shots of each circuit.
        seed: For simulated chips.
        attempts: How often it was handed in.
        note: Last thing that was said about it.
    """

    id: int
    batch: int
    provider: str
    token: str
    state: State
    job: str | None
    positions: tuple[int, ...]
    shots: int
    seed: int
    attempts: int
    note: str


@dataclass(frozen=True)
class Batch:
    """What was asked in one call of the broker."""

    id: int
    key: str
    purpose: str
    occurrence: int
    shots: int
    seed: int
    options: dict[str, Any]
    templates: tuple[str, ...]


class LedgerReader:
    """A ledger that is only looked at.

    Args:
        folder: Run folder.

    Raises:
        InputError: There is no ledger, or it is of another schema.
        LedgerError: It is damaged.

    Example:
        >>> reader = LedgerReader("runs/demo")  # doctest: +SKIP
        >>> [job.state for job in reader.jobs()]  # doctest: +SKIP
        [<State.DONE: 'done'>]
    """

    def __init__(self, folder: str | Path, *, read_only: bool = True) -> None:
        self.folder = Path(folder)
        self.store = Store(self.folder, read_only=read_only)
        self._templates: dict[str, NativeTemplate] = {}

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self.store.close()

    def jobs(
        self,
        *states: State,
        provider: str | None = None,
        batch: int | None = None,
    ) -> list[Job]:
        """Submissions in given states (all, if none is given), oldest first."""
        wanted, values = _in("state", states) if states else ("1", [])
        for column, value in (("provider", provider), ("batch", batch)):
            if value is not None:
                wanted += f" AND {column} = ?"
                values.append(value)
        return [_job(row) for row in self.store.rows(f"SELECT * FROM submissions WHERE {wanted} ORDER BY id", *values)]

    def job(self, name: int | str) -> Job:
        """A submission by its number, the vendor's id of it, or its token.

        Raises:
            InputError: There is none, or several vendors have one with that id.
        """
        rows = self.store.rows("SELECT * FROM submissions WHERE job = ? OR token = ?", str(name), str(name))
        if not rows and str(name).isdecimal() and len(str(name)) < 19:
            rows = self.store.rows("SELECT * FROM submissions WHERE id = ?", int(name))
        if len(rows) != 1:
            found = "several jobs" if rows else "no job"
            raise InputError(
                f"the ledger in {self.folder} has {found} {name!r}; `qpeft qpu show` lists their numbers."
            )
        return _job(rows[0])

    def find_batch(self, key: str) -> Batch | None:
        """The batch with a key."""
        rows = self.store.rows("SELECT * FROM batches WHERE key = ?", key)
        return _batch(rows[0]) if rows else None

    def batch(self, id: int) -> Batch:
        """The batch with a number."""
        return _batch(self.store.rows("SELECT * FROM batches WHERE id = ?", id)[0])

    def templates(self, batch: Batch) -> tuple[NativeTemplate, ...]:
        """Templates of a batch, which can read answers but not be bound to new inputs."""
        for digest in set(batch.templates) - set(self._templates):
            (row,) = self.store.rows("SELECT data FROM templates WHERE digest = ?", digest)
            self._templates[digest] = read_template(row["data"])
        return tuple(self._templates[digest] for digest in batch.templates)

    def circuits(self, batch: int, first: int = 0, last: int = 2**62) -> dict[int, Placed]:
        """Circuits of a batch by position."""
        rows = self.store.rows(
            "SELECT position, blocks FROM circuits WHERE batch = ? AND position BETWEEN ? AND ?", batch, first, last
        )
        return {row["position"]: read_circuit(row["blocks"]) for row in rows}

    def submission(self, job: Job) -> Submission:
        """What was, or is to be, handed in: rebuilt from the ledger alone."""
        batch = self.batch(job.batch)
        circuits = self.circuits(job.batch, min(job.positions), max(job.positions))
        chosen = tuple(circuits[position] for position in job.positions)
        return Submission(self.templates(batch), chosen, job.shots, job.token, job.seed, batch.options)

    def answer(self, job: Job) -> RawAnswer | None:
        """The last answer that was fetched, as it came."""
        rows = self.store.rows("SELECT raw, usage FROM results WHERE submission = ? ORDER BY id DESC LIMIT 1", job.id)
        if not rows:
            return None
        return RawAnswer(zlib.decompress(rows[0]["raw"]), json.loads(rows[0]["usage"]), job.job or "")

    def counts(self, batch: int) -> list[list[Tensor]]:
        """Counts of a batch that is answered whole."""
        rows = self.store.rows("SELECT counts FROM circuits WHERE batch = ? ORDER BY position", batch)
        return [read_counts(row["counts"]) for row in rows]

    def unanswered(self, batch: int) -> list[int]:
        """Positions of a batch that have no counts yet."""
        rows = self.store.rows(
            "SELECT position FROM circuits WHERE batch = ? AND counts IS NULL ORDER BY position", batch
        )
        return [row["position"] for row in rows]

    def unheld(self, batch: int, provider: str) -> list[int]:
        """Positions of a batch that have no counts and that no job of a provider may still bring."""
        held = {place for job in self.jobs(*HELD, batch=batch, provider=provider) for place in job.positions}
        return [position for position in self.unanswered(batch) if position not in held]

    def spent(self, provider: str, *states: State) -> Spend:
        """What submissions of a provider have used, as reported or else as estimated; by default all that may cost."""
        wanted, values = _in("state", states or SPENT)
        (row,) = self.store.rows(
            "SELECT COUNT(*) jobs, SUM(circuits) circuits, SUM(circuits * shots) shots, SUM(seconds) seconds, "
            f"SUM(cost) cost, SUM(cost IS NULL) unpriced FROM submissions WHERE {wanted} AND provider = ?",
            *values, provider,
        )  # fmt: skip
        if not row["jobs"]:
            return Spend()
        money = None if row["unpriced"] else row["cost"]
        return Spend(row["circuits"], row["jobs"], row["shots"], row["seconds"], money)

    def last_opened(self, provider: str) -> tuple[str, dict[str, Any]] | None:
        """Name and settings with which a provider was opened last."""
        rows = self.store.rows(
            "SELECT opened FROM runs WHERE provider = ? AND opened IS NOT NULL ORDER BY id DESC LIMIT 1", provider
        )
        if not rows:
            return None
        opened = json.loads(rows[0]["opened"])
        return opened["name"], opened["settings"]

    def providers(self) -> list[str]:
        """Names of all providers that were given work."""
        return [
            row["provider"] for row in self.store.rows("SELECT DISTINCT provider FROM submissions ORDER BY provider")
        ]

    def answered_by(self, batch: int | None = None) -> dict[str, int]:
        """How many circuits each provider answered, copies counted."""
        where, values = ("WHERE c.batch = ?", (batch,)) if batch is not None else ("", ())
        rows = self.store.rows(
            "SELECT s.provider, SUM(c.copies) n FROM circuits c JOIN submissions s ON s.id = c.submission "
            f"{where} GROUP BY s.provider",
            *values,
        )
        return {row["provider"]: row["n"] for row in rows}

    def events(self, job: int | None = None) -> list[dict[str, Any]]:
        """What happened, oldest first."""
        where, values = ("WHERE submission = ?", (job,)) if job is not None else ("", ())
        return [dict(row) for row in self.store.rows(f"SELECT * FROM events {where} ORDER BY id", *values)]

    def table(self, name: str) -> list[dict[str, Any]]:
        """Rows of `runs`, `batches` or `submissions`, oldest first."""
        assert name in ("runs", "batches", "submissions")
        return [dict(row) for row in self.store.rows(f"SELECT * FROM {name} ORDER BY id")]

    def open_jobs(self) -> list[Job]:
        """Jobs whose answers are still to come."""
        return self.jobs(*OPEN)


def _in(column: str, states: tuple[State, ...]) -> tuple[str, list[Any]]:
    return f"{column} IN ({', '.join('?' * len(states))})", [state.value for state in states]


def _job(row: Row) -> Job:
    return Job(
        row["id"], row["batch"], row["provider"], row["token"], State(row["state"]), row["job"],
        tuple(json.loads(row["positions"])), row["shots"], row["seed"], row["attempts"], row["note"] or "",
    )  # fmt: skip


def _batch(row: Row) -> Batch:
    return Batch(
        row["id"], row["key"], row["purpose"], row["occurrence"], row["shots"], row["seed"],
        json.loads(row["options"]), tuple(json.loads(row["templates"])),
    )  # fmt: skip
