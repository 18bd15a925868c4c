"""The application behind a socket: listens, and at Ctrl-C or a signal to end lets its clients finish first."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterator

import uvicorn
from starlette.applications import Starlette

from qpeft.errors import InputError
from qpeft.serving.engine import Engine

_BACKLOG = 4096
_OWN_FILES = 200  # of all open files, those that are not connections
_LAST_WORDS = 5  # seconds in which clients are told that their answer ends unfinished


class Server:
    """A listening server.

    Args:
        app: What answers.
        engine: Its engine, which is closed at the end.
        host: Address to listen on.
        port: 0 takes a free one.
        drain_seconds: How long open requests may go on once the server is to end; then they are told an error.
        stopping: Called once when that begins, with the number of open requests.

    Attributes:
        url: Where it listens.

    Raises:
        InputError: There is no such address, or it is in use.
    """

    def __init__(
        self,
        app: Starlette,
        engine: Engine,
        host: str = "127.0.0.1",
        port: int = 8000,
        drain_seconds: int = 30,
        stopping: Callable[[int], None] = lambda _: None,
    ) -> None:
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            self._socket = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except (OSError, OverflowError) as error:
            raise InputError(f"cannot listen on {host}:{port}: {error}; choose another --port, or 0.") from error
        self._engine = engine
        address = f"[{host}]" if ":" in host else host
        self.url = f"http://{address}:{self._socket.getsockname()[1]}"
        # The application answers every fault itself; the levels below would log request by request.
        config = uvicorn.Config(
            app, http="h11", ws="none", lifespan="off", log_config=None, log_level="critical", access_log=False,
            limit_concurrency=_most_connections(), backlog=_BACKLOG,
            timeout_graceful_shutdown=drain_seconds + _LAST_WORDS, server_header=False,
        )  # fmt: skip
        self._server = _Uvicorn(
            config, lambda: stopping(engine.open_jobs), threading.Timer(drain_seconds, engine.stop)
        )

    def run(self) -> None:
        """Serve until a signal: after Ctrl-C `KeyboardInterrupt` follows, SIGTERM is a good end."""
        with _good_end():
            try:
                self._server.run(sockets=[self._socket])
            finally:
                self._engine.close()

    def stop(self) -> None:
        """End `run` from another thread."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, stopping: Callable[[], None], patience: threading.Timer) -> None:
        super().__init__(config)
        self._stopping = stopping
        self._patience = patience
        patience.daemon = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        self._patience.start()
        try:
            await super().shutdown(sockets)
        finally:
            self._patience.cancel()


@contextlib.contextmanager
def _good_end() -> Iterator[None]:
    """Lets SIGTERM, which the server raises again when it has ended, pass."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _most_connections() -> int | None:
    """Connections that fit the limit on open files, after raising it as far as the system allows."""
    try:
        import resource
    except ImportError:  # not a Unix
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 65_536)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return max(1, soft - _OWN_FILES)
