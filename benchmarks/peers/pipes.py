"""A contender's worker process as seen by the driver: start it, ask it, give up on it after a while."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import threading
from pathlib import Path
from typing import Any

from peers.contenders import HERE, Contender

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_START = 120.0  # seconds for a worker to import its framework


class WorkerError(Exception):
    """A worker answered with an error, went away or took too long; the message is one line for the report."""


class WorkerProcess:
    """One contender on so many threads; processes of another ``place`` are pinned to other cores, if there are."""

    def __init__(self, contender: Contender, envs: Path, threads: int, place: int = 0) -> None:
        self.contender, self.log = contender, envs / "workers.log"
        envs.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads)), **dict(contender.variables)}
        # Apart for each number of threads: XLA splits loops for them when it compiles, and its keys do not say so.
        environment["JAX_COMPILATION_CACHE_DIR"] = str(envs / "compiled" / str(threads))
        environment["TF_CPP_MIN_LOG_LEVEL"] = "3"
        environment.pop("PYTHONPATH", None)
        command = [str(contender.python(envs)), str(HERE / "worker.py"), contender.module]
        command += ["--threads", str(threads), "--place", str(place)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
            )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()
        self._answer(_START)

    def ask(self, patience: float, **command: Any) -> dict[str, Any]:
        """Send one command and wait for its answer, at most ``patience`` seconds.

        Raises:
            WorkerError: The contender failed; its process has ended if it was too slow or died.
        """
        try:
            print(json.dumps(command), file=self._process.stdin, flush=True)
        except OSError as error:
            raise WorkerError(f"its process ended with code {self._process.wait()}") from error
        return self._answer(patience)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def stop(self) -> None:
        with contextlib.suppress(OSError):
            self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        for line in self._process.stdout:  # type: ignore[union-attr]
            self._answers.put(line)
        self._answers.put("")

    def _answer(self, patience: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=patience)
        except queue.Empty:
            self.stop()
            raise WorkerError(f"no answer within {patience:.0f} s") from None
        except BaseException:
            self.stop()
            raise
        if not line:
            raise WorkerError(f"its process ended with code {self._process.wait()} (see {self.log})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer
