"""The cloud's memory of its tasks: one SQLite file, so that a server that is stopped or killed goes on where it was.

States are Origin's numbers: 1 waiting, 2 computing, 3 finished, 4 failed, 5 queuing. A task is on disk before its
number is told to anybody; one that was being computed when the server died is computed again.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qpeft.errors import InputError

WAITING, COMPUTING, FINISHED, FAILED, QUEUING = 1, 2, 3, 4, 5

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tasks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    chip TEXT NOT NULL,
    batch TEXT NOT NULL,
    n_programs INTEGER NOT NULL,
    shots INTEGER NOT NULL,
    request BLOB NOT NULL,
    state INTEGER NOT NULL,
    created REAL NOT NULL,
    started REAL,
    ended REAL,
    message TEXT NOT NULL DEFAULT '',
    answer BLOB
)
"""


@dataclass(frozen=True)
class Task:
    """A task; times are seconds since 1970."""

    number: int
    id: str
    chip: str
    batch: str
    n_programs: int
    shots: int
    state: int
    created: float
    started: float | None
    ended: float | None
    message: str


_COLUMNS = ", ".join(Task.__annotations__)


class TaskBook:
    """All tasks of a server.

    Args:
        folder: Where ``tasks.sqlite`` is kept; ``None`` keeps tasks in memory.

    Raises:
        InputError: The folder cannot be written, another server uses it, or the file is something else.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._lock = threading.RLock()
        self._owner: FileLock | None = None
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                self._owner = FileLock(folder / "tasks.lock")
                self._owner.acquire(timeout=0)
            place = ":memory:" if folder is None else str(folder / "tasks.sqlite")
            self._file = sqlite3.connect(place, check_same_thread=False, isolation_level=None)
            self._file.execute("PRAGMA journal_mode=WAL")
            self._file.execute(_SCHEMA)
            self._file.execute("UPDATE tasks SET state = ?, started = NULL WHERE state = ?", (WAITING, COMPUTING))
        except Timeout:
            raise InputError(f"another server keeps its tasks in {folder}; choose another folder.") from None
        except (OSError, sqlite3.Error) as error:
            raise InputError(f"the tasks cannot be kept in {folder}: {error}; choose another folder.") from error

    def add(self, chip: str, batch: str, request: dict[str, Any]) -> str:
        """Write a task down; its id."""
        name = uuid.uuid4().hex.upper()
        shots, programs = request["shots"], request["programs"]
        values = (name, chip, batch, len(programs), shots, _packed(request), WAITING, time.time())
        with self._lock:
            self._file.execute(
                "INSERT INTO tasks (id, chip, batch, n_programs, shots, request, state, created) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                values,
            )
        return name

    def find(self, name: str) -> Task | None:
        """A task by its id."""
        rows = self._rows("WHERE id = ?", (name,))
        return rows[0] if rows else None

    def last(self, count: int) -> list[Task]:
        """The newest tasks, newest first."""
        return self._rows("ORDER BY number DESC LIMIT ?", (count,))

    def request(self, name: str) -> dict[str, Any]:
        """What was handed in."""
        return self._one("SELECT request FROM tasks WHERE id = ?", name)

    def answer(self, name: str) -> dict[str, Any]:
        """What came out of a finished task."""
        return self._one("SELECT answer FROM tasks WHERE id = ?", name)

    def start_next(self) -> Task | None:
        """Take the oldest task that waits, and mark it as computing."""
        with self._lock:
            rows = self._rows("WHERE state IN (?, ?) ORDER BY number LIMIT 1", (WAITING, QUEUING))
            if not rows:
                return None
            self._file.execute(
                "UPDATE tasks SET state = ?, started = ? WHERE id = ?", (COMPUTING, time.time(), rows[0].id)
            )
            return self.find(rows[0].id)

    def end(self, name: str, answer: dict[str, Any] | None, message: str = "") -> None:
        """Finish a task with its answer, or fail it with a message; one that was cancelled meanwhile stays so."""
        state = FAILED if answer is None else FINISHED
        content = None if answer is None else _packed(answer)
        with self._lock:
            self._file.execute(
                "UPDATE tasks SET state = ?, ended = ?, answer = ?, message = ? WHERE id = ? AND state = ?",
                (state, time.time(), content, message, name, COMPUTING),
            )

    def cancel(self, name: str) -> bool:
        """Fail a task that is not over yet."""
        with self._lock:
            cursor = self._file.execute(
                "UPDATE tasks SET state = ?, ended = ?, message = 'task cancelled' "
                "WHERE id = ? AND state IN (?, ?, ?)",
                (FAILED, time.time(), name, WAITING, QUEUING, COMPUTING),
            )
            return cursor.rowcount == 1

    def close(self) -> None:
        with self._lock:
            self._file.close()
            if self._owner is not None:
                self._owner.release()

    def _rows(self, condition: str, values: tuple[Any, ...]) -> list[Task]:
        with self._lock:
            return [Task(*row) for row in self._file.execute(f"SELECT {_COLUMNS} FROM tasks {condition}", values)]

    def _one(self, query: str, name: str) -> dict[str, Any]:
        with self._lock:
            content: bytes = self._file.execute(query, (name,)).fetchone()[0]
        found: dict[str, Any] = json.loads(zlib.decompress(content))
        return found


def _packed(content: dict[str, Any]) -> bytes:
    """JSON, compressed: programs and results are long and repetitive."""
    return zlib.compress(json.dumps(content, separators=(",", ":")).encode(), level=1)
