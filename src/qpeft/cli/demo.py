"""`qpeft demo`: the main job on a small real model, from nothing to a report, in minutes.

It runs the commands that a user would type, each in a process of its own: measure the frozen base, train and measure
QTHA, train and measure LoRA. So peak memory is each arm's own, and a demo that was interrupted goes on at the arm and
step where it stopped.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path
from typing import Any

from rich.table import Table

from qpeft.cli.console import Steps, notes, print_json, results
from qpeft.cli.tables import memory, number
from qpeft.errors import InputError, Interrupted, QPeftError

#: folder -> name in tables and plots
ARMS = {"qtha": "QTHA, r = 4 (4 qubits)", "lora": "LoRA, r = 4"}
BASE = "base, before fine-tuning"
QUICK = ["training.max_steps=40", "data.train_samples=640", "data.validation_samples=48", "training.eval_steps=20",
         "training.save_steps=20", "evaluation.limit=60", "evaluation.batch_size=60"]  # fmt: skip
TITLES = {"answer_accuracy": "right answer", "strict_accuracy": "strict: answer, form and steps"}


def run(output: Path, quick: bool, overwrite: bool, as_json: bool) -> None:
    started = time.monotonic()
    overrides = QUICK if quick else []
    _check_folder(output, quick, overwrite)
    commands = []
    with resources.as_file(resources.files("qpeft.recipes")) as folder:
        for number_, (name, label) in enumerate({"base": BASE, **ARMS}.items(), start=1):
            recipe = folder / f"demo-{name if name in ARMS else 'qtha'}.yaml"
            command = _base_command(recipe, overrides, output) if name == "base" else _arm_command(recipe, overrides, output / name)
            commands.append(command)
            if _finished(output / name):
                notes.print(f"[dim]{number_}/3  {label}: done before[/]")
                continue
            notes.print(f"\n[bold]{number_}/3  {label}[/]\n[dim]{_shown(command)}[/]")
            _run(command, output)
    with Steps() as say:
        say("drawing")
        arms = _compare(output, commands)
    _write_summary(output, arms)
    if as_json:
        print_json(json.loads((output / "summary.json").read_text(encoding="utf-8")))
        return
    results.print(_table(arms))
    for sentence in _sentences(arms):
        results.print(sentence)
    notes.print(
        f"\nreport  {output / 'report.html'}   plots  {output / 'plots'}   in {(time.monotonic() - started) / 60:.1f} min\n"
        f"talk to it: qpeft chat {output / 'qtha'}"
    )
