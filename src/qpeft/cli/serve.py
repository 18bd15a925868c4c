"""`qpeft serve`: an OpenAI-style endpoint for runs, adapters and their base, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.markup import escape

from qpeft.cli.console import Steps, calm_libraries, notes, results
from qpeft.cli.evaluate import execution_section
from qpeft.cli.tables import execution_table
from qpeft.errors import InputError, MissingDependencyError

_BATCH = 8  # requests that are answered together


def run(
    targets: list[str],
    base: str | None,
    host: str,
    port: int,
    queue: int,
    batch: int | None,
    max_new_tokens: int,
    dtype: str | None,
    execution: Mapping[str, Any],
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
        from qpeft.training.execution import executing

        where, folder = _circuits(targets, batch, execution)
        models = open_models(targets, base, dtype, say=say)
    asked = next(iter(models.values()))  # with an executor the only one that has circuits
    with executing(where, asked.model, folder) as chip:
        engine = Engine(queue, (batch or _BATCH) if chip is None else 1, report=_report)
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
            if chip is not None:
                notes.print(execution_table(asdict(chip.report())))


def _circuits(targets: list[str], batch: int | None, execution: Mapping[str, Any]) -> tuple[Any, Path | None]:
    """Where circuits run, and the folder of the run, which keeps the ledger of what they cost."""
    from qpeft.serving.models import named_target
    from qpeft.training.execution import ExecutionSection

    place = named_target(targets[0])[1]
    where = execution_section(place.recipe.execution if place.recipe else ExecutionSection(), execution)
    if where.executor != "exact":
        if len(targets) > 1:
            raise InputError(
                f"--executor {where.executor} serves the circuits of one run, with its ledger and budget (got "
                f"{len(targets)}): serve the others from servers of their own"
            )
        if batch not in (None, 1):
            raise InputError(
                f"--batch {batch} does not go with --executor {where.executor}, on which requests are answered one "
                "after the other: leave it out"
            )
    return where, place.run.path if place.run else None


def _report(job: Any, end: Any, seconds: float) -> None:
    what = f"{len(job.prompt)} + {end.n_tokens} tokens, {seconds:.1f} s, {end.reason}"
    sentence = f": {escape(end.text)}" if end.reason == "error" else ""
    notes.print(f"[dim]{time.strftime('%H:%M:%S')}[/] {escape(job.served.name)}: {what}{sentence}")


def _stopping(n_open: int) -> None:
    if n_open:
        notes.print(f"finishing {n_open} open requests; Ctrl-C again ends at once")
