"""The demo: its folder, what it does again and what not, and what it says about numbers nobody measured."""

import json
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fabricated_runs import LORA_PARAMETERS, QTHA_PARAMETERS, share, write_arm
from qpeft.cli import demo
from qpeft.errors import InputError, Interrupted, QPeftError
from tiny_base import save_llama

ARMS = {"base": (0.1, 0.0, None), "qtha": (0.6, 0.5, QTHA_PARAMETERS), "lora": (0.7, 0.6, LORA_PARAMETERS)}


@pytest.fixture
def stages(monkeypatch):
    """Stands in for the commands that the demo starts: each fabricates its arm."""
    asked = []

    def stage(command, again):
        asked.append(command)
        name = "base" if command[0] == "eval" else command[1].removeprefix("demo-")
        write_arm(folder_of(command), *ARMS[name])

    monkeypatch.setattr(demo, "run_part", stage)
    return asked


def folder_of(command):
    """Where a stage writes."""
    if command[0] == "eval":
        return Path(command[command.index("--output") + 1]).parent
    return Path(next(word for word in command if word.startswith("output=")).removeprefix("output="))


def summary_of(qtha, lora, base=0.0, n=200):
    def arm(name, value, parameters):
        return {"name": name, "training": {"parameters": {"total": parameters}} if parameters else {},
                "metrics": {"strict_accuracy": {**share(value, n), "n": n}}}  # fmt: skip

    return {"arms": [arm("base", base, 0), arm("QTHA", qtha, 50), arm("LoRA", lora, 200)]}


def test_a_whole_demo(stages, qpeft, tmp_path):
    output = tmp_path / "demo"
    said = qpeft("demo", "--quick", "--output", output)
    assert said.code == 0
    assert [command[:2] for command in stages] == [
        ["eval", demo.MODEL], ["train", "demo-qtha"], ["train", "demo-lora"],
    ]  # fmt: skip
    assert all(override in command for override in demo.QUICK for command in stages)
    assert {"report.html", "summary.json", "demo.json", "plots"} <= {path.name for path in output.iterdir()}
    assert sorted(path.name for path in (output / "plots").iterdir()) == ["accuracy.png", "loss.png"]
    for text in ("51,840", "230,400", "30,000 + 21,360 + 480", "50.0 [43, 57]", "1.40 GiB", "0.0 [0, "):
        assert text in said.out
    assert "QTHA trained 22.5 % of LoRA's parameters." in said.out
    page = (output / "report.html").read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "qpeft train demo-qtha" in page
    assert "✓" in page
    assert str(output / "report.html") in said.err


def test_json_is_the_summary(stages, qpeft, tmp_path):
    said = qpeft("demo", "--output", tmp_path / "demo", "--json")
    assert said.err == ""
    assert said.json == json.loads((tmp_path / "demo/summary.json").read_text())
    assert [arm["metrics"]["strict_accuracy"]["value"] for arm in said.json["arms"]] == [0.0, 0.5, 0.6]


def test_the_commands_of_the_report_can_be_typed(stages, qpeft, tmp_path):
    """What the demo starts is a command line of ours: it parses, down to the recipe and its overrides."""
    from qpeft.training import load_recipe

    qpeft("demo", "--quick", "--output", tmp_path / "demo")
    for command in stages:
        words = shlex.split(shlex.join(command))
        overrides = [word for word in words[2:] if "=" in word]
        recipe = words[1] if words[0] == "train" else words[words.index("--recipe") + 1]
        assert load_recipe(recipe, ["output=x", *overrides]).training.max_steps == 20


def test_an_interrupted_demo_goes_on_where_it_stopped(stages, qpeft, tmp_path, monkeypatch):
    output = tmp_path / "demo"
    output.mkdir()
    (output / "demo.json").write_text('{"quick": false}')
    write_arm(output / "base", *ARMS["base"])
    (output / "qtha").mkdir()
    (output / "qtha/recipe.yaml").write_text("output: x")

    fabricate = demo.run_part

    def stage(command, again):
        if "--resume" in command:
            shutil.rmtree(output / "qtha")
        fabricate(command, again)

    monkeypatch.setattr(demo, "run_part", stage)
    said = qpeft("demo", "--output", output)
    assert said.code == 0
    assert [(command[1], "--resume" in command) for command in stages] == [("demo-qtha", True), ("demo-lora", False)]
    assert f"{demo.BASE}: done before" in said.err
    assert qpeft("demo", "--output", output).code == 0
    assert len(stages) == 2  # nothing was done a second time


