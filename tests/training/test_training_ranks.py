"""Two processes train as one: equal gradients and weights, one writer, refusals and stops in common."""

import os
import shlex
import signal
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import get_peft_model
from peft.utils.other import fsdp_auto_wrap_policy
from safetensors.torch import load_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, TrainerCallback
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from qpeft.adapters import QTHAConfig
from qpeft.errors import InputError, Interrupted
from qpeft.training import RunFolder, make_recipe, ranks, train
from qpeft.training.recipe import load_recipe
from qpeft.training.run_folder import read_metrics
from qpeft.training.workload import steps_of
from tiny_base import recipe_values
from two_processes import become, free_port, leave, run_on_two_processes

ROOT = Path(__file__).parents[2]
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def adapted(base):
    """The tiny model under circuits, with a decoder that is not zero, so that every part has a gradient."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = QTHAConfig(r=2, bond_dim=2, inner_features=8, target_modules=["q_proj"], init_weights=False)
    return get_peft_model(model, config)


def sequences():
    return torch.randint(4, 200, (4, 12), generator=torch.Generator().manual_seed(1))


def gradients_of(model):
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def recipe_of(base, folder, **changes):
    return make_recipe(recipe_values(base, folder, **{"training__max_steps": 4, **changes}))


def watch_writes(folder: Path, seen: list[str]) -> None:
    """Note everything that this process opens for writing, makes or moves below a folder."""

    def hook(event, arguments):
        if event not in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") or not arguments:
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        if isinstance(arguments[0], str | os.PathLike) and str(arguments[0]).startswith(str(folder)):
            seen.append(f"{event} {arguments[0]}")

    sys.addaudithook(hook)


def refusal(action) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def fail_in(number: int) -> None:
    with ranks.together():
        if ranks.rank() == number:
            raise InputError(f"refused by {number}")


def _everything(rank: int, port: int, base: str, folder: str) -> None:
    become(rank, port)
    said = [
        refusal(lambda: fail_in(1)),
        refusal(lambda: fail_in(5)),
        refusal(lambda: ranks.from_first(lambda: 1 // 0)),
        str(ranks.from_first(lambda: f"made by {rank}")),
        str([ranks.in_any(rank == 1), ranks.in_any(False)]),
        str(ranks.gathered(bytes([rank]))),
    ]
    wrapped = DistributedDataParallel(adapted(base))
    half = sequences()[rank * 2 : rank * 2 + 2]
    wrapped(half, labels=half).loss.backward()
    ranks.keep(wrapped)
    gradients = gradients_of(wrapped.module)

    run = Path(folder) / "run"
    writes: list[str] = []
    watch_writes(run, writes)
    changes = {"training__per_device_train_batch_size": 2, "training__tensorboard": True}
    result = train(recipe_of(base, run, **changes))
    taken = refusal(lambda: train(recipe_of(base, run, **changes)))
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    classifier = {"model__task": "sequence-classification"}
    sharded = refusal(lambda: train(recipe_of(base, Path(folder) / "classifier", **classifier)))
    steps = steps_of(recipe_of(base, run, training__max_steps=-1), 24)
    told = {"said": said, "gradients": gradients, "writes": writes, "result": result, "taken": taken,
            "sharded": sharded, "steps": steps}  # fmt: skip
    torch.save(told, f"{folder}/told-{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def told(llama_base, tmp_path_factory):
    """What two processes found in common; starting them takes most of the time, so they do everything at once."""
    folder = tmp_path_factory.mktemp("two")
    run_on_two_processes(_everything, free_port(), str(llama_base), str(folder))
    return folder, [torch.load(folder / f"told-{rank}.pt", weights_only=False) for rank in range(2)]


def test_gradients_are_those_of_one_process(told, llama_base):
    model = adapted(llama_base)
    model(sequences(), labels=sequences()).loss.backward()
    expected = gradients_of(model)
    assert any("circuit" in name for name in expected)
    for found in told[1]:
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient.abs().max() > 0, name
            torch.testing.assert_close(found["gradients"][name], gradient, rtol=0, atol=1e-6)


def test_a_run_ends_as_that_of_one_process_with_the_whole_batch(told, llama_base, tmp_path):
    folder, (first, second) = told
    alone = train(recipe_of(llama_base, tmp_path / "alone"))
    weights = load_file(folder / "run/adapter/adapter_model.safetensors")
    expected = load_file(tmp_path / "alone/adapter/adapter_model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=1e-6)
    lines = [line for line in read_metrics(folder / "run/metrics.jsonl") if "loss" in line]
    ours = [line for line in read_metrics(tmp_path / "alone/metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line, expected_line in zip(lines, ours, strict=True):
        assert line["loss"] == pytest.approx(expected_line["loss"], abs=1e-5)
        assert line["num_tokens"] == expected_line["num_tokens"]
    assert first["result"] == second["result"]
    assert first["result"].train_loss == pytest.approx(alone.train_loss, abs=1e-5)


def test_the_first_rank_alone_writes(told):
    folder, (first, second) = told
    assert any("metrics.jsonl" in write for write in first["writes"])
    assert second["writes"] == []
    checkpoint = RunFolder(folder / "run").last_checkpoint()
    assert checkpoint.name == "checkpoint-4"
    assert {path.name for path in checkpoint.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


def test_refusals_are_common_and_said_once(told):
    _, (first, second) = told
    assert first["said"][0] == "SaidElsewhere: process 1 ended the run: refused by 1"
    assert second["said"][0] == "InputError: refused by 1"
    assert first["said"][1] == second["said"][1] == "none"
    assert first["said"][2].startswith("ZeroDivisionError")
    assert second["said"][2].startswith("SaidElsewhere")
    assert first["said"][3] == second["said"][3] == "made by 0"
    assert first["said"][4] == second["said"][4] == "[True, False]"
    assert first["said"][5] == second["said"][5] == "[b'\\x00', b'\\x01']"
    assert "InputError" in first["taken"]
    assert "already holds a run" in first["taken"]
    assert second["taken"].startswith("SaidElsewhere")
    assert "use DDP" in first["sharded"]


def test_steps_of_an_epoch_count_all_ranks(told, llama_base, tmp_path):
    recipe = recipe_of(llama_base, tmp_path, training__max_steps=-1)
    assert steps_of(recipe, 24) == 6
    assert [found["steps"] for found in told[1]] == [3, 3]


def test_policy_of_peft_takes_every_leaf_of_the_adapter(llama_base):
    """FSDP1 wraps what this policy names; trained float32 leaves then stand apart from a frozen base."""
    model = adapted(llama_base)
    policy = fsdp_auto_wrap_policy(model)
    trained = {name.rpartition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert len(trained) >= 3
    for name, module in model.named_modules():
        if name in trained or isinstance(module, LlamaDecoderLayer):
            assert policy(module=module, recurse=False, nonwrapped_numel=0), name
        elif name.endswith("base_layer"):
            assert not policy(module=module, recurse=False, nonwrapped_numel=0), name


@pytest.mark.parametrize("file", sorted((ROOT / "recipes/accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_launch_configurations_are_read_by_accelerate(file):
    config = load_config_from_file(str(file))
    assert config.num_processes >= 2
    assert config.mixed_precision == "no"  # the recipe decides
    first = file.read_text().splitlines()[0]
    assert first.startswith(
        f"# accelerate launch --config_file recipes/accelerate/{file.name} -m qpeft train recipes/"
    )
    words = shlex.split(first.partition("-m qpeft train ")[2])
    load_recipe(ROOT / words[0], words[1:])


def test_a_program_outside_a_launcher_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")  # as some schedulers set it for a program that they start once
    assert ranks.world_size() == 1
    assert ranks.is_first()
    assert ranks.device_for("auto") == ("auto", None)


def test_each_rank_computes_on_its_own_device(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert ranks.device_for("auto") == ("cuda:3", "cuda")
    assert ranks.device_for("cpu") == ("cpu", "cpu")
    with pytest.raises(InputError, match=r"model\.device=auto"):
        ranks.device_for("cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert ranks.device_for("auto") == ("cpu", "cuda")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert ranks.device_for("auto") == ("cpu", "cpu")


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "sharded"])
@pytest.mark.parametrize("ranks_first", [2, 1])
@pytest.mark.slow
def test_checkpoints_go_on_in_another_number_of_processes(ranks_first, sharded, llama_base, tmp_path):
    """Stopped at step 2 by one number of ranks and finished by another: weights as of the run never stopped.

    All batches hold the same example, so that it does not matter how many of them a step sees.
    """
    run = tmp_path / "run"
    same = _same_examples(tmp_path)
    straight = recipe_of(llama_base, tmp_path / "straight", **same)
    train(straight)
    recipe = recipe_of(llama_base, run, **same)
    if ranks_first == 2:
        run_on_two_processes(_stopped, free_port(), recipe, 2, sharded)
        assert RunFolder(run).last_checkpoint().name == "checkpoint-2"
        train(recipe, resume=True)
    else:
        with pytest.raises(Interrupted):
            train(recipe, callbacks=[_Stop(2)])
        run_on_two_processes(_stopped, free_port(), recipe, None, sharded)
    found = load_file(run / "adapter/adapter_model.safetensors")
    expected = load_file(tmp_path / "straight/adapter/adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]


def shard() -> None:
    """Ask for FSDP2 as `accelerate launch` does with the recipe that comes with the library."""
    settings = yaml.safe_load((ROOT / "recipes/accelerate/fsdp2.yaml").read_text())
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    for key, value in settings["fsdp_config"].items():
        os.environ[key.upper()] = str(value).lower() if isinstance(value, bool) else str(value)


def _same_examples(folder: Path) -> dict:
    line = '{"question": "What is 2 + 3?", "answer": "5"}\n'
    (folder / "train.jsonl").write_text(line * 32)
    (folder / "validation.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    data = {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"), "max_length": 200}
    return {"data": data, "training__per_device_train_batch_size": 2}


class _Stop(TrainerCallback):
    """Sends this process the signal that a launcher ends it with, in a step."""

    def __init__(self, step: int):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step == self.step - 1:
            os.kill(os.getpid(), signal.SIGTERM)


def _look_at_shards(seen: list[str]) -> TrainerCallback:
    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **_):
            layers = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
            assert any(name.endswith("layers.1") for name in layers), layers
            for name, value in model.named_parameters():
                if ".layers." not in name:
                    continue  # the norm and the head stay whole after an evaluation
                assert isinstance(value, DTensor), name
                assert value.to_local().numel() < value.numel() or value.shape[0] == 1, name
            seen.append("sharded")

    return Look()


def _stopped(rank: int, port: int, recipe, step, sharded: bool) -> None:
    """Train, stopping after a step because the second rank alone got a signal; or go on to the end."""
    become(rank, port)
    seen: list[str] = []
    callbacks = [_Stop(step)] if step and rank == 1 else []
    if sharded:
        shard()
        callbacks.append(_look_at_shards(seen))
    outcome = refusal(lambda: train(recipe, resume=True, callbacks=callbacks))
    assert len(seen) == (2 if sharded else 0), (seen, outcome)
    if step is None:
        assert outcome == "none", outcome
    elif rank == 0:
        assert "stopped at step 2 of 4" in outcome, outcome
        assert outcome.startswith("Interrupted")
        assert "accelerate launch ... -m qpeft train" in outcome
    else:
        assert outcome.startswith("SaidElsewhere"), outcome
    leave()
