"""Everything a person can get wrong, and what a machine can do to a run: one clear sentence, the right exit code."""

import errno
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from qpeft.training import RunFolder, run_folder
from qpeft.training import callbacks as training_callbacks
from qpeft.training.trainer import LanguageModelTrainer
from tiny_base import save_llama


def refused(said, *parts, code=2):
    assert said.code == code, said.err
    for part in parts:
        assert str(part) in said.err, said.err


def lines_file(tmp_path, text, name="data.jsonl"):
    path = tmp_path / name
    path.write_text(text)
    return str(path)


# data


def test_malformed_line(qpeft, write_recipe, tmp_path):
    data = lines_file(tmp_path, '{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n')
    refused(qpeft("train", write_recipe(data__train=data)), f"{data}, line 2", "not valid JSON")
    assert not (tmp_path / "run").exists()


def test_empty_data_set(qpeft, write_recipe, tmp_path):
    data = lines_file(tmp_path, "")
    refused(qpeft("train", write_recipe(data__train=data)), data, "no example")


def test_missing_data_file(qpeft, write_recipe, tmp_path):
    data = lines_file(tmp_path, '{"prompt": "a", "completion": "b"}\n')
    said = qpeft("train", write_recipe(data__train=str(tmp_path / "date.jsonl")))
    refused(said, "date.jsonl does not exist", "did you mean data.jsonl?")
    refused(qpeft("eval", data, "--task", "gsm8k", "--data", str(tmp_path / "none.jsonl")), "none.jsonl")


def test_data_on_the_hub_without_network(qpeft, write_recipe):
    refused(qpeft("train", write_recipe(data__train="openai/gsm8k:main")), "openai/gsm8k:main", "JSON-lines file")


def test_all_samples_too_long(qpeft, write_recipe):
    refused(qpeft("train", write_recipe(data__max_length=8)), "max_length", "8")


def test_one_sample_too_long_where_that_is_an_error(qpeft, write_recipe):
    refused(qpeft("train", write_recipe(data__max_length=60, data__too_long="error")), "max_length", "60")


