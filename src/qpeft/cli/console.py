"""How commands speak: progress and notes on the error stream, results on the output stream.

`--quiet` leaves only results; `--json` makes the result one JSON document.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.markup import escape
from rich.status import Status


class _Console(Console):
    """Breaks lines for a terminal alone: a log or another program wants paths, commands and table rows whole."""

    @property
    def size(self) -> ConsoleDimensions:
        return super().size if self.is_terminal else ConsoleDimensions(1000, 25)

    @size.setter
    def size(self, new_size: tuple[int, int]) -> None:
        self._width, self._height = new_size


#: notes and progress
notes = _Console(stderr=True, highlight=False)
#: results
results = _Console(highlight=False)


def report_error(sentence: str, word: str = "error") -> None:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"[bold red]{word}:[/] {escape(sentence)}")


def be_quiet(quiet: bool) -> None:
    notes.quiet = quiet


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def calm_libraries() -> None:
    """Keep the libraries' own progress bars and advice out of ours; warnings that concern the run remain."""
    from qpeft.training import library_noise

    library_noise.turn_off()
    logger = logging.getLogger("qpeft")
    if not any(isinstance(handler, _NotesHandler) for handler in logger.handlers):
        logger.addHandler(_NotesHandler())
    logger.setLevel(logging.INFO)


class _NotesHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        colour = "yellow" if record.levelno >= logging.WARNING else "dim"
        notes.print(f"[{colour}]{escape(record.getMessage())}[/]")


class Steps:
    """Shows what a long preparation is doing, one sentence at a time; call `close` before another live display."""

    def __init__(self) -> None:
        self._status: Status | None = None

    def __call__(self, sentence: str) -> None:
        if not notes.is_terminal:
            notes.print(escape(sentence))
        elif self._status is None:
            self._status = notes.status(escape(sentence))
            self._status.start()
        else:
            self._status.update(escape(sentence))

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def __enter__(self) -> Steps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
