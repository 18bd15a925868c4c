"""Tables and states of a ledger.

A submission moves along these states and no others; each step is one committed transaction with its event::

    INTENT ──> SUBMITTED ──> FETCHED ──> DONE
      │  │         │              └──> QUARANTINED ──> FETCHED (asked for again), FAILED
      │  │         └──> FAILED, CANCELLED
      │  └──> NOT_TAKEN ──> INTENT (the same job is tried again)
      └──> UNKNOWN ──> SUBMITTED (found), NOT_TAKEN (proven absent), ABANDONED (sent again at a known risk)
"""

from __future__ import annotations

from enum import StrEnum

VERSION = 1
"""``PRAGMA user_version`` of the ledgers that this code writes."""
APPLICATION = 0x71504C31
"""``PRAGMA application_id``: tells a ledger from other SQLite files."""


class State(StrEnum):
    """Where a submission stands."""

    INTENT = "intent"
    """It is about to be handed in, or just was: written before the vendor hears of it."""
    NOT_TAKEN = "not-taken"
    """Proven, or settled by the user: the vendor does not have it. It cost nothing and may be sent."""
    UNKNOWN = "unknown"
    """The vendor may have it."""
    ABANDONED = "abandoned"
    """The vendor may have it, and its circuits were sent again all the same, as the policy allowed."""
    SUBMITTED = "submitted"
    """The vendor has it under an id."""
    FETCHED = "fetched"
    """Its answer is kept as it came, not yet read."""
    QUARANTINED = "quarantined"
    """Its answer is kept, but it is not whole or not right."""
    DONE = "done"
    """Its answer is kept and checked."""
    FAILED = "failed"
    """The vendor says that it failed, or its answer was given up."""
    CANCELLED = "cancelled"
    """The vendor says that it was cancelled."""


STEPS: dict[State, tuple[State, ...]] = {
    State.INTENT: (State.SUBMITTED, State.NOT_TAKEN, State.UNKNOWN),
    State.NOT_TAKEN: (State.INTENT,),
    State.UNKNOWN: (State.SUBMITTED, State.NOT_TAKEN, State.ABANDONED),
    State.SUBMITTED: (State.FETCHED, State.FAILED, State.CANCELLED),
    State.FETCHED: (State.DONE, State.QUARANTINED, State.FAILED),
    State.QUARANTINED: (State.FETCHED, State.FAILED, State.CANCELLED),
    State.ABANDONED: (State.SUBMITTED, State.NOT_TAKEN),
    State.DONE: (),
    State.FAILED: (),
    State.CANCELLED: (),
}
"""From each state, where it may go."""

OPEN = (State.SUBMITTED, State.FETCHED, State.QUARANTINED)
"""The vendor has it or had it, and its answer is still to come, to be read, or to be asked for again."""
HELD = (State.INTENT, State.UNKNOWN, *OPEN)
"""Circuits of such a submission must not be sent again."""
SPENT = (State.INTENT, State.UNKNOWN, State.ABANDONED, *OPEN, State.DONE, State.FAILED, State.CANCELLED)
"""What counts against a budget: everything that may have been paid."""

TABLES = """
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, started REAL NOT NULL, provider TEXT NOT NULL, opened TEXT, snapshot TEXT NOT NULL,
    process INTEGER NOT NULL, version TEXT NOT NULL
);
CREATE TABLE templates (digest TEXT PRIMARY KEY, data TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE batches (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, run INTEGER NOT NULL REFERENCES runs(id), created REAL NOT NULL,
    purpose TEXT NOT NULL, occurrence INTEGER NOT NULL, shots INTEGER NOT NULL, seed INTEGER NOT NULL,
    options TEXT NOT NULL, templates TEXT NOT NULL, asked INTEGER NOT NULL
);
CREATE TABLE submissions (
    id INTEGER PRIMARY KEY, batch INTEGER NOT NULL REFERENCES batches(id), run INTEGER NOT NULL REFERENCES runs(id),
    provider TEXT NOT NULL, token TEXT NOT NULL UNIQUE, state TEXT NOT NULL, job TEXT, positions TEXT NOT NULL,
    circuits INTEGER NOT NULL, shots INTEGER NOT NULL, seed INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 1,
    created REAL NOT NULL, settled REAL, seconds REAL NOT NULL, cost REAL, currency TEXT, usage TEXT, note TEXT
);
CREATE INDEX submissions_by_batch ON submissions(batch);
CREATE INDEX submissions_by_state ON submissions(state);
CREATE UNIQUE INDEX submissions_by_job ON submissions(provider, job) WHERE job IS NOT NULL;
CREATE TABLE circuits (
    batch INTEGER NOT NULL REFERENCES batches(id), position INTEGER NOT NULL, copies INTEGER NOT NULL,
    digest TEXT NOT NULL, blocks BLOB NOT NULL, submission INTEGER REFERENCES submissions(id), counts BLOB,
    PRIMARY KEY (batch, position)
);
CREATE TABLE results (
    id INTEGER PRIMARY KEY, submission INTEGER NOT NULL REFERENCES submissions(id), fetched REAL NOT NULL,
    digest TEXT NOT NULL, raw BLOB NOT NULL, usage TEXT NOT NULL, UNIQUE (submission, digest)
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY, at REAL NOT NULL, run INTEGER, submission INTEGER, kind TEXT NOT NULL, detail TEXT NOT NULL
);
CREATE TRIGGER events_stay BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'events are never changed'); END;
CREATE TRIGGER events_last BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'events are never removed'); END;
"""
