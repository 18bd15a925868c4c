"""Runs that would not fit are refused before their base is loaded; those that run out can go on."""

import json
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from qpeft.errors import InputError
from qpeft.training import RunFolder, make_recipe, memory, memory_check, train
from qpeft.training.memory import OutOfMemory, available_bytes, is_out_of_memory, told_if_out_of_memory
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values

ADAPTER = {"r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["q_proj"], "dropout": 0.2}


def values_of(base, folder, **changes):
    plain = {"training__save_steps": 50, "training__eval_steps": None}
    return recipe_values(base, folder, adapter=dict(ADAPTER), **{**plain, **changes})


class FailOnce(TrainerCallback):
    """Lets one layer fail in the forward pass of a step."""

    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step_begin(self, args, state, control, model=None, **_):
        if state.global_step == self.step:
            model.get_base_model().model.layers[1].register_forward_hook(self.fail)

    def fail(self, *_):
        raise self.error


def adapter_of(folder):
    return load_file(folder / "adapter/adapter_model.safetensors")


@pytest.fixture(scope="module")
def straight(llama_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("straight") / "run"
    train(make_recipe(values_of(llama_base, folder)))
    return adapter_of(folder)


@pytest.fixture(scope="module")
def without_dropout(llama_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("without") / "run"
    train(make_recipe(values_of(llama_base, folder, adapter__dropout=0.0)))
    return adapter_of(folder)


@pytest.mark.parametrize(
    ("changes", "overrides"),
    [
        ({}, "training.gradient_checkpointing=true"),
        ({"training__gradient_checkpointing": True},
         "training.per_device_train_batch_size=2 training.gradient_accumulation_steps=2"),
    ],
)  # fmt: skip
def test_what_was_finished_is_saved_and_goes_on_exactly(llama_base, tmp_path, straight, changes, overrides):
    recipe = make_recipe(values_of(llama_base, tmp_path / "run", **changes))
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
    with pytest.raises(OutOfMemory) as told:
        train(recipe, callbacks=[FailOnce(3, error)])
    sentence = str(told.value)
    assert "\n" not in sentence
    assert "at step 4" in sentence
    assert "checkpoint-3" in sentence
    assert f"qpeft train {tmp_path / 'run'} --resume {overrides}" in sentence
    train(recipe, resume=True)
    found = adapter_of(tmp_path / "run")
    for key, value in straight.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6 if changes else 0)
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    "overrides",
    [{"gradient_checkpointing": True}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}],
)
def test_a_run_goes_on_with_less_memory(llama_base, tmp_path, without_dropout, overrides):
    values = values_of(llama_base, tmp_path / "run", adapter__dropout=0.0)
    with pytest.raises(OutOfMemory):
        train(make_recipe(values), callbacks=[FailOnce(3, MemoryError())])
    values["training"].update(overrides)
    assert train(make_recipe(values), resume=True).steps == 6
    found = adapter_of(tmp_path / "run")
    for key, value in without_dropout.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)


def test_a_failure_where_nothing_can_be_saved_names_the_last_checkpoint(llama_base, tmp_path, monkeypatch):
    values = values_of(llama_base, tmp_path / "run")
    values["training"]["save_steps"] = 2

    def full(*_):
        raise MemoryError

    monkeypatch.setattr("qpeft.training.trainer.LanguageModelTrainer._save_optimizer_and_scheduler", full)
    with pytest.raises(OutOfMemory, match="no checkpoint had been saved yet"):
        train(make_recipe(values))
    monkeypatch.undo()

    class FullLater(FailOnce):
        def fail(self, *_):
            monkeypatch.setattr("qpeft.training.trainer.LanguageModelTrainer._save_optimizer_and_scheduler", full)
            raise MemoryError

    with pytest.raises(OutOfMemory, match="checkpoint-2;"):
        train(make_recipe(values), overwrite=True, callbacks=[FullLater(3, None)])
    monkeypatch.undo()
    assert [path.name for path in RunFolder(tmp_path / "run").checkpoints.glob("checkpoint*")] == ["checkpoint-2"]
    assert train(make_recipe(values), resume=True).steps == 6


