"""A run that was killed, at whatever moment, goes on to exactly the result of a run that was never stopped."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from transformers import Trainer, TrainerCallback

from qpeft.errors import InputError, Interrupted
from qpeft.training import RunFolder, callbacks, make_recipe, run, train
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values

TIMES = ("seconds", "tokens_per_second", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def values_of(llama_base, folder, **changes):
    """Six steps with dropout, so that the random state matters; a log line every third step."""
    return recipe_values(
        llama_base, folder,
        **{"adapter__dropout": 0.2, "training__logging_steps": 3, "training__angle_learning_rate": 0.05,
           "training__gradient_accumulation_steps": 2, "training__per_device_train_batch_size": 2, **changes},
    )  # fmt: skip


def outcome(path):
    """All that has to be the same: the adapter's bytes, and every metric line but its times."""
    folder = RunFolder(path)
    lines = [{key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder.metrics)]
    result = json.loads(folder.result.read_text())["training"]
    return (folder.adapter / "adapter_model.safetensors").read_bytes(), lines, result["train_loss"]


@pytest.fixture(scope="module")
def straight(llama_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(make_recipe(values_of(llama_base, folder)))
    return outcome(folder)


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


class Act(TrainerCallback):
    """Does something at one event of one step."""

    def __init__(self, event, step, act):
        self.step = step
        setattr(self, event, self._act)
        self.act = act

    def _act(self, args, state, control, **_):
        if state.global_step == self.step:
            self.act()


def killed(recipe, callbacks=(), prepare=lambda: None):
    """Train in a child process that has to die by SIGKILL."""
    child = os.fork()
    if child == 0:
        try:
            prepare()
            train(recipe, callbacks=callbacks, resume=True)
        finally:
            os._exit(99)  # it was not killed
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), os.WEXITSTATUS(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def at_step(step, action):
    """`action` in place of something that happens at `step` (of a saving), else the thing itself."""

    def wrap(original):
        def replaced(self, *args, **kwargs):
            if self.state.global_step == step:
                action(self, *args, **kwargs)
            return original(self, *args, **kwargs)

        return replaced

    return wrap


def patch_trainer(name, step, action=die):
    return lambda: setattr(Trainer, name, at_step(step, action)(getattr(Trainer, name)))


def half_removal():
    """The removal of an old checkpoint is cut off after its first file."""

    def remove(path, **kwargs):
        os.unlink(sorted(path.iterdir())[0])
        die()

    callbacks.shutil = type("shutil", (), {"rmtree": staticmethod(remove)})


MOMENTS = {
    "between two checkpoints": ([Act("on_pre_optimizer_step", 3, die)], lambda: None),
    "before the optimizer of a checkpoint is written": ([], patch_trainer("_save_optimizer_and_scheduler", 4)),
    "before the result is written": ([], lambda: setattr(run, "_result", die)),
    "in the first step": ([Act("on_step_begin", 0, die)], lambda: None),
    "before the random state of a checkpoint is written": ([], patch_trainer("_save_rng_state", 4)),
    "before a checkpoint is marked": ([], lambda: setattr(callbacks, "mark_complete", die)),
    "while an old checkpoint is removed": ([], half_removal),
    "while validating": ([Act("on_prediction_step", 3, die)], lambda: None),
    "before the adapter is put in its place": ([], lambda: setattr(Path, "rename", die)),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_ends_as_the_straight_one(moment, straight, llama_base, tmp_path):
    events, prepare = MOMENTS[moment]
    recipe = make_recipe(values_of(llama_base, tmp_path / "run"))
    killed(recipe, events, prepare)
    train(recipe, resume=True)
    assert outcome(tmp_path / "run") == straight
    assert not list((tmp_path / "run").glob(".adapter"))


def test_a_run_killed_again_and_again_ends_as_the_straight_one(straight, llama_base, tmp_path):
    recipe = make_recipe(values_of(llama_base, tmp_path / "run", training__save_total_limit=1))
    for step in (1, 3, 5):
        killed(recipe, [Act("on_pre_optimizer_step", step, die)])
    train(recipe, resume=True)
    assert outcome(tmp_path / "run") == straight
    assert len(RunFolder(tmp_path / "run").complete_checkpoints()) == 1


def test_a_metric_line_that_was_cut_off_is_written_again(straight, llama_base, tmp_path):
    recipe = make_recipe(values_of(llama_base, tmp_path / "run"))
    killed(recipe, [Act("on_pre_optimizer_step", 4, die)])
    with open(tmp_path / "run/metrics.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 5.77')
    train(recipe, resume=True)
    assert outcome(tmp_path / "run") == straight


@pytest.mark.parametrize("damage", ["truncated", "missing", "unmarked"])
def test_a_damaged_checkpoint_is_passed_over(damage, straight, llama_base, tmp_path):
    recipe = make_recipe(values_of(llama_base, tmp_path / "run"))
    killed(recipe, [Act("on_pre_optimizer_step", 4, die)])
    folder = tmp_path / "run/checkpoints/checkpoint-4"
    assert folder.is_dir()
    if damage == "truncated":
        with open(folder / "adapter_model.safetensors", "r+b") as file:
            file.truncate(100)
    else:
        (folder / ("optimizer.pt" if damage == "missing" else "complete.json")).unlink()
    said = []
    train(recipe, resume=True, say=said.append)
    assert "going on from checkpoint-2" in said
    assert outcome(tmp_path / "run") == straight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_tells_how_to_go_on(number, straight, llama_base, tmp_path, caplog):
    recipe = make_recipe(values_of(llama_base, tmp_path / "run", training__logging_steps=1))
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        train(recipe, callbacks=[Act("on_pre_optimizer_step", 3, lambda: os.kill(os.getpid(), number))])
    assert "stopped at step 4 of 6" in str(caught.value)
    assert f"qpeft train {tmp_path / 'run'} --resume" in str(caught.value)
    assert "once more stops at once" in caplog.text
    assert signal.getsignal(number) is before
    assert RunFolder(tmp_path / "run").last_checkpoint().name == "checkpoint-4"
    train(recipe, resume=True)
    adapter, lines, _ = outcome(tmp_path / "run")
    assert adapter == straight[0]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 7))


def test_a_second_signal_stops_at_once(llama_base, tmp_path):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    recipe = make_recipe(values_of(llama_base, tmp_path / "run"))
    with pytest.raises(KeyboardInterrupt):
        train(recipe, callbacks=[Act("on_pre_optimizer_step", 4, twice)])
    assert RunFolder(tmp_path / "run").last_checkpoint().name == "checkpoint-4"


def test_a_signal_in_the_last_step_lets_the_run_finish(straight, llama_base, tmp_path):
    recipe = make_recipe(values_of(llama_base, tmp_path / "run"))
    train(recipe, callbacks=[Act("on_pre_optimizer_step", 5, lambda: os.kill(os.getpid(), signal.SIGINT))])
    assert outcome(tmp_path / "run") == straight


@pytest.fixture
def interrupted(llama_base, tmp_path):
    recipe = make_recipe(values_of(llama_base, tmp_path / "run"))
    with pytest.raises(Interrupted):
        train(recipe, callbacks=[Act("on_pre_optimizer_step", 0, lambda: os.kill(os.getpid(), signal.SIGINT))])
    return tmp_path / "run"


CHANGES = (
    ({"training__learning_rate": 2e-2}, "training.learning_rate = 0.01, not 0.02"),
    ({"adapter__dropout": 0.1}, "adapter.dropout = 0.2, not 0.1"),
    ({"adapter": {"r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["q_proj"]}}, "adapter.dropout"),
    ({"data__seed": 1}, "data.seed = 0, not 1"),
)


def test_a_changed_recipe_does_not_resume(interrupted, llama_base):
    for change, named in CHANGES:
        with pytest.raises(InputError) as caught:
            train(make_recipe(values_of(llama_base, interrupted, **change)), resume=True)
        assert named in str(caught.value)
        assert "--overwrite" in str(caught.value)


def test_the_evaluation_may_change_before_resuming(interrupted, llama_base, straight):
    train(make_recipe(values_of(llama_base, interrupted, evaluation={"limit": 7})), resume=True)
    assert outcome(interrupted)[0] == straight[0]
    assert "limit: 7" in (interrupted / "recipe.yaml").read_text()


def test_a_finished_run_resumes_to_its_result_at_once(llama_base, tmp_path, monkeypatch):
    recipe = make_recipe(recipe_values(llama_base, tmp_path / "run", training__max_steps=1))
    first = train(recipe)
    monkeypatch.setattr(run, "prepare", None)  # nothing is loaded
    assert train(recipe, resume=True) == first


def test_resume_and_overwrite_exclude_each_other(llama_base, tmp_path):
    with pytest.raises(InputError, match="one of them"):
        train(make_recipe(recipe_values(llama_base, tmp_path / "run")), resume=True, overwrite=True)


def test_two_runs_do_not_share_a_folder(llama_base, tmp_path):
    recipe = make_recipe(recipe_values(llama_base, tmp_path / "run", training__max_steps=1))
    refusals = []

    def second():
        child = os.fork()  # flock holds between processes, not within one
        if child == 0:
            try:
                train(recipe, resume=True)
            except InputError as error:
                os._exit(7 if "another run is using" in str(error) else 1)
            os._exit(0)
        refusals.append(os.WEXITSTATUS(os.waitpid(child, 0)[1]))

    train(recipe, callbacks=[Act("on_step_begin", 0, second)])
    assert refusals == [7]
    train(recipe, resume=True)


def test_tensorboard_forgets_steps_that_are_done_again(llama_base, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe = make_recipe(values_of(llama_base, tmp_path / "run", training__logging_steps=1))
    with pytest.raises(Interrupted):
        train(recipe, callbacks=[Act("on_pre_optimizer_step", 2, lambda: os.kill(os.getpid(), signal.SIGINT))])
    shutil.rmtree(tmp_path / "run/checkpoints/checkpoint-3")
    time.sleep(1.1)  # event files are ordered by their second
    train(recipe, resume=True)
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 7))


def test_the_command_is_interrupted_and_resumed(straight, llama_base, tmp_path):
    """The real command, a real Ctrl-C."""
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(values_of(llama_base, tmp_path / "run", training__max_steps=2000)))
    process = subprocess.Popen(
        [sys.executable, "-m", "qpeft", "train", str(path)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    metrics = tmp_path / "run/metrics.jsonl"
    until = time.monotonic() + 120
    while len(read_metrics(metrics)) < 2 and time.monotonic() < until and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"qpeft train {tmp_path / 'run'} --resume" in err.replace("\n", "")
    assert "Traceback" not in out + err
    assert RunFolder(tmp_path / "run").last_checkpoint() is not None