def test_the_folder_is_kept_apart_from_other_things(stages, qpeft, tmp_path):
    output = tmp_path / "demo"
    output.mkdir()
    (output / "thesis.tex").write_text("mine")
    for options in ((), ("--overwrite",)):
        said = qpeft("demo", "--output", output, *options)
        assert said.code == 2
        assert "something else than a demo" in said.err
    assert (output / "thesis.tex").read_text() == "mine"


def test_quick_and_full_do_not_mix(stages, qpeft, tmp_path):
    output = tmp_path / "demo"
    assert qpeft("demo", "--output", output, "--quick").code == 0
    said = qpeft("demo", "--output", output)
    assert said.code == 2
    assert "with --quick" in said.err
    assert qpeft("demo", "--output", output, "--overwrite").code == 0
    assert "without --quick" in qpeft("demo", "--output", output, "--quick").err
    (output / "demo.json").write_text("{")
    assert qpeft("demo", "--output", output).code == 2


@pytest.mark.parametrize(
    ("qtha", "lora", "verdict"),
    [
        (0.50, 0.55, "difference -5.0 points [-15, +5], so this run does not tell the two apart"),
        (0.80, 0.50, "QTHA is better in this run"),
        (0.40, 0.70, "LoRA is better in this run"),
    ],
)
def test_the_verdict_is_what_the_numbers_say(qtha, lora, verdict):
    first, second = demo._sentences(summary_of(qtha, lora))
    assert first == "QTHA trained 25.0 % of LoRA's parameters."
    assert verdict in second
    assert f"{100 * qtha:.1f} % with QTHA and {100 * lora:.1f} % with LoRA (200 problems)" in second


def test_few_problems_decide_nothing():
    assert "does not tell the two apart" in demo._sentences(summary_of(0.8, 0.5, n=10))[1]


@pytest.mark.parametrize(
    ("script", "error", "part"),
    [
        ("raise SystemExit(130)", Interrupted, "go on with: qpeft demo --output x --quick"),
        ("raise SystemExit(2)", InputError, "for the reason above"),
        ("raise SystemExit(1)", QPeftError, "code 1"),
        ("import os; os.kill(os.getpid(), 9)", QPeftError, "code -9"),
    ],
)
def test_a_stage_that_fails_ends_the_demo(monkeypatch, script, error, part, tmp_path):
    monkeypatch.setattr(sys, "executable", python_that_runs(tmp_path, script))
    with pytest.raises(error) as caught:
        demo.run_part(["eval"], "qpeft demo --output x --quick")
    assert part in str(caught.value)


def python_that_runs(tmp_path, script):
    path = tmp_path / "python"
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_handed_on_and_waited_for(monkeypatch, tmp_path, number):
    """The stage gets one SIGINT, whichever signal the demo got, and the time to save."""
    script = (
        "import os, pathlib, signal, time\n"
        "def asked(number, frame):\n"
        "    time.sleep(0.3)\n"
        f"    pathlib.Path({str(tmp_path)!r}, 'saved').write_text(str(number))\n"
        "    raise SystemExit(130)\n"
        "signal.signal(signal.SIGINT, asked)\n"
        f"os.kill(os.getppid(), {int(number)})\n"
        "time.sleep(20)\n"
    )
    monkeypatch.setattr(sys, "executable", python_that_runs(tmp_path, script))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted):
        demo.run_part(["eval"], "qpeft demo")
    assert (tmp_path / "saved").read_text() == str(int(signal.SIGINT))
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_real_demo_on_a_tiny_model(tmp_path):
    """Three processes, from the base's evaluation to the report."""
    base = save_llama(tmp_path / "base", hidden_size=64, num_attention_heads=4)
    changes = ["training.max_steps=4", "data.train_samples=64", "evaluation.limit=4", "data.max_length=400",
               "evaluation.max_new_tokens=5", "model.dtype=float32"]  # fmt: skip
    call = f"run(Path({str(tmp_path / 'demo')!r}), True, False, False, True, model={str(base)!r}, changes={changes!r})"
    code = f"from pathlib import Path; from qpeft.cli.demo import run; {call}"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert len(summary["arms"]) == 3
    assert summary["arms"][1]["training"]["parameters"]["angles"] > 0
    assert (tmp_path / "demo/report.html").exists()
