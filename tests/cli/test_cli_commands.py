"""Every command once, as a user types it: results, files, exit codes, --json, --quiet."""

import builtins
import importlib
import json
import os
import subprocess
import sys

import pytest
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM

from qpeft import __version__
from qpeft.training import RunFolder
from tiny_base import save_llama


def test_version_and_help(qpeft):
    assert qpeft("--version").out.strip() == __version__
    said = qpeft("--help")
    assert said.code == 0
    for command in ("demo", "train", "eval", "chat", "export", "doctor"):
        assert command in said.out
    assert qpeft("train", "--help").code == 0


def test_usage_errors_end_with_code_2(qpeft):
    assert qpeft("trian").code == 2
    assert qpeft("train").code == 2
    assert qpeft("train", "x.yaml", "--resum").code == 2
    assert qpeft("eval", "x", "--limit", "0").code == 2


def test_train_prints_a_table_and_says_where_things_are(qpeft, write_recipe, tmp_path):
    said = qpeft("train", write_recipe(), "training.max_steps=2")
    assert said.code == 0
    for word in ("trainable parameters", "angles", "train loss", "validation loss", "tokens per second"):
        assert word in said.out
    assert f"adapter, metrics and recipe are in {tmp_path / 'run'}" in said.err
    assert "max_steps: 2" in (tmp_path / "run/recipe.yaml").read_text()


def test_train_json_is_the_result_alone(qpeft, write_recipe, tmp_path):
    said = qpeft("train", write_recipe(), "training.max_steps=2", "--json")
    assert said.err == ""
    assert said.json["training"] == json.loads((tmp_path / "run/result.json").read_text())["training"]


def test_quiet_leaves_the_result(qpeft, write_recipe):
    said = qpeft("train", write_recipe(), "training.max_steps=1", "--quiet")
    assert said.err == ""
    assert "train loss" in said.out


def test_dry_run_writes_nothing(qpeft, write_recipe, tmp_path):
    path = write_recipe()
    before = sorted(tmp_path.rglob("*"))
    said = qpeft("train", path, "--dry-run")
    assert said.code == 0
    assert "6 steps" in said.out
    assert "Nothing was written" in said.out
    assert sorted(tmp_path.rglob("*")) == before
    assert qpeft("train", path, "--dry-run", "--json").json["steps"] == 6


def test_an_existing_run_needs_a_word(qpeft, write_recipe, tmp_path):
    path = write_recipe()
    assert qpeft("train", path, "training.max_steps=1").code == 0
    said = qpeft("train", path, "training.max_steps=1")
    assert said.code == 2
    assert all(way in said.err for way in ("--resume", "--overwrite", "output"))
    assert qpeft("train", path, "training.max_steps=1", "--resume", "--overwrite").code == 2
    assert qpeft("train", path, "training.max_steps=1", "--resume").code == 0
    assert qpeft("train", path, "training.max_steps=2", "--overwrite", "--json").json["training"]["steps"] == 2


