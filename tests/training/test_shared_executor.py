"""Two processes share one chip executor: rows and results of one process, one ledger, one budget, one end."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from qpeft.circuits import qtha_block
from qpeft.execution import OnExecutor
from qpeft.qpu.ledger import LedgerReader
from qpeft.qpu.settings import ExecutionSettings, open_executor
from qpeft.qpu.tokens import Tokens
from qpeft.simulators import run as simulate
from qpeft.training import make_recipe, ranks, train
from qpeft.training.execution import ExecutionSection, _opened
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values
from two_processes import become, free_port, leave, run_on_two_processes

CHIP = {"executor": "virtual-wukong", "shots": 200, "tokens": "last", "max_blocks": 4}
ADAPTER = {"method": "qtha", "r": 2, "arch": "quantum", "target_modules": ["q_proj"]}
CIRCUIT = qtha_block(n_qubits=2, n_layers=1)
RULES = ("twin", "shift", "spsa")


def refusal(action) -> str:
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


def batches():
    """Batches of sequences of two lengths."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for shape in ((4, 2, 2), (2, 1, 2))]


def weights():
    return torch.randn(8, generator=torch.Generator().manual_seed(1)).requires_grad_()


def call(executor, rule, tokens, inputs):
    """Values and gradients of a layer's call, as a training step makes it."""
    execution, w = OnExecutor(executor, rule, Tokens.parse(tokens)), weights()
    x = inputs.clone().requires_grad_()
    values = execution(CIRCUIT, x, w, lambda rows: simulate(CIRCUIT, rows, w))
    torch.manual_seed(0)  # the directions of SPSA
    values.square().sum().backward()
    return values.detach(), x.grad, w.grad


def recipe_of(base, folder, batch, **execution):
    training = {"max_steps": 3, "per_device_train_batch_size": batch, "eval_steps": None, "save_steps": 1,
                "per_device_eval_batch_size": batch}  # fmt: skip
    values = recipe_values(base, folder, adapter=dict(ADAPTER), training=training, execution={**CHIP, **execution})
    return make_recipe(values)


