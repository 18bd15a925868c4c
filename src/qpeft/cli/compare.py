"""`qpeft compare`: a grid of fine-tunings, its statistics and its report."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from qpeft.cli.console import Steps, calm_libraries, notes, print_json, results
from qpeft.errors import InputError, Interrupted


def run(
    plan: Path,
    overrides: list[str],
    jobs: int,
    engine: str,
    address: str | None,
    report_only: bool,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    if engine not in ("local", "ray"):
        raise InputError(f"there is no engine {engine!r}: choose local or ray")
    if address is not None and engine != "ray":
        raise InputError("--address names a Ray cluster: add --engine ray")
    calm_libraries()
    with Steps() as say:
        say("starting")
        from qpeft.compare.grid import Grid, read_grid, remove_grid
        from qpeft.compare.plan import load_plan, plan_yaml

    if plan.is_dir() and overrides:
        raise InputError(
            f"{plan} is a comparison that was started, and its plan stays as it is: leave {overrides[0]} out"
        )
    if plan.is_dir():
        grid = read_grid(plan)
    else:
        read = load_plan(plan, overrides)
        if overwrite:
            remove_grid(Path(read.output))
        grid = Grid(read)
    if dry_run:
        results.print(plan_yaml(grid.plan).rstrip(), markup=False)
        results.print("\nThe plan is good. Nothing was written.")
        return
    if report_only:
        grid.report()
        _show(grid, as_json)
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill saves, as Ctrl-C does
    try:
        with _Shown() as shown:
            grid.say = shown.say
            grid.run(_engine(engine, address), jobs, shown.tell)
    except KeyboardInterrupt as error:
        raise Interrupted(f"finished cells are kept; go on with: qpeft compare {grid.folder}") from error
    finally:
        signal.signal(signal.SIGTERM, previous)
    _show(grid, as_json)


def _engine(name: str, address: str | None) -> Callable[..., Any]:
    if name == "ray":
        from functools import partial

        from qpeft.compare.ray_engine import run_on_ray

        return partial(run_on_ray, address=address)
    from qpeft.compare.local_engine import run_locally

    return run_locally


class _Shown:
    """Cells done, time left, and a line for each cell."""

    def __init__(self) -> None:
        self._steps = Steps()
        self._bar: Progress | None = None
        self._task: Any = None
        self._began: tuple[float, int] | None = None

    def __enter__(self) -> _Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self._steps.close()
        if self._bar is not None:
            self._bar.stop()

    def say(self, sentence: str) -> None:
        if self._bar is None:
            self._steps(sentence)

    def tell(self, event: Any) -> None:
        self._steps.close()
        now = time.monotonic()
        if self._began is None:
            self._began = (now, event.done)
        left = ""
        finished = event.done - self._began[1]
        if finished > 0:
            seconds = (now - self._began[0]) / finished * (event.planned - event.done)
            left = f"about {_duration(seconds)} left" if event.done < event.planned else ""
        if not notes.is_terminal or notes.quiet:
            notes.print(escape(f"[{event.done}/{event.planned}] {event.sentence}  {left}".rstrip()))
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("cells"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"), console=notes,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task("", total=event.planned, left="")
        self._bar.update(self._task, completed=event.done, total=event.planned, left=left)
        self._bar.console.print(escape(event.sentence))


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"


def _show(grid: Any, as_json: bool) -> None:
    """The verdicts and the headline tables, then where the report is."""
    report = grid.written
    if as_json:
        print_json(json.loads(report.json.read_text(encoding="utf-8")))
        return
    for name, headline in report.headlines:
        table = Table(title=escape(name), caption="brackets: 95 % intervals", title_justify="left")
        for head in headline.heads:
            table.add_column(escape(head), justify="right" if table.columns else "left")
        for row in headline.rows:
            table.add_row(*map(escape, row))
        results.print(table)
    for sentence in report.sentences:
        results.print(escape(sentence))
    notes.print(f"report: {report.html}   plots: {grid.folder / 'plots'}   cells: {grid.folder / 'cells.jsonl'}")
