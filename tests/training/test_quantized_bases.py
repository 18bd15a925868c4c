"""Bases in 8 and 4 bits: as they were at the start, trained, measured and gone on with as any other."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig

from qpeft import QTHAConfig
from qpeft.adapters.qtha.layer import QTHALinear
from qpeft.errors import InputError, MissingDependencyError
from qpeft.models import load_model
from qpeft.training import RunFolder, footprint, make_recipe, train
from qpeft.training.run_folder import read_metrics
from qpeft.training.target import open_target
from tiny_base import recipe_values, save_llama

KINDS = ("8bit", "4bit")
needs_bitsandbytes = pytest.mark.skipif(
    not __import__("importlib.util").util.find_spec("bitsandbytes"), reason="bitsandbytes"
)
IDS = torch.randint(4, 200, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Wide enough that blocks of 64 weights do not cross rows."""
    folder = tmp_path_factory.mktemp("wide") / "llama"
    return save_llama(folder, hidden_size=128, intermediate_size=192)


def adapted(base, kind, **changes):
    torch.manual_seed(0)
    model = load_model(str(base), dtype="float32", device="cpu", quantization=kind)
    config = QTHAConfig(r=2, bond_dim=2, inner_features=8, target_modules=["q_proj", "v_proj"], **changes)
    return get_peft_model(model, config)


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("passed_before", [False, True], ids=["fresh", "after a pass without gradients"])
def test_an_adapter_starts_as_nothing_and_has_gradients(base, kind, passed_before):
    plain = load_model(str(base), dtype="float32", device="cpu")(IDS).logits
    quantised = load_model(str(base), dtype="float32", device="cpu", quantization=kind)
    with torch.no_grad():
        before = quantised(IDS).logits
    assert 0 < (before - plain).abs().max() < (0.3 if kind == "8bit" else 2.0)
    model = adapted(base, kind)
    with torch.no_grad():
        assert torch.equal(model(IDS).logits, before)
    model = adapted(base, kind, init_weights=False)
    if passed_before:
        model.eval()
        with torch.no_grad():
            model(IDS)
    model.train()
    model(IDS, labels=IDS).loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients.values())


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_linear_adapter_merges_to_within_the_rounding_of_the_base(base, kind):
    model = adapted(base, kind, arch="mpo", init_weights=False, alpha=8)
    layer = next(module for module in model.modules() if isinstance(module, QTHALinear))
    weight = layer.get_base_weight().float()
    wanted = weight + layer.get_delta_weight("default")
    assert (wanted - weight).abs().max() > 1e-3
    layer.merge()
    error = (layer.get_base_weight().float() - wanted).abs().max()
    assert error < (0.01 if kind == "8bit" else 0.2) * wanted.abs().max()


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_learns_and_is_opened_on_its_own_base(base, tmp_path, kind):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i}: Say it.", "completion": "aaaa"}) + "\n" for i in range(30)))
    adapter = {"method": "qtha", "r": 4, "bond_dim": 4, "inner_features": 16, "alpha": 64,
               "target_modules": ["q_proj", "v_proj", "o_proj"]}  # fmt: skip
    values = recipe_values(
        base, tmp_path / "run", adapter=adapter,
        data={"train": str(data), "max_length": 100, "validation_fraction": 0.2}, training__learning_rate=3e-2,
        training__max_steps=8, training__per_device_train_batch_size=8, model__quantization=kind,
    )  # fmt: skip
    train(make_recipe(values))
    losses = [line["loss"] for line in read_metrics(tmp_path / "run/metrics.jsonl") if "loss" in line]
    assert losses[-1] < 0.85 * losses[0]
    assert losses[-1] < losses[3]  # it goes on after the validation, which passes without gradients
    opened = open_target(str(tmp_path / "run"), device="cpu").model
    assert opened.get_base_model().is_quantized
    trained = [p.dtype for name, p in opened.named_parameters() if "qtha_" in name]
    assert set(trained) == {torch.float32}
    whole = open_target(str(tmp_path / "run"), device="cpu", quantized=False).model
    assert not getattr(whole.get_base_model(), "is_quantized", False)
    with pytest.raises(InputError, match=r"model\.quantization"):
        train(make_recipe({**values, "model": {**values["model"], "quantization": None}}), resume=True)
    assert RunFolder(tmp_path / "run").last_checkpoint() is not None


def test_what_cannot_be_quantised_is_told(base, monkeypatch):
    with pytest.raises(InputError, match="8bit, 4bit"):
        load_model(str(base), device="cpu", quantization="3bit")
    with pytest.raises(InputError, match="for task causal-lm"):
        load_model(str(base), device="cpu", quantization="8bit", task="sequence-classification")
    with pytest.raises(InputError, match=r"model\.quantization cannot be '2bit'"):
        make_recipe({"output": "x", "model": {"quantization": "2bit"}})
    monkeypatch.setattr("qpeft.models.quantization.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install bitsandbytes"):
        load_model(str(base), device="cpu", quantization="4bit")


@needs_bitsandbytes
@pytest.mark.parametrize("kind", KINDS)
def test_estimates_know_the_bytes(base, kind):
    config = LlamaConfig.from_pretrained(base)
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    sizes = footprint.Sizes(config, adapter, torch.float32, 16, False, libraries=0.0, quantization=kind)
    model = load_model(str(base), dtype="float32", device="cpu", quantization=kind)
    stored = sum(p.numel() * p.element_size() for p in model.parameters())
    if kind == "4bit":  # its scales are beside the parameters
        stored += sum(m.weight.numel() / 64 * (1 + 4 / 256) for m in model.modules() if hasattr(m, "quant_state"))
    assert sizes.weights == pytest.approx(stored, rel=0.01)
    assert sizes.footprint(16).activations >= 128 * 192 * 4
