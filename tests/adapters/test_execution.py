"""A peft model on a virtual chip: generating, training, controls, and everything back in its place afterwards."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import llama
from transformers import Trainer, TrainingArguments

from qpeft import QTHAConfig
from qpeft.adapters.execution import branch_means, quantum_layers, run_on
from qpeft.errors import InputError
from qpeft.execution import OnExecutor
from qpeft.qpu.report import RowCount
from qpeft.qpu.settings import ExecutionSettings, open_executor
from qpeft.simulators import run

PROMPTS = {
    "input_ids": torch.tensor([[0, 0, 5, 6, 7], [8, 9, 10, 11, 12]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
}


class Exact:
    """An executor that computes exactly, and remembers how many rows it was asked."""

    name = "exact"

    def __init__(self, offset=0.0):
        self.offset = offset
        self.asked = []

    def expectations(self, circuit, inputs, weights, purpose="forward"):
        self.asked.append((purpose, len(inputs)))
        return run(circuit, inputs, weights) + self.offset

    def twin(self, circuit, inputs, weights):
        return run(circuit, inputs, weights)


@pytest.fixture
def model():
    config = QTHAConfig(
        r=2,
        bond_dim=2,
        inner_features=8,
        target_modules=["q_proj", "v_proj"],
        init_weights=False,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(llama(), config).eval()


@pytest.fixture
def chip(tmp_path):
    executor = open_executor(ExecutionSettings("virtual-wukong", shots=200), tmp_path / "run")
    yield executor
    executor.close()


def generate(model, **options):
    return model.generate(**PROMPTS, max_new_tokens=3, do_sample=False, eos_token_id=None, **options)


def test_generating_on_a_virtual_chip(model, chip):
    before = generate(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with run_on(model, chip, tokens="last", layers=["layers.1"]) as run:
        found = generate(model)
        report = run.report()
    assert found.shape == before.shape
    assert torch.equal(generate(model), before)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    # two layers, each: two rows of five tokens, then two calls with one token each
    assert len(report.layers) == 2
    assert set(report.layers.values()) == {RowCount(chip=2 + 2 * 2, simulated=8)}
    assert report.rows == {"evaluation": 2 * 6}
    assert report.chip == "wukong-72"
    assert report.circuits == 2 * 6 + 2 * report.regions * len(report.calibrations)
    assert run.share == 6 / 14
    assert all(layer.execution is None for layer in quantum_layers(model).values())


def test_an_exact_executor_changes_nothing(model):
    logits = model(**PROMPTS).logits
    for tokens, rows in (("all", 8), ("last", 2), ("every 3", 2)):
        executor = Exact()
        with run_on(model, executor, tokens=tokens):
            found = model(**PROMPTS).logits
        real = PROMPTS["attention_mask"].bool()
        torch.testing.assert_close(found[real], logits[real], rtol=0, atol=1e-5)
        assert executor.asked == [("forward", rows)] * 4


def test_padding_never_reaches_the_chip_while_text_is_generated(model):
    executor = Exact()
    expected = generate(model)
    with run_on(model, executor):
        assert torch.equal(generate(model), expected)
    assert executor.asked == [("evaluation", 8)] * 4 + [("evaluation", 2)] * 8
    with run_on(model, Exact(), tokens="every 2") as run:
        generate(model, num_beams=2)
    assert all(0.3 < rows.share < 0.6 for rows in run.layers.values())


@pytest.mark.parametrize("gradient", ["twin", "shift", "spsa"])
def test_a_training_step_on_a_virtual_chip(model, chip, gradient):
    angles = [layer.weight for layer in quantum_layers(model).values()]
    before = [weight.detach().clone() for weight in angles]
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    with run_on(model, chip, gradient=gradient, tokens="every 2", layers=["*layers.0.*q_proj*"]) as run:
        for _ in range(2):  # gradients accumulate
            model(**PROMPTS, labels=PROMPTS["input_ids"]).loss.backward()
        optimiser.step()
    assert all(not torch.equal(weight, old) for weight, old in zip(angles, before, strict=True))
    assert all(weight.isfinite().all() for weight in angles)
    rows = run.report().rows
    assert rows["forward"] == 6
    assert rows.get("gradient", 0) == {"twin": 0, "shift": 6 * 28, "spsa": 6 * 2}[gradient]


def test_gradients_on_an_exact_executor_are_those_of_the_simulator(model):
    parameters = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(model(**PROMPTS, labels=PROMPTS["input_ids"]).loss, parameters)
    for gradient in ("twin", "shift"):
        with run_on(model, Exact(), gradient=gradient, tokens="every 2"):
            found = torch.autograd.grad(model(**PROMPTS, labels=PROMPTS["input_ids"]).loss, parameters)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


def test_trainer_runs_on_an_executor(model, tmp_path):
    data = [{"input_ids": ids, "labels": ids} for ids in PROMPTS["input_ids"].tolist()] * 4
    executor = Exact()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, per_device_train_batch_size=2, gradient_accumulation_steps=2,
        report_to=[], use_cpu=True, save_strategy="steps", save_steps=2, disable_tqdm=True,
    )  # fmt: skip
    with run_on(model, executor, tokens="last", layers=["layers.1"]):
        Trainer(model, arguments, train_dataset=data).train()
    assert executor.asked == [("forward", 2)] * 2 * 4
    assert (tmp_path / "checkpoint-2" / "adapter_model.safetensors").exists()


def test_layers_are_chosen_by_name(model):
    every = quantum_layers(model)
    assert len(every) == 4
    assert len(quantum_layers(model, ["q_proj"])) == 2
    assert len(quantum_layers(model, ["layers.0", "layers.1.self_attn.v_proj"])) == 3
    assert len(quantum_layers(model, "*v_proj*")) == 2
    with pytest.raises(InputError, match=r"no circuit matches 'layers.7'"):
        quantum_layers(model, ["layers.7"])
    with pytest.raises(InputError, match="the model has no circuits"):
        quantum_layers(torch.nn.Linear(2, 2))


def test_branch_off_and_branch_mean(model):
    outputs = {}

    def keep(name):
        def hook(layer, inputs, result):
            outputs[name] = result

        return hook

    for name, layer in quantum_layers(model).items():
        layer.register_forward_hook(keep(name))
    with run_on(model, branch="off"):
        model(**PROMPTS)
    assert all((q == 0).all() for q in outputs.values())
    real = PROMPTS["attention_mask"].bool()
    model(**PROMPTS)
    first = next(iter(outputs))
    expected = {name: q[real].mean(0) for name, q in outputs.items()}
    with run_on(model, branch="mean", reference=PROMPTS) as run:
        model(**PROMPTS)
    torch.testing.assert_close(outputs[first], expected[first].expand(2, 5, 2))
    assert run.report().executor == "constant"
    assert run.share == 0
    halves = [{key: value[i : i + 1] for key, value in PROMPTS.items()} for i in range(2)]
    means = branch_means(model, halves, quantum_layers(model))
    for name, mean in means.items():
        torch.testing.assert_close(mean, expected[name])
    empty = {**PROMPTS, "attention_mask": torch.zeros(2, 5, dtype=torch.long)}
    with pytest.raises(InputError, match="no token that reaches"):
        run_on(model, branch="mean", reference=empty)


def test_runs_nest_and_end_once(model):
    outer = run_on(model, Exact())
    with run_on(model, Exact(offset=1.0), layers=["layers.0"]):
        kinds = [layer.execution.executor.offset for layer in quantum_layers(model).values()]
        assert kinds == [1.0, 1.0, 0.0, 0.0]
    assert all(isinstance(layer.execution, OnExecutor) for layer in quantum_layers(model).values())
    outer.restore()
    outer.restore()
    assert all(layer.execution is None for layer in quantum_layers(model).values())
    assert not any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(ZeroDivisionError), run_on(model, Exact()):
        raise ZeroDivisionError
    assert all(layer.execution is None for layer in quantum_layers(model).values())


def test_what_does_not_go_together_is_one_sentence(model):
    for options, words in (
        ({}, "one of the two"),
        ({"executor": Exact(), "branch": "off"}, "one of the two"),
        ({"branch": "on"}, "unknown branch 'on'; available: off, mean"),
        ({"branch": "mean"}, "needs reference="),
        ({"executor": Exact(), "reference": PROMPTS}, "nothing else takes it"),
        ({"executor": Exact(), "tokens": "first"}, "tokens must be"),
        ({"executor": Exact(), "gradient": "adjoint"}, "unknown gradient rule 'adjoint'"),
        ({"executor": Exact(), "layers": ["mlp"]}, "no circuit matches 'mlp'"),
    ):
        with pytest.raises(InputError, match=words):
            run_on(model, **options)
    assert all(layer.execution is None for layer in quantum_layers(model).values())


def test_compiled_models_and_checkpointing_are_refused(model):
    with pytest.raises(InputError, match=r"use the model before torch.compile"):
        run_on(torch.compile(model, backend="eager"), Exact())
    model.train()
    model.gradient_checkpointing_enable()
    with run_on(model, Exact()), pytest.raises(InputError, match="runs every circuit of the forward pass twice"):
        model(**PROMPTS)
