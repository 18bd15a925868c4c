"""The SQLite file of a ledger: opened, locked, versioned, and written so that what is committed stays.

Write-ahead log, ``synchronous=FULL``: a transaction that has returned survives a crash of the process and of the
machine. One process writes (the operating system frees its lock when it dies); any number may read at the same time.
A reserve file keeps a little room on the disk: when the disk is full it is given up, so that the id of a job that was
just paid can still be written.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qpeft.errors import InputError, QPeftError
from qpeft.qpu.schema import APPLICATION, TABLES, VERSION

if TYPE_CHECKING:  # so that the library starts without SQLite
    from sqlite3 import Connection, Row

T = TypeVar("T")

FILE = "ledger.sqlite"
_RESERVE_BYTES = 1 << 18
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# primary result codes of SQLite
_BUSY, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 8, 10, 11, 13, 14, 26


class LedgerError(QPeftError, RuntimeError):
    """The ledger cannot be read or written; the message says what is safe and what to do."""


class DiskFull(LedgerError):
    """There is no room to write the ledger."""


class Store:
    """The file.

    Args:
        folder: Run folder; made if it is to be written.
        read_only: Only look: needs no lock, and works beside a process that writes.

    Raises:
        InputError: No ledger to read, a folder that cannot be written, another process writes, another schema.
        LedgerError: The file is damaged, or the disk is full.
    """

    def __init__(self, folder: Path, *, read_only: bool) -> None:
        self.path = folder / FILE
        self.read_only = read_only
        self._process = os.getpid()
        self._lock: Any = None
        self._connection: Connection | None = None
        if read_only and not self.path.is_file():
            raise InputError(f"{folder} holds no {FILE}: give a run folder that used a quantum computer.")
        try:
            if not read_only:
                self._take_lock(folder)
            with self._explained("open it"):
                self._connection = self._connect()
                self._check_schema()
                if not read_only:
                    self._keep_reserve()
        except BaseException:
            self.close()
            raise

    def _take_lock(self, folder: Path) -> None:
        from filelock import FileLock, Timeout

        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / "ledger.lock")
            lock.acquire(timeout=0)
        except Timeout as error:
            raise InputError(
                f"{folder} is in use by another run, which writes its ledger: wait for it to end, close the broker or "
                "executor that has it, or use another folder (`qpeft qpu show` works meanwhile)."
            ) from error
        except OSError as error:
            raise InputError(
                f"the ledger in {folder} cannot be written ({(error.strerror or str(error)).lower()}): "
                "choose another folder."
            ) from error
        self._lock = lock

    def _connect(self) -> Connection:
        import sqlite3

        def connect(how: str) -> Connection:
            address = f"{self.path.absolute().as_uri()}?{how}"
            # calls may come from the thread of a backward pass; the broker lets in one at a time
            connection = sqlite3.connect(address, uri=True, timeout=30, isolation_level=None, check_same_thread=False)
            connection.row_factory = sqlite3.Row
            try:
                connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            except BaseException:
                connection.close()
                raise
            return connection

        if not self.read_only:
            connection = connect("mode=rwc")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            return connection
        try:
            return connect("mode=ro")
        except sqlite3.OperationalError:
            # a folder that cannot be written has no room for the index of the write-ahead log
            if Path(f"{self.path}-wal").exists():
                raise
            return connect("mode=ro&immutable=1")

    def _check_schema(self) -> None:
        (application,) = self.rows("PRAGMA application_id")[0]
        (version,) = self.rows("PRAGMA user_version")[0]
        if not self.rows("SELECT 1 FROM sqlite_master LIMIT 1"):
            if self.read_only:
                raise InputError(f"{self.path} is empty: nothing was ever sent from this run.")
            self.write("set it up", _create)
        elif application != APPLICATION:
            raise InputError(f"{self.path} is a database of something else; choose another folder.")
        elif version > VERSION:
            raise InputError(f"{self.path} has schema {version}, newer than {VERSION}: update qpeft to read it.")
        elif version < VERSION:
            raise InputError(f"{self.path} has schema {version}, older than {VERSION}: use the qpeft that made it.")

    def _keep_reserve(self) -> None:
        reserve = self.path.with_name("ledger.reserve")
        if not reserve.exists():
            with open(reserve, "wb") as file:
                file.write(b"\0" * _RESERVE_BYTES)
                file.flush()
                os.fsync(file.fileno())

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """Rows of a query."""
        with self._explained("read it"):
            return self._open().execute(sql, values).fetchall()

    def write(self, what: str, change: Callable[[Connection], T]) -> T:
        """Run a change in one transaction; when this returns, it is on the disk.

        Args:
            what: Said in errors: "the ledger ... could not WHAT".
            change: Called with the connection, once more if the disk was full and the reserve made room.

        Raises:
            DiskFull, LedgerError: Nothing of the change was written.
        """
        try:
            return self._transact(what, change)
        except DiskFull:
            reserve = self.path.with_name("ledger.reserve")
            if not reserve.exists():
                raise
            with suppress(OSError):
                reserve.unlink()
            return self._transact(what, change)

    def _transact(self, what: str, change: Callable[[Connection], T]) -> T:
        import sqlite3

        connection = self._open()
        with self._explained(what):
            try:
                connection.execute("BEGIN IMMEDIATE")
                result = change(connection)
                connection.execute("COMMIT")
                return result
            except BaseException:
                with suppress(sqlite3.Error):
                    if connection.in_transaction:
                        connection.execute("ROLLBACK")
                raise

    def _open(self) -> Connection:
        if self._connection is None:
            raise LedgerError(f"the ledger {self.path} has been closed; open it again.")
        if os.getpid() != self._process:
            raise LedgerError(f"the ledger {self.path} was opened before this process was forked; open it here.")
        return self._connection

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what a disk and SQLite can do wrong into one sentence."""
        import sqlite3

        try:
            yield
        except sqlite3.Error as error:
            code = (getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
            if code in (_FULL, _IOERR):
                raise DiskFull(
                    f"the ledger {self.path} could not {what}: the disk is full or fails ({error}). "
                    "Free some space and start again; what was written before is safe."
                ) from error
            if code in (_CORRUPT, _NOTADB):
                raise LedgerError(
                    f"the ledger {self.path} is damaged ({error}): keep the file, send nothing from this folder, and "
                    "recover it with `sqlite3 ledger.sqlite .recover`."
                ) from error
            if code in (_READONLY, _CANTOPEN):
                raise LedgerError(
                    f"the ledger {self.path} could not {what} ({error}): check the folder's permissions."
                ) from error
            if code == _BUSY:
                raise LedgerError(f"the ledger {self.path} is held by another program; close it there.") from error
            raise LedgerError(f"the ledger {self.path} could not {what}: {error}.") from error
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise DiskFull(
                    f"the ledger {self.path} could not {what}: the disk is full; free some space."
                ) from error
            raise

    def close(self) -> None:
        """Let go of the file and its lock."""
        if os.getpid() != self._process:
            return
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def _create(connection: Connection) -> None:
    for statement in TABLES.split(";\n"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
