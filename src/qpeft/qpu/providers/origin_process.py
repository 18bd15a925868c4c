"""The worker process of Origin's client, seen from outside: started when needed, watched, killed when it hangs.

One call at a time goes down the worker's standard input and one answer comes back (:mod:`origin_worker`). A call that
takes longer than its limit, or during which this program is interrupted, costs the worker its life; the next call
starts a new one. The worker ends by itself when this program does, however that happens.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import queue
import re
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from qpeft.errors import MissingDependencyError
from qpeft.qpu.protocol import ProviderError

KEY_VARIABLES = ("QPEFT_ORIGIN_KEY", "ORIGIN_API_KEY")
HTTP_VARIABLE = "QPEFT_ORIGIN_ALLOW_HTTP"
DEAD_END = "127.0.0.1 port 9"  # where requests without encryption end: the port to discard things, as a proxy
START_SECONDS = 120.0  # importing the client takes 1 to 3 s, much longer on a machine that is busy

_LONGEST_MESSAGE = 400
_MISSING = 'Origin\'s chips need pyqpanda3; install it with: pip install "qpeft[origin]"'


class CallFailed(Exception):
    """The client raised something; ``sent`` says whether a request may have reached the cloud."""

    def __init__(self, text: str, sent: bool) -> None:
        super().__init__(text)
        self.sent = sent


class WorkerLost(Exception):
    """The worker was killed at its time limit, or died: what became of the call is not known."""


def is_loopback(url: str | None) -> bool:
    """Whether a URL leads to this machine."""
    host = urlsplit(url).hostname if url else None
    return host is not None and (host in ("localhost", "::1") or host.startswith("127."))


def find_key(url: str | None = None) -> str:
    """The key for Origin's cloud, from the environment or the keyring; it is looked up anew each time, never kept.

    Args:
        url: Of the service. A loopback cloud takes any key: there the word ``loopback`` stands in for none.

    Raises:
        ProviderError: There is none.
    """
    for name in KEY_VARIABLES:
        key = os.environ.get(name, "").strip()
        if key:
            return key
    if is_loopback(url):
        return "loopback"
    if importlib.util.find_spec("keyring") is not None:
        import keyring

        with contextlib.suppress(keyring.errors.KeyringError):
            key = (keyring.get_password("qpeft", "origin") or "").strip()
            if key:
                return key
    raise ProviderError(
        f"there is no key for Origin's cloud: set {KEY_VARIABLES[0]} in the environment, or store it with "
        f"`keyring set qpeft origin`; the key stands on the account page of Origin's cloud."
    )


def scrub(text: str, url: str | None = None) -> str:
    """A message of the vendor without anything that could be the key."""
    with contextlib.suppress(ProviderError):
        key = find_key(url)
        if key != "loopback":
            text = text.replace(key, "***")
    return re.sub(r"(?i)(oqcs_auth\s*=|authorization\s*:)\s*\S+", r"\1***", text)


def shorten(text: str) -> str:
    """One line of a message, of a readable length."""
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."


class OriginProcess:
    """The one worker of a provider.

    Args:
        chip: Name of the chip at Origin.
        url: Of the service, or ``None`` for the one that the client chooses by the key.
        timeout: Seconds that one call may take.
        allow_http: Whether requests may leave this machine unencrypted.
    """

    def __init__(self, chip: str, url: str | None, timeout: float, allow_http: bool = False) -> None:
        self._chip = chip
        self._url = url
        self._timeout = timeout
        self._allow_http = allow_http
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self._process: subprocess.Popen[str] | None = None
        self._answers: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    @property
    def pid(self) -> int | None:
        """Of the worker, while there is one."""
        return self._process.pid if self._process is not None else None

    def call(self, name: str, **arguments: Any) -> Any:
        """Let the worker do something and wait for it.

        Raises:
            CallFailed: The client raised an error.
            WorkerLost: Time limit, or the worker died.
            ProviderError: There is no key.
            MissingDependencyError: There is no pyqpanda3.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._ask(name, self._timeout, arguments)

    def close(self) -> None:
        """End the worker."""
        process, self._process = self._process, None
        if process is not None:
            _end(process)

    def _start(self) -> None:
        self.close()
        if importlib.util.find_spec("pyqpanda3") is None:
            raise MissingDependencyError(_MISSING)
        key = find_key(self._url)
        # -P: this folder holds files called like packages (qiskit.py) and must not be searched for them.
        script = Path(__file__).with_name("origin_worker.py")
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env=self._environment(),
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        weakref.finalize(self, _end, self._process)
        try:
            self._ask("open", START_SECONDS, {"key": key, "url": self._url, "chip": self._chip})
        except CallFailed as error:
            self.close()
            raise CallFailed(str(error), sent=False) from None
        except WorkerLost as error:
            raise CallFailed(f"the process of Origin's client did not start: {error}", sent=False) from None

    def _environment(self) -> dict[str, str]:
        """Without the key, and with proxies that keep it from travelling unencrypted.

        With a key of the old kind, and no URL, the client itself chooses an address that begins with ``http://``.
        """
        environment = {name: value for name, value in os.environ.items() if name not in KEY_VARIABLES}
        if not self._allow_http:
            host, _, port = DEAD_END.partition(" port ")
            environment["http_proxy"] = f"http://{host}:{port}"
        keep = environment.get("no_proxy", environment.get("NO_PROXY", ""))
        environment["no_proxy"] = ",".join(filter(None, [keep, "127.0.0.1,localhost,::1"]))
        return environment

    def _ask(self, name: str, limit: float, arguments: dict[str, Any]) -> Any:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        number = next(self._numbers)
        try:
            process.stdin.write(json.dumps({"id": number, "call": name, "limit": limit, **arguments}) + "\n")
            process.stdin.flush()
            answer = self._wait(number, limit)
        except OSError:
            self.close()
            raise WorkerLost("the process of Origin's client ended") from None
        except BaseException:  # the time limit, and Ctrl-C too: nobody waits for this answer any more
            self.close()
            raise
        if "error" not in answer:
            return answer["value"]
        if answer.get("missing"):
            self.close()
            raise MissingDependencyError(f"{_MISSING} ({shorten(answer['error'])})")
        raise CallFailed(shorten(scrub(answer["error"], self._url)), answer["sent"])

    def _wait(self, number: int, limit: float) -> dict[str, Any]:
        ends = time.monotonic() + limit
        while True:
            try:
                line = self._answers.get(timeout=max(0.0, ends - time.monotonic()))
            except queue.Empty:
                raise WorkerLost(f"no answer within {limit:g} s") from None
            if line is None:
                raise WorkerLost("the process of Origin's client ended")
            answer: dict[str, Any] = json.loads(line)
            if answer["id"] == number:
                return answer


def _read(process: subprocess.Popen[str], answers: queue.SimpleQueue[str | None]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(ValueError, OSError):
        for line in process.stdout:
            answers.put(line)
    answers.put(None)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.close()