def test_a_run_folder_goes_on_wherever_it_is_named_from(qpeft, finished, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    os.system(f"cp -r {finished} {moved}")
    (moved / "result.json").unlink()
    monkeypatch.chdir(tmp_path)
    assert qpeft("train", "moved", "--resume").code == 0
    assert (moved / "result.json").exists()
    said = qpeft("train", tmp_path)
    assert said.code == 2
    assert "without recipe.yaml" in said.err


def test_training_measures_what_the_recipe_asks_for(finished):
    result = json.loads((finished / "result.json").read_text())
    assert result["evaluation"]["n"] == 3
    assert {"answer_accuracy", "strict_accuracy"} <= set(result["evaluation"]["metrics"])
    answers = [json.loads(line) for line in RunFolder(finished).answers.read_text().splitlines()]
    assert len(answers) == 3
    assert {"prompt", "text", "strict_correct"} <= set(answers[0])


def test_a_measured_run_is_not_measured_again(qpeft, finished, monkeypatch):
    monkeypatch.setattr("qpeft.cli.evaluate.measure", None)
    said = qpeft("train", finished, "--resume", "--json")
    assert said.code == 0
    assert said.json["evaluation"] == json.loads((finished / "result.json").read_text())["evaluation"]


def test_eval_of_a_run_takes_its_recipe(qpeft, finished, tmp_path):
    said = qpeft("eval", finished, "--json")
    assert said.code == 0
    stored = json.loads((finished / "result.json").read_text())["evaluation"]
    assert said.json == stored
    said = qpeft("eval", finished, "--limit", "2", "--output", tmp_path / "out/result.json")
    assert said.code == 0
    assert "answer accuracy" in said.out
    written = json.loads((tmp_path / "out/result.json").read_text())
    assert len(written["evaluation"]["records"]) == 2


def test_eval_of_a_base_and_of_an_adapter_folder(qpeft, finished, llama_base):
    options = ("--task", "arithmetic", "--limit", "2", "--max-new-tokens", "3", "--json")
    assert qpeft("eval", llama_base, *options).json["n"] == 2
    assert qpeft("eval", finished / "adapter", *options).json["n"] == 2
    assert qpeft("eval", llama_base, "evaluation.limit=2").code == 2
    assert "--task arithmetic" in qpeft("eval", llama_base).err


def test_eval_of_perplexity_on_a_file(qpeft, finished, tmp_path):
    data = tmp_path / "test.jsonl"
    data.write_text('{"prompt": "a", "completion": "b c d"}\n' * 3)
    said = qpeft("eval", finished, "--task", "perplexity", "--data", data, "--json")
    metrics = said.json["metrics"]
    assert metrics["tokens"]["value"] == 3 * (len("b c d") + 1)  # the end of turn is learned as well


def test_a_classifier_is_trained_and_measured(qpeft, write_recipe, bert_base, tmp_path):
    data = tmp_path / "data.jsonl"
    rows = [{"text": ("good " if i % 2 else "bad ") * (i % 7 + 1), "label": i % 2} for i in range(40)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = write_recipe(
        model=bert_base,
        adapter={"r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["query", "value"]},
        data={"train": str(data), "test": str(data), "max_length": 64},
        training__learning_rate=3e-2, training__max_steps=20, training__per_device_train_batch_size=8,
        evaluation={"task": "classification"},
    )  # fmt: skip
    said = qpeft("train", recipe, "model.task=sequence-classification", "--json")
    assert said.code == 0, said.err
    assert said.json["evaluation"]["metrics"]["accuracy"]["value"] > 0.8
    assert qpeft("eval", tmp_path / "run", "--json").json == said.json["evaluation"]


def test_export_writes_a_lora_and_a_merged_model(qpeft, finished, llama_base, tmp_path):
    assert qpeft("export", finished, tmp_path / "lora").code == 0
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llama_base), tmp_path / "lora")
    assert isinstance(model.peft_config["default"], LoraConfig)
    assert qpeft("export", finished, tmp_path / "merged", "--format", "merged").code == 0
    said = qpeft(
        "eval", tmp_path / "merged", "--task", "arithmetic", "--limit", "1", "--max-new-tokens", "2", "--json"
    )
    assert said.json["n"] == 1


def test_export_writes_gguf_through_llama_cpp(qpeft, finished, llama_base, tmp_path, monkeypatch):
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", "")
    command = ("export", finished, tmp_path / "new.gguf", "--format", "gguf")
    said = qpeft(*command)
    assert said.code == 2
    assert "github.com/ggml-org/llama.cpp" in said.err
    converter = tmp_path / "convert_hf_to_gguf.py"
    converter.write_text("import sys, pathlib; pathlib.Path(sys.argv[3]).write_text(' '.join(sys.argv))")
    said = qpeft(*command, "--converter", converter, "--outtype", "bf16")
    assert said.code == 0, said.err
    assert "new.gguf as a merged model for llama.cpp" in said.out
    assert (tmp_path / "new.gguf").read_text().endswith("--outtype bf16")
    assert "exists: give a new file.gguf" in qpeft(*command, "--converter", converter).err
    assert "without an adapter" in qpeft(
        "export", llama_base, tmp_path / "x.gguf", "--format", "gguf", "--converter", converter
    ).err  # fmt: skip


def test_export_refuses_what_it_cannot_do(qpeft, finished, llama_base, write_recipe, tmp_path):
    assert "lora, merged, gguf" in qpeft("export", finished, tmp_path / "x", "--format", "onnx").err
    assert "belong to gguf" in qpeft("export", finished, tmp_path / "x", "--outtype", "f16").err
    assert "not an empty folder" in qpeft("export", finished, finished).err
    assert "not an empty folder" in qpeft("export", finished, finished / "result.json").err
    assert "without an adapter" in qpeft("export", llama_base, tmp_path / "x").err
    assert qpeft("train", write_recipe(), "training.max_steps=1").code == 0
    for format in ("lora", "merged"):
        said = qpeft("export", tmp_path / "run", tmp_path / "x", "--format", format)
        assert said.code == 2
        assert not (tmp_path / "x").exists()


@pytest.fixture
def talk(qpeft, monkeypatch):
    def _talk(target, *lines, options=("--max-new-tokens", "4")):
        said = iter(lines)

        def read(prompt):
            line = next(said, None)
            if line is None:
                raise EOFError
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr(builtins, "input", read)
        return qpeft("chat", target, *options)

    return _talk


def test_chat_answers_until_the_end_of_input(talk, finished, llama_base):
    assert talk(finished).code == 0
    said = talk(finished, "Hello", "", "Again", "/reset", "Hello")
    assert said.code == 0
    assert "/reset begins a new conversation" in said.err
    first, second = talk(finished, "Hello").out, talk(finished, "Hello", "/reset", "Hello").out
    assert second == first * 2  # nothing is left of the first conversation
    assert talk(llama_base, "Hi", "/quit", "never read").code == 0
    assert talk(finished, "Hi", options=("--temperature", "1", "--seed", "3", "--max-new-tokens", "3")).code == 0


def test_chat_says_when_the_window_is_full_and_goes_on(talk, finished):
    said = talk(finished, "x" * 600, "Hello")
    assert said.code == 0
    assert "window of 512 tokens" in said.err
    assert said.out == talk(finished, "Hello").out


def test_ctrl_c_at_the_prompt_ends_the_chat(talk, finished):
    said = talk(finished, KeyboardInterrupt)
    assert said.code == 130
    assert "--resume" not in said.err


def test_doctor_shows_versions_and_no_secrets(qpeft, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    said = qpeft("doctor")
    assert said.code == 0
    assert "right to" in said.out
    report = qpeft("doctor", "--json")
    assert report.json["credentials"]["HF_TOKEN"] == "set"
    assert "very_secret" not in said.out + report.out
    assert report.json["versions"]["qpeft"] == __version__


def test_doctor_names_what_is_missing(qpeft, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *rest: None if name == "jieba" else find(name, *rest))
    assert "missing" in qpeft("doctor", "--json").json["optional"]["jieba"]


def test_the_real_command(tmp_path):
    """Through the operating system: exit code and streams."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "QPEFT_CACHE": str(tmp_path)}
    command = [sys.executable, "-m", "qpeft", "train", str(tmp_path / "none.yaml"), "--quiet"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr == f"error: there is no recipe {tmp_path / 'none.yaml'}\n"


def test_a_moved_base_is_named(qpeft, write_recipe, tmp_path):
    base = save_llama(tmp_path / "base")
    assert qpeft("train", write_recipe(model=base), "training.max_steps=1").code == 0
    base.rename(tmp_path / "elsewhere")
    said = qpeft("eval", tmp_path / "run", "--task", "arithmetic", "--limit", "1")
    assert said.code == 2
    assert str(base) in said.err


QUANTUM = {"method": "qtha", "r": 2, "arch": "quantum", "target_modules": ["q_proj"]}
MEASURED = {"task": "arithmetic", "limit": 2, "batch_size": 2, "max_new_tokens": 3}


def test_a_run_is_estimated_then_measured_on_the_virtual_chip(qpeft, write_recipe, tmp_path):
    path = write_recipe(adapter=QUANTUM, evaluation=MEASURED, training__max_steps=1)
    chip = ("--executor", "virtual-wukong", "--shots", "200", "--tokens", "last")
    before = qpeft("estimate", path, *chip, "--json").json
    assert {part["what"] for part in before["parts"]} >= {"training, forward", "evaluation, answers"}
    assert qpeft("train", path, "--quiet").code == 0
    run = tmp_path / "run"
    known = qpeft("estimate", run, *chip, "--json").json
    assert {part["what"] for part in known["parts"]} == {"evaluation, prompts", "evaluation, answers"}
    assert known["advice"]
    found = qpeft("eval", run, *chip, "--json").json["execution"]
    rows = sum(found["rows"].values())
    assert 0 < rows <= known["total"]["circuits"]
    assert found["executor"] == "virtual:wukong-72"
    assert rows == sum(layer["chip"] for layer in found["layers"].values())
    shown = qpeft("qpu", "show", run)
    assert shown.code == 0
    assert "virtual:wukong-72" in shown.out


def test_an_evaluation_is_exact_unless_a_chip_is_named(qpeft, write_recipe, tmp_path):
    path = write_recipe(
        adapter=QUANTUM, evaluation=MEASURED, training__max_steps=1, execution={"executor": "origin", "shots": 200}
    )
    assert qpeft("train", path, "execution.executor=exact", "--quiet").code == 0
    assert "execution" not in qpeft("eval", tmp_path / "run", "--json").json


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("eval", "{run}", "--shots", "200"), "--shots does nothing without --executor"),
        (("eval", "{run}", "--executor", "wukong"), "unknown executor 'wukong'"),
        (("eval", "{run}", "--executor", "virtual-wukong"), "the model has no circuits"),
        (("estimate", "{run}", "--memory", "much"), "memory must be an amount"),
        (("estimate", "{run}", "--executor", "virtual-wukong"), "the model has no circuits"),
        (("demo", "--executor", "origin"), "the demo runs on virtual-wukong"),
    ],
)
def test_wrong_flags_about_chips_are_told_in_one_sentence(qpeft, finished, command, message):
    said = qpeft(*(word.format(run=finished) for word in command))
    assert said.code == 2
    assert message in said.err