_LIMITED = """
    import json, resource, sys
    import psutil, torch
    from transformers import TrainerCallback
    from qpeft.training import make_recipe, train
    from qpeft.training.memory import OutOfMemory

    torch.set_num_threads(1)

    class Limit(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            if state.global_step == 2:
                most = psutil.Process().memory_info().vms + 2**30
                resource.setrlimit(resource.RLIMIT_AS, (most, most))
                model.get_base_model().model.layers[1].register_forward_hook(lambda *_: torch.ones(2**32))

    try:
        train(make_recipe(json.loads(sys.argv[1])), callbacks=[Limit()])
    except OutOfMemory as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_an_allocator_that_gives_no_more(llama_base, tmp_path):
    """What the system really says, in a process whose address space is limited."""
    values = json.dumps(values_of(llama_base, tmp_path / "run"))
    program = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_LIMITED), values]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout
    assert "the memory did not suffice at step 3" in said
    assert "checkpoint-2" in said
    assert RunFolder(tmp_path / "run").last_checkpoint().name == "checkpoint-2"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:126] DefaultCPUAllocator: can't allocate memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shapes do not match"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error) == expected
    wrapped = ValueError("broken")
    wrapped.__cause__ = error
    assert is_out_of_memory(wrapped) == expected
    with pytest.raises(OutOfMemory if expected else type(error)), told_if_out_of_memory("loading it"):
        raise error


def test_a_run_that_would_not_fit_is_refused_before_its_base_is_loaded(llama_base, tmp_path, monkeypatch):
    values = values_of(llama_base, tmp_path / "run")
    values["training"]["per_device_train_batch_size"] = 8
    monkeypatch.setattr("qpeft.training.bases.load_model", None)
    needs = []
    monkeypatch.setattr(memory_check, "available_bytes", lambda _: 1.0)
    with pytest.raises(InputError, match="not one example fits"):
        train(make_recipe(values))
    real = memory_check._need
    monkeypatch.setattr(memory_check, "_need", lambda *given: needs.append(real(*given)) or needs[-1])
    monkeypatch.setattr(memory_check, "available_bytes", lambda _: 2.4e6)
    with pytest.raises(InputError) as told:
        train(make_recipe(values))
    assert "0.00 GB are free on cpu" in str(told.value)
    assert "training.memory_check=false" in str(told.value)
    assert not (tmp_path / "run/recipe.yaml").exists()
    way = str(told.value).partition("per_device_train_batch_size=")[2].partition(",")[0]
    assert 1 <= int(way) < 8
    values["training"]["per_device_train_batch_size"] = int(way)
    monkeypatch.undo()
    monkeypatch.setattr(memory_check, "available_bytes", lambda _: 2.4e6)
    said = []
    assert train(make_recipe(values), say=said.append).steps == 6
    assert not any("tight" in sentence for sentence in said)
    monkeypatch.setattr(memory_check, "available_bytes", lambda _: needs[0] / 1.05)
    values["training"]["per_device_train_batch_size"] = 8
    train(make_recipe(values), overwrite=True, say=said.append)
    assert any("this will be tight" in sentence for sentence in said)


def test_the_check_can_be_left_out(llama_base, tmp_path, monkeypatch):
    monkeypatch.setattr(memory_check, "available_bytes", lambda _: 1.0)
    values = values_of(llama_base, tmp_path / "run", training__memory_check=False)
    assert train(make_recipe(values)).steps == 6


def test_limits_of_control_groups_count(tmp_path, monkeypatch):
    group = tmp_path / "user" / "job"
    group.mkdir(parents=True)
    lines = tmp_path / "lines"
    lines.write_text("0::/user/job\n")
    (group / "memory.max").write_text("max\n")
    outer = group.parent
    (outer / "memory.max").write_text("1000000\n")
    (outer / "memory.current").write_text("900000\n")
    (outer / "memory.stat").write_text("anon 600000\ninactive_file 200000\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_OWN_GROUPS", lines)
    assert available_bytes("cpu") == 300000
    lines.write_text("")
    assert available_bytes("cpu") > 300000


def test_a_run_of_trl_says_how_to_go_on(llama_base, tmp_path):
    from qpeft.training.trl_arguments import read_arguments
    from qpeft.training.trl_run import run_trl

    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}", "completion": "aa"}) + "\n" for i in range(8)))
    words = [
        *("--model_name_or_path", str(llama_base), "--dataset_name", str(data), "--output_dir", str(tmp_path / "run")),
        *("--max_steps=3", "--save_steps=1", "--per_device_train_batch_size=2", "--use_cpu=true", "--bf16=false"),
        *("--report_to=none", "--adapter.r=2", "--adapter.target_modules=[q_proj]"),
    ]
    with pytest.raises(OutOfMemory) as told:
        run_trl(read_arguments("sft", words), callbacks=[FailOnce(1, MemoryError())])
    assert "at step 2" in str(told.value)
    assert "--resume_from_checkpoint last" in str(told.value)
    assert (tmp_path / "run/checkpoint-1/trainer_state.json").is_file()
