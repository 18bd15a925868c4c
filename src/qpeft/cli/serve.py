"""`qpeft serve`: an OpenAI-style endpoint for runs, adapters and their base, until Ctrl-C."""

from __future__ import annotations

import time
from typing import Any

from rich.markup import escape

from qpeft.cli.console import Steps, calm_libraries, notes, results
from qpeft.errors import MissingDependencyError


def run(
    targets: list[str], base: str | None, host: str, port: int, queue: int, max_new_tokens: int, dtype: str
) -> None:
    """Serve until Ctrl-C or a signal to end."""
    with Steps() as say:
        say("starting")
        calm_libraries()
        try:
            from qpeft.serving import Engine, Server, build_app, open_models
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise MissingDependencyError(
                f'qpeft serve needs {error.name}; install it with pip install "qpeft[serve]".'
            ) from error
        models = open_models(targets, base, dtype, say=say)
    engine = Engine(queue, report=_report)
    try:
        server = Server(build_app(models, engine, max_new_tokens), engine, host, port, stopping=_stopping)
        results.print(server.url)
        notes.print(f"models: {escape(', '.join(models))}. Ctrl-C ends it.")
        if host not in ("127.0.0.1", "localhost", "::1"):
            notes.print(
                "[yellow]Other machines can reach this address, and whoever does may ask: there are no keys.[/]"
            )
        server.run()
        notes.print("stopped")
    finally:
        engine.close()


def _report(job: Any, end: Any, seconds: float) -> None:
    what = f"{len(job.prompt)} + {end.n_tokens} tokens, {seconds:.1f} s, {end.reason}"
    sentence = f": {escape(end.text)}" if end.reason == "error" else ""
    notes.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(job.served.name)}: {what}{sentence}")


def _stopping(n_open: int) -> None:
    if n_open:
        notes.print(f"finishing {n_open} open requests; Ctrl-C again ends at once")
