"""`qpeft cloud serve`: starts the virtual cloud, says how to reach it, and tells what happens to tasks."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from pathlib import Path
from typing import Any

from rich.markup import escape

from qpeft.chips import load_chip
from qpeft.chips.virtual import VirtualChip
from qpeft.cli.console import notes, results
from qpeft.cloud import CloudServer, FaultScript, TaskBook, VirtualCloud
from qpeft.errors import InputError

_KNOWN_AS = {"wukong-72": "72", "wukong-72-ideal": "72"}


def run(
    chips: list[str],
    host: str,
    port: int,
    allow_remote: bool,
    crosstalk: float,
    faults: Path | None,
    folder: Path | None,
    speed: float,
    seed: int,
) -> None:
    """Serve until Ctrl-C or a signal to end."""
    if speed < 0:
        raise InputError(f"--speed must be positive, or 0 for as fast as it simulates (got {speed:g}).")
    served: dict[str, Any] = {}
    for text in chips:
        given, equals, preset = text.partition("=")
        snapshot = load_chip(preset if equals else given)
        name = given if equals else _KNOWN_AS.get(given, Path(given).stem)
        served[name] = VirtualChip(snapshot, crosstalk=crosstalk)
    script = FaultScript.load(faults) if faults else FaultScript()
    cloud = VirtualCloud(served, TaskBook(folder), speed or float("inf"), seed, tell=_tell)
    ended = threading.Event()
    previous = signal.signal(signal.SIGTERM, lambda *_: ended.set())  # before anybody can reach the server
    try:
        with contextlib.closing(CloudServer(cloud, host, port, script, allow_remote)) as server:
            _introduce(server.url, next(iter(served)))
            while not ended.wait(0.5):
                pass
            notes.print("stopped")
    finally:
        signal.signal(signal.SIGTERM, previous)
        cloud.close()


def _introduce(url: str, chip: str) -> None:
    results.print(url)
    notes.print(
        f"A virtual Wukong listens there; open it in a browser to see its queue. In another terminal:\n\n"
        f"  export QPEFT_ORIGIN_URL={url}\n\n"
        f'and then use the executor "origin" with chip "{escape(chip)}"; any key will do. '
        f"pyqpanda3: QCloudService(key, url). Ctrl-C ends it."
    )


def _tell(line: str) -> None:
    notes.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(line)}")
