"""`qpeft sft`, `qpeft dpo`, `qpeft grpo`: TRL's trainers with TRL's keys, on any adapter of peft and of ours."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer

from qpeft.cli.console import Steps, be_quiet, calm_libraries, notes, print_json, results
from qpeft.cli.tables import trl_table


def run(kind: Any, arguments: list[str], as_json: bool) -> None:
    if "LOCAL_RANK" in os.environ and os.environ.get("RANK", "0") != "0":
        be_quiet(True)  # of several processes the first one speaks
    if "--help" in arguments or "-h" in arguments:
        from qpeft.training.trl_arguments import help_text

        results.print(help_text(kind), markup=False)
        return
    with Steps() as say:
        say("starting")
        calm_libraries()
        from qpeft.training import ranks

    ranks.join()
    try:
        _run(kind, arguments, as_json)
    except ranks.SaidElsewhere as error:
        raise typer.Exit(1) from error


def _run(kind: Any, arguments: list[str], as_json: bool) -> None:
    from qpeft.cli.progress import ProgressCallback
    from qpeft.evaluation.rewards import find_rewards
    from qpeft.training import ranks
    from qpeft.training.trl_arguments import read_arguments
    from qpeft.training.trl_run import run_trl

    with ranks.together():
        read = read_arguments(kind, arguments)
        rewards = find_rewards(read.script.reward_funcs or []) if kind == "grpo" else []
    with Steps() as say:
        progress = ProgressCallback(Path(read.training.output_dir).name, say)
        result = run_trl(read, rewards, [progress], say)
    if not ranks.is_first():
        return
    if as_json:
        print_json(asdict(result))
    else:
        results.print(trl_table(asdict(result)))
        notes.print(f"adapter, card and state are in {result.output}")
