"""Two processes train as one: equal gradients and weights, one writer, refusals and stops in common."""

import os
import socket
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM

from qpeft.adapters import QTHAConfig
from qpeft.errors import InputError, Interrupted
from qpeft.training import RunFolder, make_recipe, ranks, train
from qpeft.training.run_folder import read_metrics
from qpeft.training.workload import steps_of
from tiny_base import recipe_values
from two_processes import leave, run_on_two_processes

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def become(rank: int, port: int) -> None:
    """Take the place that a launcher gives to a process."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    ranks.join()


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
    chip = {"execution": {"executor": "virtual-wukong"}}
    on_chip = refusal(lambda: train(recipe_of(base, Path(folder) / "chip", **changes, **chip)))
    steps = steps_of(recipe_of(base, run, training__max_steps=-1), 24)
    told = {"said": said, "gradients": gradients, "writes": writes, "result": result, "taken": taken,
            "on_chip": on_chip, "steps": steps}  # fmt: skip
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
    assert "start one process" in first["on_chip"]
    assert second["on_chip"].startswith("SaidElsewhere")


def test_steps_of_an_epoch_count_all_ranks(told, llama_base, tmp_path):
    recipe = recipe_of(llama_base, tmp_path, training__max_steps=-1)
    assert steps_of(recipe, 24) == 6
    assert [found["steps"] for found in told[1]] == [3, 3]


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


@pytest.mark.parametrize("ranks_first", [2, 1])
@pytest.mark.slow
def test_checkpoints_go_on_in_another_number_of_processes(ranks_first, llama_base, tmp_path):
    """Stopped at step 2 by one number of ranks and finished by another: weights as of the run never stopped.

    All batches hold the same example, so that it does not matter how many of them a step sees.
    """
    run = tmp_path / "run"
    same = _same_examples(tmp_path)
    straight = recipe_of(llama_base, tmp_path / "straight", **same)
    train(straight)
    recipe = recipe_of(llama_base, run, **same)
    if ranks_first == 2:
        run_on_two_processes(_stopped, free_port(), recipe, 2)
        assert RunFolder(run).last_checkpoint().name == "checkpoint-2"
        train(recipe, resume=True)
    else:
        with pytest.raises(Interrupted):
            train(recipe, callbacks=[_Stop(2)])
        run_on_two_processes(_stopped, free_port(), recipe, None)
    found = load_file(run / "adapter/adapter_model.safetensors")
    for name, value in load_file(tmp_path / "straight/adapter/adapter_model.safetensors").items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line] == [1, 2, 3, 4]


def _same_examples(folder: Path) -> dict:
    line = '{"question": "What is 2 + 3?", "answer": "5"}\n'
    (folder / "train.jsonl").write_text(line * 32)
    (folder / "validation.jsonl").write_text('{"question": "What is 1 + 1?", "answer": "2"}\n')
    data = {"train": str(folder / "train.jsonl"), "validation": str(folder / "validation.jsonl"), "max_length": 200}
    return {"data": data, "training__per_device_train_batch_size": 2}


class _Stop:
    """Made where it is used, since only what can be pickled reaches the other processes."""

    def __new__(cls, step: int):
        import signal

        from transformers import TrainerCallback

        class Signalled(TrainerCallback):
            def on_pre_optimizer_step(self, args, state, control, **_):
                if state.global_step == step - 1:
                    os.kill(os.getpid(), signal.SIGTERM)

        return Signalled()


def _stopped(rank: int, port: int, recipe, step) -> None:
    """Train, stopping after a step because the second rank alone got a signal; or go on to the end."""
    become(rank, port)
    outcome = refusal(lambda: train(recipe, resume=True, callbacks=[_Stop(step)] if step and rank == 1 else []))
    if step is None:
        assert outcome == "none", outcome
    elif rank == 0:
        assert "stopped at step 2 of 4" in outcome, outcome
        assert outcome.startswith("Interrupted")
        assert "accelerate launch ... -m qpeft train" in outcome
    else:
        assert outcome.startswith("SaidElsewhere"), outcome
    leave()
