"""`training.report_to`: names are checked before anything is written, and trackers get what is logged."""

import json
import subprocess
import sys

import pytest
from transformers import TrainerCallback
from transformers.integrations import integration_utils

from qpeft.errors import InputError, MissingDependencyError
from qpeft.training import train
from qpeft.training.recipe import make_recipe
from tiny_base import recipe_values


def recipe_for(base, output, *trackers):
    values = recipe_values(base, output, training__max_steps=2, training__report_to=list(trackers))
    return make_recipe(values)


@pytest.mark.parametrize(
    ("tracker", "error", "sentence"),
    [
        ("wandbb", InputError, "did you mean wandb"),
        ("tensorboard", InputError, r"training\.tensorboard writes its files into the run folder"),
        ("trackio", MissingDependencyError, "pip install trackio"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_before_the_run(
    llama_base, tmp_path, monkeypatch, tracker, error, sentence
):
    monkeypatch.setattr("qpeft.training.trackers.get_available_reporting_integrations", lambda: ["wandb"])
    with pytest.raises(error, match=sentence):
        train(recipe_for(llama_base, tmp_path / "run", tracker))
    assert not (tmp_path / "run").exists()


def test_a_tracker_is_told_the_name_of_the_run_and_its_numbers(llama_base, tmp_path, monkeypatch):
    told = []

    class Tracker(TrainerCallback):
        def on_train_begin(self, args, state, control, **_):
            told.append(args.run_name)

        def on_log(self, args, state, control, logs=None, **_):
            told.extend(key for key in logs if key in ("loss", "eval_loss"))

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "mine", Tracker)
    monkeypatch.setattr("qpeft.training.trackers.get_available_reporting_integrations", lambda: ["mine"])
    train(recipe_for(llama_base, tmp_path / "counting", "mine"))
    assert told[0] == "counting"
    assert {"loss", "eval_loss"} <= set(told)


def test_trackers_do_not_keep_a_run_from_being_resumed(llama_base, tmp_path):
    recipe = recipe_for(llama_base, tmp_path / "run")
    first = train(recipe)
    training = recipe.training.model_copy(update={"report_to": ["wandb"], "tensorboard": False})
    assert train(recipe.model_copy(update={"training": training}), resume=True) == first


SCRIPT = """
import json, sys
from qpeft.training import train
from qpeft.training.recipe import make_recipe
values = json.loads(sys.argv[1])
for name in ("one", "two"):
    train(make_recipe({**values, "output": f"{values['output']}/{name}"}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["wandb", "trackio"])
def test_real_trackers_offline(llama_base, tmp_path, monkeypatch, tracker):
    pytest.importorskip(tracker)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    values = recipe_values(llama_base, tmp_path, training__max_steps=2, training__report_to=[tracker])
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(values)], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    if tracker == "wandb":
        assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2, "each training is a run of its own"
    else:
        assert any((tmp_path / "trackio").rglob("*.db"))
