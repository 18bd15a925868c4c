"""The command under `accelerate launch`: two processes, one of them killed, and the run that goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qpeft.training import RunFolder, make_recipe, train
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values

CONFIG = Path(__file__).parents[2] / "recipes/accelerate/ddp-cpu.yaml"

#: the command, with one process that dies in its fourth step
DYING = """
import os, signal, sys
from qpeft.training import callbacks

def die(self, args, state, control, **_):
    if state.global_step == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if os.environ["RANK"] == sys.argv.pop(1):
    callbacks.FiniteNumbers.on_optimizer_step = die
from qpeft.cli import main
main()
"""


def launch(*words, seconds=240):
    """Run `accelerate launch`; its code, output and errors."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIG), *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=seconds, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
    )  # fmt: skip


def assert_equal_adapters(one, other):
    found, expected = (load_file(path / "adapter/adapter_model.safetensors") for path in (one, other))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_run_which_goes_on_later(victim, llama_base, tmp_path):
    run, program, recipe = tmp_path / "run", tmp_path / "dying.py", tmp_path / "recipe.yaml"
    values = recipe_values(llama_base, run, training__per_device_train_batch_size=2, training__tensorboard=False)
    recipe.write_text(json.dumps(values))
    program.write_text(DYING)
    ran = launch(program, victim, "train", recipe)
    assert ran.returncode != 0
    survivor = 1 - victim
    assert f"error: process {survivor} of 2 has lost another one" in ran.stderr
    assert f"the last good checkpoint is {run}/checkpoints/checkpoint-2" in ran.stderr
    assert f"go on with: accelerate launch ... -m qpeft train {run} --resume" in ran.stderr
    assert RunFolder(run).last_checkpoint().name == "checkpoint-2"

    ran = launch("-m", "qpeft", "train", run, "--resume")
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr.count("going on from checkpoint-2") == 1
    assert json.loads(RunFolder(run).result.read_text())["training"]["steps"] == 6
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4, 5, 6]
    train(make_recipe(recipe_values(llama_base, tmp_path / "alone", training__tensorboard=False)))
    assert_equal_adapters(run, tmp_path / "alone")


@pytest.mark.slow
def test_what_cannot_be_used_is_said_once(llama_base, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(recipe_values(llama_base, tmp_path / "run", training__learning_rate=-1)))
    ran = launch("-m", "qpeft", "train", recipe)
    assert ran.returncode != 0
    assert ran.stderr.count("training.learning_rate") == 1
    assert ran.stderr.count("error:") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_trls_trainer_on_two_processes(llama_base, tmp_path):
    """The first process alone speaks, and only of the run; what cannot be used is said once."""
    run = tmp_path / "run"
    command = [
        "-m", "qpeft", "sft", "--model_name_or_path", llama_base, "--dataset_name", "arithmetic",
        "--arithmetic_problems", 16, "--arithmetic_steps", 1, "--adapter.r", 2, "--adapter.bond_dim", 2,
        "--adapter.inner_features", 8, "--adapter.target_modules", "q_proj", "--learning_rate", "1e-2",
        "--max_steps", 3, "--per_device_train_batch_size", 2, "--save_steps", 2, "--output_dir", run, "--json",
    ]  # fmt: skip
    ran = launch(*command)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["steps"] == 3
    assert not any(noise in ran.stderr for noise in ("Warning", "WARNING", "[rank", "it/s]", "Traceback")), ran.stderr
    assert any(value.abs().max() > 0 for value in load_file(run / "adapter_model.safetensors").values())
    again = launch(*command)
    assert again.returncode != 0
    assert again.stderr.count("already holds a run") == 1
    assert again.stderr.count("error:") == 1
