"""`qpeft compare` as a user types it: the whole path, its result, what it refuses, and being stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

QUICK = Path(__file__).parents[2] / "recipes" / "compare" / "quick.yaml"
SMALL = [
    "bases.small-llama.pretrain.width=32", "bases.small-llama.pretrain.layers=1", "bases.small-llama.pretrain.steps=4",
    "tasks.arithmetic.data.train_samples=16", "tasks.arithmetic.data.validation_samples=4",
    "tasks.arithmetic.evaluation.limit=4", "arms=[adapter, lora, branch-zero, base]", "learning_rates=[1e-2]",
    "seeds.sweep=[]", "training.max_steps=2", "training.per_device_train_batch_size=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A finished comparison, made in processes as a user makes it, and what the command said."""
    folder = tmp_path_factory.mktemp("compared") / "run"
    command = [sys.executable, "-m", "qpeft", "compare", str(QUICK), f"output={folder}", *SMALL]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    return folder, said


def test_the_whole_path_ends_in_tables_a_verdict_and_a_report(compared):
    folder, said = compared
    assert "QTHA" in said.stdout
    assert "LoRA" in said.stdout
    assert "rung" in said.stdout
    assert f"report: {folder / 'report.html'}" in said.stderr
    assert "[7/7]" in said.stderr
    for noise in ("Warning", "Writing model shards"):
        assert noise not in said.stderr
    assert (folder / "report.html").stat().st_size > 10_000


def test_again_it_only_reports(compared, qpeft):
    folder, _ = compared
    again = qpeft("compare", folder, "--json")
    assert again.code == 0
    assert again.json == json.loads((folder / "report.json").read_text())
    assert qpeft("compare", folder, "--report", "--quiet").code == 0


def test_a_dry_run_writes_nothing(qpeft, tmp_path):
    said = qpeft("compare", QUICK, f"output={tmp_path / 'run'}", "--dry-run")
    assert said.code == 0
    assert "The plan is good" in said.out
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], "nowhere.yaml"),
        (["."], "holds no comparison"),
        ([QUICK, "arms=[adapter, lorra]", "output={}"], "lora"),
        ([QUICK, "--engine", "slurm"], "local or ray"),
        ([QUICK, "--address", "auto"], "--engine ray"),
        ([QUICK, "bases.small-llama={name: /nowhere/model}", "output={}"], "/nowhere/model"),
        ([QUICK, "learning_rates=[fast]"], "learning_rates"),
    ],
)
def test_bad_input_is_one_sentence(qpeft, tmp_path, arguments, words):
    said = qpeft("compare", *(str(argument).replace("{}", str(tmp_path / "run")) for argument in arguments))
    assert said.code == 2
    assert words in said.err


def test_overrides_of_a_started_comparison_are_refused(compared, qpeft):
    folder, _ = compared
    said = qpeft("compare", folder, "margin=0.1")
    assert said.code == 2
    assert "its plan stays as it is" in said.err


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
def test_stopping_keeps_what_is_done_and_says_how_to_go_on(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "qpeft", "compare", str(QUICK), f"output={folder}", *SMALL]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("[1/7]"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(120) == 130
    assert f"go on with: qpeft compare {folder}" in rest
    assert "Traceback" not in rest
    assert len(list((folder / "cells").glob("*.json"))) < 7


@pytest.mark.slow
def test_the_quick_comparison(tmp_path):
    command = [sys.executable, "-m", "qpeft", "compare", str(QUICK), f"output={tmp_path / 'run'}"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert said.returncode == 0, said.stderr
    assert len((tmp_path / "run" / "cells.jsonl").read_text().splitlines()) == 23
