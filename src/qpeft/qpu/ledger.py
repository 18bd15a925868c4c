"""The ledger of a run: everything that costs money or hours is written down before it happens.

One SQLite file in the run folder. Before a job is handed in, its intent is committed; whatever happens then (an id, a
refusal, a doubt, an answer) is committed before the next thing is done. A process may be killed between any two
statements: who opens the ledger again finds for every job either what became of it or that nobody knows
(:attr:`State.UNKNOWN`), and never sends anything that the vendor may have without saying so.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qpeft.qpu.budget import Spend
from qpeft.qpu.protocol import RawAnswer
from qpeft.qpu.reading import Batch, Job, LedgerReader
from qpeft.qpu.records import (
    canonical,
    check_no_credentials,
    digest,
    scrubbed,
    write_counts,
)
from qpeft.qpu.schema import STEPS, State
from qpeft.version import __version__

if TYPE_CHECKING:
    from sqlite3 import Connection


class Ledger(LedgerReader):
    """A ledger that this process writes; others may read it meanwhile.

    Jobs whose intent was written by a process that died before it wrote what came of it become UNKNOWN.

    Args:
        folder: Run folder, made if there is none.

    Raises:
        InputError: Another process writes this ledger, or the folder cannot be written.
        LedgerError: The file is damaged, or the disk is full.

    Example:
        >>> with Ledger("runs/demo") as ledger:  # doctest: +SKIP
        ...     ledger.jobs(State.UNKNOWN)
        []
    """

    def __init__(self, folder: str | Path) -> None:
        super().__init__(folder, read_only=False)
        self.run: int | None = None
        self.lock = threading.RLock()
        """Held by a broker while it works: several brokers of one process may share a ledger."""
        try:
            self.forget_intents()
        except BaseException:
            self.close()
            raise

    def forget_intents(self) -> None:
        """Turn intents into UNKNOWN. Nobody is handing anything in now, so whoever meant to was stopped."""
        for job in self.jobs(State.INTENT):
            self.move(job, State.UNKNOWN, "the process was stopped while it was handed in")

    def start_run(self, provider: str, opened: tuple[str, dict[str, Any]] | None, snapshot: str) -> str | None:
        """Write down which provider is used from now on, how it was opened, and the state of its chip.

        Returns:
            The state of the chip when this provider was used last, if it ever was.

        Raises:
            InputError: The settings hold a credential.
        """
        if opened is not None:
            check_no_credentials(opened[1])
        how = None if opened is None else canonical({"name": opened[0], "settings": opened[1]})
        last = self.store.rows("SELECT snapshot FROM runs WHERE provider = ? ORDER BY id DESC LIMIT 1", provider)
        values = (time.time(), provider, how, snapshot, os.getpid(), __version__)

        def change(db: Connection) -> int:
            cursor = db.execute(
                "INSERT INTO runs (started, provider, opened, snapshot, process, version) VALUES (?, ?, ?, ?, ?, ?)",
                values,
            )
            self._tell(db, None, "started", f"{provider}, chip state {snapshot}", run=cursor.lastrowid)
            return int(cursor.lastrowid or 0)

        self.run = self.store.write("start a run", change)
        return last[0]["snapshot"] if last else None

    def add_batch(
        self, batch: Batch, templates: Sequence[str], circuits: Sequence[tuple[bytes, int]], asked: int
    ) -> Batch:
        """Write down a batch before anything of it is sent.

        Args:
            batch: What is asked; its number is chosen here.
            templates: Templates as text, in the order of ``batch.templates``.
            circuits: Each circuit, from :func:`~qpeft.qpu.records.write_circuit`, and how often it was asked for.
            asked: Circuits asked for in all.

        Returns:
            The batch with its number.
        """
        rows = [
            (position, copies, digest(circuit, *batch.templates)[:32], circuit)
            for position, (circuit, copies) in enumerate(circuits)
        ]

        def change(db: Connection) -> Batch:
            db.executemany(
                "INSERT OR IGNORE INTO templates (digest, data) VALUES (?, ?)",
                zip(batch.templates, templates, strict=True),
            )
            cursor = db.execute(
                "INSERT INTO batches (key, run, created, purpose, occurrence, shots, seed, options, templates, asked) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (batch.key, self.run, time.time(), batch.purpose, batch.occurrence, batch.shots, batch.seed,
                 canonical(batch.options), json.dumps(batch.templates), asked),
            )  # fmt: skip
            number = int(cursor.lastrowid or 0)
            db.executemany(
                "INSERT INTO circuits (batch, position, copies, digest, blocks) VALUES (?, ?, ?, ?, ?)",
                ((number, *row) for row in rows),
            )
            return replace(batch, id=number)

        return self.store.write("add a batch (nothing was sent)", change)

    def intend(
        self, batch: Batch, provider: str, positions: Sequence[int], seed: int, expected: Spend, currency: str | None
    ) -> Job:
        """Commit that a job is about to be handed in. Its token is new and will never be used for another."""
        token = f"qpeft-{uuid.uuid4().hex}"

        def change(db: Connection) -> Job:
            cursor = db.execute(
                "INSERT INTO submissions (batch, run, provider, token, state, positions, circuits, shots, seed, "
                "created, seconds, cost, currency) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (batch.id, self.run, provider, token, State.INTENT.value, json.dumps(list(positions)), len(positions),
                 batch.shots, seed, time.time(), expected.seconds, expected.money, currency),
            )  # fmt: skip
            number = int(cursor.lastrowid or 0)
            self._tell(db, number, State.INTENT.value, f"{len(positions)} circuits for {provider}")
            return Job(
                number, batch.id, provider, token, State.INTENT, None, tuple(positions), batch.shots, seed, 1, ""
            )

        return self.store.write("write the intent of a job (it was not sent)", change)

    def move(self, job: Job, state: State, note: str, *, vendor_id: str | None = None) -> Job:
        """Commit what became of a job.

        Args:
            job: The job.
            state: Its new state, one that may follow its present one.
            note: Why, for people; credentials in it are struck out.
            vendor_id: Where the vendor took it.

        Returns:
            The job as it is now.
        """
        note = scrubbed(note)[:2000]
        again = state is State.INTENT  # tried once more

        def change(db: Connection) -> Job:
            self._step(db, job, state, note)
            db.execute(
                "UPDATE submissions SET job = COALESCE(?, job), attempts = attempts + ?, settled = ? WHERE id = ?",
                (vendor_id, int(again), time.time() if not STEPS[state] else None, job.id),
            )
            return replace(job, state=state, note=note, job=vendor_id or job.job, attempts=job.attempts + int(again))

        return self.store.write(f"write that job {vendor_id or job.job or job.token} is {state.value}", change)

    def keep_answer(self, job: Job, answer: RawAnswer) -> Job:
        """Commit an answer as it came, before anybody tries to read it; settle what it says that was used."""
        raw = zlib.compress(answer.data, 6)
        usage = scrubbed(json.dumps(answer.usage, default=str))
        seconds, cost = (_amount(answer.usage.get(name)) for name in ("seconds", "cost"))
        currency = answer.usage.get("currency")

        def change(db: Connection) -> Job:
            self._step(db, job, State.FETCHED, f"{len(answer.data)} bytes")
            db.execute(
                "INSERT OR IGNORE INTO results (submission, fetched, digest, raw, usage) VALUES (?, ?, ?, ?, ?)",
                (job.id, time.time(), digest(answer.data), raw, usage),
            )
            # a cost in another currency than the price's cannot be compared with the budget: the estimate stays
            db.execute(
                "UPDATE submissions SET usage = ?, seconds = COALESCE(?, seconds), "
                "cost = CASE WHEN ? IS NOT NULL AND (currency IS NULL OR currency = ?) THEN ? ELSE cost END, "
                "currency = COALESCE(currency, ?) WHERE id = ?",
                (usage, seconds, cost, currency or "", cost, currency, job.id),
            )
            return replace(job, state=State.FETCHED)

        return self.store.write(f"keep the answer of job {job.job}", change)

    def finish(self, job: Job, counts: Sequence[Sequence[Tensor]]) -> Job:
        """Commit the counts of a job, checked; a circuit that has counts already keeps them."""
        rows = [
            (job.id, write_counts(blocks), job.batch, position)
            for position, blocks in zip(job.positions, counts, strict=True)
        ]

        def change(db: Connection) -> Job:
            self._step(db, job, State.DONE, f"{len(rows)} circuits")
            db.executemany(
                "UPDATE circuits SET submission = ?, counts = ? WHERE batch = ? AND position = ? AND counts IS NULL",
                rows,
            )
            db.execute("UPDATE submissions SET settled = ? WHERE id = ?", (time.time(), job.id))
            return replace(job, state=State.DONE)

        return self.store.write(f"write the counts of job {job.job}", change)

    def tell(self, kind: str, detail: str, job: Job | None = None) -> None:
        """Append an event."""
        self.store.write("write an event", lambda db: self._tell(db, job.id if job else None, kind, detail))

    def _tell(self, db: Connection, job: int | None, kind: str, detail: str, run: int | None = None) -> None:
        db.execute(
            "INSERT INTO events (at, run, submission, kind, detail) VALUES (?, ?, ?, ?, ?)",
            (time.time(), run or self.run, job, kind, scrubbed(detail)[:2000]),
        )

    def _step(self, db: Connection, job: Job, state: State, note: str) -> None:
        """Move a job along the states; one that another hand has moved meanwhile stays where it is."""
        assert state in STEPS[job.state], f"{job.state} -> {state}"
        changed = db.execute(
            "UPDATE submissions SET state = ?, note = ? WHERE id = ? AND state = ?",
            (state.value, note, job.id, job.state.value),
        )
        assert changed.rowcount == 1, f"job {job.id} is not {job.state}"
        self._tell(db, job.id, state.value, note)


def _amount(value: Any) -> float | None:
    """A number that a vendor reported, or ``None`` where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value < 0:
        return None
    return float(value)