def test_long_samples_are_dropped_and_counted(qpeft, write_recipe, tmp_path):
    rows = [{"prompt": f"question {i} " + "x" * 100 * (i % 2), "completion": "yes"} for i in range(24)]
    data = lines_file(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    said = qpeft("train", write_recipe(data={"train": data, "max_length": 80}), "training.max_steps=1", "--json")
    assert said.json["training"]["dropped"] > 5


def test_validation_that_takes_every_question(qpeft, write_recipe, tmp_path):
    data = lines_file(tmp_path, '{"prompt": "a", "completion": "b"}\n')
    refused(qpeft("train", write_recipe(data__train=data, data__validation=data)), "no training example")


# models


def test_a_model_without_a_chat_template(qpeft, write_recipe, tmp_path):
    base = save_llama(tmp_path / "base", template=None)
    refused(qpeft("train", write_recipe(model=base, data__format="chat")), "no chat template", "plain")
    assert qpeft("train", write_recipe(model=base, data__format="auto"), "training.max_steps=1").code == 0


def test_no_network_and_no_cache(qpeft, write_recipe, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", _unreachable)
    refused(qpeft("train", write_recipe(model="somebody/model")), "'somebody/model'", "cannot be reached")
    refused(qpeft("eval", "somebody/model", "--task", "arithmetic"), "'somebody/model'")
    refused(qpeft("chat", "somebody/model"), "'somebody/model'")


def _unreachable(*args, **kwargs):
    raise ConnectionError("no route to the hub")


def test_a_folder_that_is_no_model(qpeft, write_recipe, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(qpeft("train", write_recipe(model=tmp_path / "empty")), "no config.json")
    refused(qpeft("eval", tmp_path / "empty", "--task", "arithmetic"), "no config.json")


def test_a_target_module_that_does_not_exist(qpeft, write_recipe):
    for method in ("qtha", "lora"):
        recipe = write_recipe(adapter={"method": method, "r": 2, "target_modules": ["q_projj"]})
        refused(qpeft("train", recipe), "q_projj")


@pytest.mark.parametrize(
    ("adapter", "part"),
    [
        ({"method": "lora", "r": 0, "target_modules": ["q_proj"]}, "r"),
        ({"method": "lora", "r": "x", "target_modules": ["q_proj"]}, "adapter.r cannot be 'x'"),
        ({"method": "lora", "target_modules": 3}, "adapter.target_modules cannot be 3"),
        ({"method": "qtha", "r": 2, "target_modules": 3}, "adapter.target_modules cannot be 3"),
        ({"method": "qtha", "r": 2, "target_modules": ["embed_tokens"]}, "embed_tokens"),
        ({"method": "adalora", "r": 2}, "adalora"),
    ],
)
def test_adapters_that_cannot_be_built(qpeft, write_recipe, adapter, part):
    said = qpeft("train", write_recipe(adapter=adapter), "--dry-run")
    assert said.code == 2
    assert part.lower() in said.err.lower()


def test_an_unknown_device_or_scheduler_or_trainer_value(qpeft, write_recipe):
    refused(qpeft("train", write_recipe(), "model.device=gpu"), "'gpu'")
    refused(qpeft("train", write_recipe(), "model.device=cuda:7"), "cuda:7")
    refused(qpeft("train", write_recipe(), "training.trl.optim=adamm"), "training section")


def test_a_task_that_does_not_fit_its_data(qpeft, llama_base, tmp_path):
    refused(qpeft("eval", llama_base, "--task", "arithmetics"), "'arithmetics'", "gsm8k")
    data = lines_file(tmp_path, '{"prompt": "a", "completion": "b"}\n')
    refused(qpeft("eval", llama_base, "--task", "gsm8k", "--data", data), "final answer")
    refused(qpeft("eval", llama_base, "--task", "perplexity"), "--data")
    refused(qpeft("eval", llama_base, "--task", "gsm8k"), "--data")


# adapters


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of the finished run to be damaged."""
    return shutil.copytree(finished, tmp_path / "copied")


def opened(qpeft, folder):
    return qpeft("eval", folder, "--task", "arithmetic", "--limit", "1", "--max-new-tokens", "1")


def change_config(folder, **values):
    path = folder / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_adapter_of_a_newer_format(qpeft, copied):
    change_config(copied, format_version=99)
    for folder in (copied, copied / "adapter"):
        refused(opened(qpeft, folder), "format 99", "pip install -U qpeft")


def test_a_damaged_adapter(qpeft, copied):
    weights = copied / "adapter/adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    refused(opened(qpeft, copied), weights, "damaged")
    weights.unlink()
    refused(opened(qpeft, copied), "lacks its weights")
    weights.write_bytes(whole)
    assert opened(qpeft, copied).code == 0
    (copied / "adapter/adapter_config.json").write_text('{"peft_type": ')
    for folder in (copied, copied / "adapter"):
        refused(opened(qpeft, folder), "adapter")
    (copied / "adapter/adapter_config.json").unlink()
    refused(opened(qpeft, copied), "not finished", "--resume")


def test_an_adapter_whose_tensors_have_another_shape(qpeft, copied):
    weights = copied / "adapter/adapter_model.safetensors"
    tensors = load_file(weights)
    name = sorted(tensors)[0]
    save_file({**tensors, name: torch.zeros(3)}, weights, metadata={"format": "pt"})
    refused(opened(qpeft, copied), "does not fit")


def test_an_adapter_of_another_model(qpeft, copied, tmp_path):
    other = save_llama(tmp_path / "other", hidden_size=48, num_attention_heads=4, num_key_value_heads=4)
    change_config(copied, base_model_name_or_path=str(other))
    refused(opened(qpeft, copied / "adapter"), "does not fit", other)


def test_an_adapter_without_a_base(qpeft, copied):
    change_config(copied, base_model_name_or_path=None)
    refused(opened(qpeft, copied / "adapter"), "base_model_name_or_path")


def test_a_folder_that_is_no_run(qpeft, tmp_path):
    refused(opened(qpeft, tmp_path / "none"), "none")
    (tmp_path / "recipe.yaml").write_text("output: [")
    refused(opened(qpeft, tmp_path), "not valid YAML")


# the machine


def test_an_output_that_cannot_be_written(qpeft, write_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    refused(qpeft("train", write_recipe(output="file/run")), tmp_path / "file/run", "cannot be written", "output")
    refused(qpeft("train", write_recipe(), f"output={tmp_path / 'file'}"), "cannot be written")
    refused(qpeft("demo", "--output", tmp_path / "file"), "cannot be written", "--output")


def test_a_result_file_that_cannot_be_written(qpeft, finished, tmp_path):
    (tmp_path / "file").write_text("")
    refused(qpeft("eval", finished, "--output", tmp_path / "file/result.json"), "file", code=1)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_a_checkpoint(qpeft, write_recipe, tmp_path, monkeypatch):
    mark = training_callbacks.mark_complete

    def full_at_step_four(checkpoint):
        no_space() if checkpoint.name == "checkpoint-4" else mark(checkpoint)

    monkeypatch.setattr(training_callbacks, "mark_complete", full_at_step_four)
    said = qpeft("train", write_recipe())
    folder = tmp_path / "run"
    refused(said, "disk", "full", folder / "checkpoints/checkpoint-2", f"qpeft train {folder} --resume", code=1)
    assert not (folder / "checkpoints/checkpoint-4").exists()  # what was half written gives its space back
    monkeypatch.undo()
    assert qpeft("train", folder, "--resume").code == 0


@pytest.mark.parametrize(
    ("writer", "message"),  # what these say on a disk that is really full
    [
        ("torch.save", "[enforce fail at inline_container.cc:672] . unexpected pos 8384 vs 8278"),
        ("torch.save", "basic_ios::clear: iostream error"),
        ("peft.peft_model.safe_save_file", "I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_is_full_in_a_library(qpeft, write_recipe, monkeypatch, writer, message):
    def fail(*args, **kwargs):
        raise RuntimeError(message)

    monkeypatch.setattr(writer, fail)
    refused(qpeft("train", write_recipe()), "disk", "full", "no checkpoint had been saved yet", code=1)


def test_a_disk_that_is_full_from_the_start(qpeft, write_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.os, "fsync", no_space)
    refused(qpeft("train", write_recipe()), "disk", "full", code=1)
    assert not list((tmp_path / "run").glob(".recipe*"))


def test_too_little_memory(qpeft, write_recipe, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr("qpeft.training.bases.load_model", fail)
    refused(qpeft("train", write_recipe()), "memory did not suffice", "smaller model", code=1)


def test_a_fault_of_the_program_shows_where_it_is(capsys, monkeypatch):
    from qpeft import cli

    monkeypatch.setattr("qpeft.cli.doctor.examine", lambda: 1 / 0)
    assert cli.run(["doctor"]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "please report" in said.splitlines()[-1]


def test_a_traceback_can_be_had_for_any_error(capsys, monkeypatch, tmp_path):
    from qpeft import cli

    monkeypatch.setenv("QPEFT_TRACEBACK", "1")
    assert cli.run(["train", str(tmp_path / "none.yaml")]) == 2
    assert "Traceback" in capsys.readouterr().err


# numbers that are none


def finite(folder):
    weights = load_file(folder / "adapter_model.safetensors")
    return all(torch.isfinite(tensor).all() for tensor in weights.values())


def test_a_learning_rate_that_is_too_large(qpeft, write_recipe, tmp_path):
    said = qpeft(
        "train", write_recipe(training__learning_rate=1e30, training__save_steps=1, training__eval_steps=None)
    )
    # the first step has rate 0 (warm-up), the second makes the numbers huge, the third meets them
    refused(said, "at step 3", tmp_path / "run/checkpoints/checkpoint-", "learning_rate", code=1)
    for checkpoint in RunFolder(tmp_path / "run").complete_checkpoints():
        assert finite(checkpoint)
    assert str(RunFolder(tmp_path / "run").last_checkpoint()) in said.err
    assert not (tmp_path / "run/adapter").exists()


def test_a_poisoned_model(qpeft, write_recipe, tmp_path):
    base = save_llama(tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    said = qpeft("train", write_recipe(model=base))
    refused(said, "loss became nan at step 1", "no checkpoint had been saved yet", code=1)


def test_a_loss_that_turns_bad_in_the_middle(qpeft, write_recipe, tmp_path, monkeypatch):
    from transformers import Trainer

    step = Trainer.training_step

    def poisoned(self, *args, **kwargs):
        loss = step(self, *args, **kwargs)
        return loss * float("inf") if self.state.global_step == 3 else loss

    monkeypatch.setattr(Trainer, "training_step", poisoned)
    said = qpeft("train", write_recipe())
    refused(said, "loss became inf at step 4", tmp_path / "run/checkpoints/checkpoint-2", code=1)
    monkeypatch.undo()
    assert qpeft("train", tmp_path / "run", "--resume").code == 0


def test_a_validation_loss_that_is_none(qpeft, write_recipe, tmp_path, monkeypatch):
    step = LanguageModelTrainer.prediction_step

    def poisoned(self, *args, **kwargs):
        loss, *rest = step(self, *args, **kwargs)
        return (loss * float("nan"), *rest)

    monkeypatch.setattr(LanguageModelTrainer, "prediction_step", poisoned)
    said = qpeft("train", write_recipe())
    refused(said, "validation loss became nan at step 3", tmp_path / "run/checkpoints/checkpoint-2", code=1)
