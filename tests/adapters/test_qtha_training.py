"""QTHA under the trainers of the Hugging Face libraries, the compiler, and two processes."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
from datasets import Dataset
from peft import get_peft_model
from tiny_models import ARCHITECTURES, WORDS, llama, small_config, tokenizer, tokens
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

import qpeft
from two_processes import leave, run_on_two_processes

COMMON = {
    "use_cpu": True,
    "report_to": [],
    "disable_tqdm": True,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-2,
    "seed": 3,
}


def rows(count: int = 12) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(4, 64, (count, 8), generator=generator)
    return Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()})


def words(k: int, count: int = 5) -> str:
    return " ".join(WORDS[(k * 7 + j * 3) % len(WORDS)] for j in range(count))


def trained_state(model) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters() if "qtha_" in n}


def fresh(**kwargs):
    torch.manual_seed(11)
    return get_peft_model(llama(), small_config(dropout=0.1, **kwargs))


def test_resumed_training_equals_the_straight_run(tmp_path):
    def train(folder, resume=None):
        arguments = TrainingArguments(output_dir=str(folder), max_steps=6, save_steps=3, **COMMON)
        model = fresh()
        trainer = Trainer(model=model, args=arguments, train_dataset=rows())
        trainer.train(resume_from_checkpoint=resume)
        return trained_state(model), [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    straight, losses = train(tmp_path / "run")
    resumed, resumed_losses = train(tmp_path / "run", resume=str(tmp_path / "run" / "checkpoint-3"))
    assert resumed_losses == losses
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    assert qpeft.load(tmp_path / "run" / "checkpoint-6", base_model=llama()) is not None


def test_trainer_takes_an_optimizer_with_a_rate_for_the_angles(tmp_path):
    model = fresh()
    before = trained_state(model)
    optimizer = torch.optim.SGD(qpeft.adapters.parameter_groups(model, lr=0.0, angle_lr=0.1))
    # One step at a rate of zero leaves Delta y = 0, and with it no gradient for the angles; give the decoder a value.
    for block in model.base_model.model.model.layers:
        torch.nn.init.normal_(block.self_attn.q_proj.qtha_decoder["default"].weight)
    before |= {n: v for n, v in trained_state(model).items() if "decoder" in n}
    arguments = TrainingArguments(output_dir=str(tmp_path), max_steps=2, save_strategy="no", **COMMON)
    Trainer(model=model, args=arguments, train_dataset=rows(), optimizers=(optimizer, None)).train()
    changed = {n for n, v in trained_state(model).items() if not torch.equal(v, before[n])}
    assert changed
    assert all("qtha_circuit" in name for name in changed)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_gradient_checkpointing_gives_the_same_gradients(use_reentrant):
    plain = get_peft_model(llama(), small_config(init_weights=False)).train()
    saving = copy.deepcopy(plain)
    saving.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    saving.enable_input_require_grads()
    for model in (plain, saving):
        model(tokens(), labels=tokens()).loss.backward()
    expected = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    for name, parameter in saving.named_parameters():
        if "qtha_" in name:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)
            assert parameter.grad.abs().max() > 0


def test_sft_trainer_trains_saves_and_reloads(tmp_path):
    data = Dataset.from_dict(
        {"prompt": [words(k) + " " for k in range(8)], "completion": [words(k + 3) for k in range(8)]}
    )
    arguments = SFTConfig(output_dir=str(tmp_path), max_steps=3, max_length=32, bf16=True, **COMMON)
    config = small_config(task_type="CAUSAL_LM")
    trainer = SFTTrainer(
        model=llama(), args=arguments, train_dataset=data, processing_class=tokenizer(), peft_config=config
    )
    start = trained_state(trainer.model)
    trainer.train()
    assert any(not torch.equal(value, start[name]) for name, value in trained_state(trainer.model).items())
    trainer.save_model(str(tmp_path / "final"))
    loaded = qpeft.load(tmp_path / "final", base_model=llama())
    saved = trained_state(trainer.model)
    assert all(torch.equal(value.float(), saved[name].float()) for name, value in trained_state(loaded).items())
    settings = json.loads((tmp_path / "final" / "adapter_config.json").read_text())
    assert settings["arch"] == "mpo+quantum"


def test_dpo_reference_is_the_adapter_it_started_from(tmp_path):
    model = get_peft_model(llama(), small_config(task_type="CAUSAL_LM", init_weights=False))
    with torch.no_grad():
        expected = model.eval()(tokens()).logits
        with model.disable_adapter():
            assert not torch.allclose(model(tokens()).logits, expected, atol=1e-2)
    data = Dataset.from_dict(
        {
            "prompt": [words(k) for k in range(6)],
            "chosen": [" " + words(k + 1) for k in range(6)],
            "rejected": [" " + words(k + 2) for k in range(6)],
        }
    )
    arguments = DPOConfig(output_dir=str(tmp_path), max_steps=2, save_strategy="no", bf16=False, **COMMON)
    trainer = DPOTrainer(model=model, args=arguments, train_dataset=data, processing_class=tokenizer())
    trainer.train()
    policy = trainer.model.eval()
    with torch.no_grad():
        assert not torch.equal(policy(tokens()).logits, expected)
        policy.set_adapter("ref")
        torch.testing.assert_close(policy(tokens()).logits, expected)


@pytest.mark.parametrize("arch", ["mpo+quantum", "mpo"])
def test_compiled_in_one_graph(arch):
    model = get_peft_model(llama(num_hidden_layers=1), small_config(arch=arch, init_weights=False))
    expected = model(tokens()).logits
    expected.square().mean().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    result = compiled(tokens()).logits
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)
    result.square().mean().backward()
    for name, gradient in gradients.items():
        torch.testing.assert_close(model.get_parameter(name).grad, gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_compiled_by_inductor():
    model = get_peft_model(llama(num_hidden_layers=1), small_config(init_weights=False)).eval()
    with torch.no_grad():
        expected = model(tokens()).logits
        torch.testing.assert_close(torch.compile(model, fullgraph=True)(tokens()).logits, expected)


def _worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    wrapped = DistributedDataParallel(get_peft_model(llama(), small_config(init_weights=False)))
    half = tokens(4)[rank * 2 : rank * 2 + 2]
    wrapped(half, labels=half).loss.backward()
    if rank == 0:
        gradients = {n: p.grad for n, p in wrapped.module.named_parameters() if p.grad is not None}
        torch.save(gradients, f"{folder}/gradients.pt")
    leave()


def test_two_processes_give_the_gradient_of_the_whole_batch(tmp_path):
    _check_two_processes(_worker, tmp_path)


def _check_two_processes(worker, tmp_path) -> None:
    run_on_two_processes(worker, str(tmp_path))
    torch.manual_seed(0)
    model = get_peft_model(llama(), small_config(init_weights=False))
    model(tokens(4), labels=tokens(4)).loss.backward()
    gradients = torch.load(tmp_path / "gradients.pt")
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-4, atol=1e-6)


def _sharded_worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = get_peft_model(llama(), small_config(init_weights=False))
    mesh = init_device_mesh("cpu", (2,))
    for block in model.base_model.model.model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    half = tokens(4)[rank * 2 : rank * 2 + 2]
    model(half, labels=half).loss.backward()
    gradients = {n: p.grad.full_tensor() for n, p in model.named_parameters() if p.grad is not None}
    if rank == 0:
        torch.save(gradients, f"{folder}/gradients.pt")
    leave()


@pytest.mark.slow
def test_sharded_processes_give_the_gradient_of_the_whole_batch(tmp_path):
    _check_two_processes(_sharded_worker, tmp_path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_overfits_a_batch(arch):
    torch.manual_seed(2)
    base = llama()
    with torch.no_grad():
        base.lm_head.weight.mul_(20)  # the head is frozen and starts near zero, where no adapter could move the loss
    model = get_peft_model(base, small_config(arch=arch, r=4, target_modules="all-linear"))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    ids = tokens(2, 6)
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.75 * losses[0]
