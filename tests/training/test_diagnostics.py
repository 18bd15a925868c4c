"""The diagnostics of a run: the numbers are right, the run is the same as without them, and no hook stays behind."""

import json

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from qpeft import QTHAConfig
from qpeft.adapters.qtha import QTHALayer
from qpeft.errors import InputError
from qpeft.gradients import shift_gradient
from qpeft.training import RunFolder, dry_run, make_recipe, train
from qpeft.training.diagnostics import DiagnosticsCallback
from qpeft.training.diagnostics_measures import linear_fit_r2
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values

TIMES = ("seconds", "tokens_per_second", "eval_runtime", "eval_samples_per_second", "eval_steps_per_second")
QTHA = {"r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["q_proj", "v_proj"]}


def build(llama_base, config=None, **changes):
    """A tiny model with an adapter that does not start at zero."""
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(llama_base)
    return get_peft_model(base, config or QTHAConfig(**{**QTHA, "init_weights": False, **changes}))


def rows(n=8, length=20):
    tokens = torch.randint(0, 200, (n, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(tokens)
    mask[::2, -5:] = 0
    return Dataset.from_dict(
        {"input_ids": tokens.tolist(), "attention_mask": mask.tolist(), "labels": tokens.tolist()}
    ).with_format("torch")


def fit(model, folder, callbacks=(), **changes):
    settings = {
        "output_dir": str(folder), "max_steps": 2, "per_device_train_batch_size": 4, "report_to": [],
        "disable_tqdm": True, "use_cpu": True, "save_strategy": "no", "learning_rate": 1e-2, "max_grad_norm": 1e9,
    }  # fmt: skip
    arguments = TrainingArguments(**{**settings, **changes})
    trainer = Trainer(model=model, args=arguments, train_dataset=rows(), callbacks=list(callbacks))
    trainer.train()
    return trainer


def hooks_of(model):
    return [
        (name, hooks)
        for name, module in model.named_modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
        if hooks
    ]


class Whole(TrainerCallback):
    """Everything that reaches the circuits in the one step of a run, with the weights of that step."""

    def __init__(self, model):
        self.model, self.seen = model, {}
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, QTHALayer)}
        self.layers = layers
        model.get_base_model().register_forward_pre_hook(self._see_mask, with_kwargs=True)
        for name, layer in layers.items():
            layer.qtha_encoder["default"].register_forward_hook(self._keeper(name, "z"))
            layer.qtha_circuit["default"].register_forward_hook(self._keeper(name, "q"))

    def _see_mask(self, module, args, kwargs):
        self.mask = kwargs["attention_mask"]

    def _keeper(self, name, what):
        def keep(module, inputs, output):
            if module.training:
                self.seen[name, what] = output.detach().clone()

        return keep

    def on_pre_optimizer_step(self, args, state, control, **_):
        self.angles = {n: x.qtha_circuit["default"].weight.detach().clone() for n, x in self.layers.items()}
        self.gradients = {n: x.qtha_circuit["default"].weight.grad.clone() for n, x in self.layers.items()}
        self.decoders = {n: self._decoder(layer) for n, layer in self.layers.items()}

    @torch.no_grad()
    def _decoder(self, layer):
        decoder = layer.qtha_decoder["default"]
        parts = {name: part.clone() for name, part in decoder.parts().items()}
        return parts["W_c"], parts["W_q"], decoder.expansion().clone() * layer.scaling["default"]


def test_every_measure_is_the_one_computed_by_hand(llama_base, tmp_path):
    """One step over all tokens, whose activations are kept whole by hooks of the test's own."""
    model = build(llama_base)
    whole = Whole(model)
    callback = DiagnosticsCallback(every=1, tokens=1000, path=tmp_path / "lines.jsonl")
    fit(model, tmp_path, [callback, whole], max_steps=1, per_device_train_batch_size=8)
    mask = whole.mask.bool()
    (line,) = callback.records
    assert json.loads((tmp_path / "lines.jsonl").read_text()) == line
    found = line["diagnostics"]
    assert (line["step"], found["layers"], found["n_qubits"]) == (1, ["0", "1"], 2)
    assert found["tokens"] == int(mask.sum()) == 8 * 20 - 4 * 5
    for place in range(2):
        names = [name for name in whole.layers if f".layers.{place}." in name]
        assert len(names) == 2
        expected = dict.fromkeys(("share", "r2", "rank", "loss", "circuit"), 0.0)
        for name in names:
            z, q = whole.seen[name, "z"][mask], whole.seen[name, "q"][mask]
            w_c, w_q, expansion = whole.decoders[name]
            linear = functional.linear(functional.linear(z, w_c), expansion).double()  # (tokens, d_out)
            circuit = functional.linear(functional.linear(q, w_q), expansion).double()
            expected["share"] += float(circuit.norm() / (circuit.norm() + linear.norm())) / 2
            sigma = torch.linalg.svdvals(linear + circuit)[:2]
            p = sigma / sigma.sum()
            expected["rank"] += float(torch.exp(-(p * p.log()).sum())) / 2
            expected["r2"] += linear_fit_r2(z, q) / 2
            expected["loss"] += float(whole.gradients[name].double().var(correction=0)) / 2
            few = z[:: len(z) // 16][:16].double()
            layer = whole.layers[name].qtha_circuit["default"]
            slopes = shift_gradient(layer.circuit, few, whole.angles[name]).weights
            expected["circuit"] += float(slopes.var(correction=0)) / 2
        assert found["circuit_share"][place] == pytest.approx(expected["share"], rel=1e-5)
        assert found["circuit_r2"][place] == pytest.approx(expected["r2"], rel=1e-6)
        assert found["effective_rank"][place] == pytest.approx(expected["rank"], rel=1e-5)
        assert found["loss_gradient_variance"][place] == pytest.approx(expected["loss"], rel=1e-6)
        assert found["circuit_gradient_variance"][place] == pytest.approx(expected["circuit"], rel=1e-6)
        assert 1 <= found["effective_rank"][place] <= 2
        assert found["circuit_r2"][place] < 1


def losses(trainer):
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_is_the_same_bit_for_bit_and_no_hook_stays(llama_base, tmp_path, checkpointing):
    outcomes, callback = [], DiagnosticsCallback(every=2, tokens=60)
    for callbacks in ([], [callback]):
        model = build(llama_base, dropout=0.2)
        trainer = fit(
            model, tmp_path, callbacks, max_steps=3, gradient_accumulation_steps=2, per_device_train_batch_size=2,
            logging_steps=1, gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": False} if checkpointing else None,
        )  # fmt: skip
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        outcomes.append((losses(trainer), [name for name, _ in hooks_of(model)], weights))
    (before, others, weights), (after, hooks, same) = outcomes
    assert before == after
    assert hooks == others
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    assert [record["step"] for record in callback.records] == [2]
    # 30 of each micro-batch, once, though checkpointed layers run twice
    assert {record["diagnostics"]["tokens"] for record in callback.records} == {60}


def test_hooks_go_when_a_step_fails(llama_base, tmp_path):
    model, callback = build(llama_base), DiagnosticsCallback(every=1)

    class Fail(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **_):
            raise RuntimeError("a step failed")

    with pytest.raises(RuntimeError):
        fit(model, tmp_path, [Fail(), callback])
    callback.close()
    assert not hooks_of(model)


@pytest.mark.parametrize("arch", ["mpo", "linear"])
def test_an_adapter_without_circuit_has_the_rank_of_its_matrix_alone(llama_base, tmp_path, arch):
    model, callback = build(llama_base, arch=arch), DiagnosticsCallback(every=1)
    expected = [ranks_of(model, place) for place in range(2)]
    fit(model, tmp_path, [callback], max_steps=1)
    found = callback.records[0]["diagnostics"]
    assert set(found) == {"layers", "tokens", "rank", "effective_rank"}
    assert found["effective_rank"] == pytest.approx(expected, rel=1e-5)


def ranks_of(model, place):
    """Mean effective rank of the matrices that a decoder layer's adapters add, from the whole matrices."""
    ranks = []
    for name, layer in model.named_modules():
        if f".layers.{place}." in name and hasattr(layer, "get_delta_weight"):
            sigma = torch.linalg.svdvals(layer.get_delta_weight("default").detach().double())[:2]
            p = sigma / sigma.sum()
            ranks.append(float(torch.exp(-(p * p.log()).sum())))
    assert len(ranks) == 2
    return sum(ranks) / 2


def test_lora_has_the_rank_of_its_matrix(llama_base, tmp_path):
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model, callback = build(llama_base, config), DiagnosticsCallback(every=1)
    expected = [ranks_of(model, place) for place in range(2)]
    fit(model, tmp_path, [callback], max_steps=1)
    assert callback.records[0]["diagnostics"]["effective_rank"] == pytest.approx(expected, rel=1e-5)


def test_what_is_not_defined_is_absent_or_null(llama_base, tmp_path):
    cases = {
        "product": ({"fusion": "product"}, "circuit_share"),
        "classical": ({"arch": "classical"}, "circuit_r2"),
    }
    for changes, absent in cases.values():
        callback = DiagnosticsCallback(every=1)
        fit(build(llama_base, **changes), tmp_path, [callback], max_steps=1)
        found = callback.records[0]["diagnostics"]
        assert absent not in found
        assert all(1 <= rank <= 2 for rank in found["effective_rank"])
    callback = DiagnosticsCallback(every=1)
    fit(build(llama_base, init_weights=True, n_classical_first=1), tmp_path, [callback], max_steps=1)
    found = callback.records[0]["diagnostics"]
    assert found["circuit_share"] == [None, None]  # an update of zero has no shares
    assert found["circuit_r2"][0] is None
    assert found["circuit_r2"][1] is not None
    only = DiagnosticsCallback(every=1)
    fit(build(llama_base, arch="quantum_only"), tmp_path, [only], max_steps=1)
    assert only.records[0]["diagnostics"]["circuit_share"] == [1.0, 1.0]


def test_models_and_settings_that_cannot_be_measured_are_refused(llama_base, tmp_path):
    for wrong in ({"every": 0}, {"every": 1.5}, {"every": 1, "tokens": 2}):
        with pytest.raises(InputError, match="whole number"):
            DiagnosticsCallback(**wrong)
    base = AutoModelForCausalLM.from_pretrained(llama_base)
    with pytest.raises(InputError, match="leave diagnostics out"):
        fit(base, tmp_path, [DiagnosticsCallback(every=1)])
    with pytest.raises(InputError, match="torch_compile"):
        fit(build(llama_base), tmp_path, [DiagnosticsCallback(every=1)], torch_compile=True)
    ia3 = {"method": "ia3", "target_modules": ["q_proj"], "feedforward_modules": []}
    with pytest.raises(InputError, match="leave diagnostics out"):
        dry_run(make_recipe(recipe_values(llama_base, tmp_path / "run", adapter=ia3, training__diagnostics_steps=1)))


def lines_of(folder):
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(RunFolder(folder).metrics)]


def test_a_recipe_writes_lines_beside_the_same_losses_and_resumes_to_them(llama_base, tmp_path):
    changes = {"training__gradient_accumulation_steps": 2, "training__per_device_train_batch_size": 2,
               "training__max_steps": 4, "training__eval_steps": None}  # fmt: skip
    plain = recipe_values(llama_base, tmp_path / "plain", **changes)
    measured = recipe_values(llama_base, tmp_path / "measured", training__diagnostics_steps=2, **changes)
    train(make_recipe(plain))
    train(make_recipe(measured))
    with_them = lines_of(tmp_path / "measured")
    assert [line for line in with_them if "diagnostics" not in line] == lines_of(tmp_path / "plain")
    assert [line["step"] for line in with_them if "diagnostics" in line] == [2, 4]
    adapters = [tmp_path / name / "adapter" / "adapter_model.safetensors" for name in ("plain", "measured")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 3:
                raise RuntimeError("killed")

    broken = make_recipe({**measured, "output": str(tmp_path / "broken")})
    with pytest.raises(RuntimeError):
        train(broken, callbacks=[Break()])
    train(broken, resume=True)
    assert lines_of(tmp_path / "broken") == with_them