def _everything(rank: int, port: int, base: str, folder: str) -> None:
    become(rank, port)
    told = {}
    for rule in RULES:
        settings = ExecutionSettings(**CHIP, gradient=rule, mitigation={"affine": rule == "twin"})
        executor = _opened(settings, f"{folder}/two-{rule}", ())
        half = [batch.chunk(2)[rank] for batch in batches()]
        found = [call(executor, rule, "all", part) for part in half]
        found.append(call(executor, rule, "all", half[0][: 1 - rank]))  # the second process has no row
        found.append(call(executor, rule, "all", half[0][:0]))  # none has
        told[rule] = found
        told[f"{rule} report"] = executor.report()
        executor.close()
    told["result"] = train(recipe_of(base, f"{folder}/run", 2))
    # lets through what was planned for, and no more
    settings = ExecutionSettings(**CHIP, max_circuits=5)
    executor = _opened(settings, f"{folder}/spent", ())
    told["spent"] = [refusal(lambda: call(executor, "twin", "all", half[0])) for _ in range(2)]
    executor.close()
    told["over"] = refusal(lambda: train(recipe_of(base, f"{folder}/over", 2, max_circuits=3)))
    torch.save(told, f"{folder}/told-{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def told(llama_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shared")
    run_on_two_processes(_everything, free_port(), str(llama_base), str(folder))
    return folder, [torch.load(folder / f"told-{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("rule", RULES)
def test_two_processes_get_what_one_with_both_halves_gets(told, tmp_path, rule):
    settings = ExecutionSettings(**CHIP, gradient=rule, mitigation={"affine": rule == "twin"})
    executor = open_executor(settings, tmp_path / "one")
    alone = [call(executor, rule, "all", batch) for batch in batches()]
    alone.append(call(executor, rule, "all", batches()[0][:1]))
    for number, (values, to_inputs, to_weights) in enumerate(alone):
        halves = [found[rule][number] for found in told[1]]
        assert torch.equal(torch.cat([half[0] for half in halves]), values)
        if rule == "twin":  # the others draw shots for shifted circuits, here in another order
            torch.testing.assert_close(torch.cat([half[1] for half in halves]), to_inputs)
            torch.testing.assert_close(halves[0][2] + halves[1][2], to_weights)
        else:
            assert all(half[2].isfinite().all() for half in halves)
            assert torch.cat([half[1] for half in halves]).shape == to_inputs.shape
    report = told[1][0][f"{rule} report"]
    assert report == told[1][1][f"{rule} report"]
    assert report.packed_circuits == executor.report().packed_circuits
    assert report.rows == executor.report().rows
    executor.close()


def test_shift_gradients_of_two_processes_are_right(told):
    """200 shots of 2 x 14 circuits a row leave a standard error of about 0.1 of each number."""
    w = weights()
    values = [simulate(CIRCUIT, batch.flatten(0, 1), w) for batch in batches()[:1]]
    values[0].square().sum().backward()
    found = sum(each["shift"][0][2] for each in told[1])
    assert (found - w.grad).abs().max() < 6 * 0.1 * len(batches()[0].flatten(0, 1)) ** 0.5
    assert torch.corrcoef(torch.stack([found, w.grad]))[0, 1] > 0.8


def test_a_training_is_that_of_one_process_with_one_ledger(told, llama_base, tmp_path):
    folder, (first, second) = told
    paths = folder / "run", tmp_path / "one"
    train(recipe_of(llama_base, paths[1], 4))
    assert first["result"].train_loss == second["result"].train_loss
    both, one = (json.loads((path / "result.json").read_text())["execution"] for path in paths)
    for key in ("jobs", "circuits", "shots", "packed_circuits", "chip_seconds", "executor", "rows"):
        assert both[key] == one[key], key
    assert [both["layers"][name]["chip"] for name in one["layers"]] == [row["chip"] for row in one["layers"].values()]
    found, expected = (load_file(path / "adapter/adapter_model.safetensors") for path in paths)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    metrics = [read_metrics(path / "metrics.jsonl") for path in paths]
    losses, expected_losses = ([line["loss"] for line in lines if "loss" in line] for lines in metrics)
    assert losses == pytest.approx(expected_losses, abs=1e-5)


def test_one_budget_ends_all_processes(told):
    folder, (first, second) = told
    assert first["spent"][0] == second["spent"][0] == "none"
    assert first["spent"][1].startswith("BudgetSpent: ")
    assert "\n" not in first["spent"][1]
    assert second["spent"][1].startswith("SaidElsewhere: process 0 ended the run: ")
    assert LedgerReader(folder / "spent").spent("virtual:wukong-72").circuits == 4
    assert "the run would use" in first["over"]
    assert second["over"].startswith("SaidElsewhere")
    assert LedgerReader(folder / "over").spent("virtual:wukong-72").jobs == 0


def _one_dies(rank: int, port: int, folder: str) -> None:
    become(rank, port)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # which the test's own launcher sends to who is left
    executor = _opened(ExecutionSettings(**CHIP), f"{folder}/run", ())
    call(executor, "twin", "all", batches()[0])
    if rank == 1:
        os.kill(os.getpid(), 9)
    said = refusal(lambda: call(executor, "twin", "all", batches()[0]))
    executor.close()
    Path(f"{folder}/said").write_text(said)
    os._exit(0)


def test_a_process_that_dies_ends_the_other(tmp_path):
    with pytest.raises(Exception, match="SIGKILL"):
        run_on_two_processes(_one_dies, free_port(), str(tmp_path))
    until = time.monotonic() + 30
    while not (tmp_path / "said").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert (
        tmp_path / "said"
    ).read_text() == "RankLost: process 0 of 2 has lost another one, which was killed or has failed"


def test_sharded_models_are_refused(llama_base, tmp_path, monkeypatch):
    monkeypatch.setattr(ranks, "asks_for_shards", lambda: True)
    assert "use DDP in place of FSDP" in refusal(lambda: train(recipe_of(llama_base, tmp_path / "run", 2)))


def test_without_a_launcher_nothing_is_shared(tmp_path):
    executor = _opened(ExecutionSection(**CHIP).settings, tmp_path, ())
    assert not dist.is_initialized()
    assert type(executor).__name__ == "ChipExecutor"
    executor.close()
