"""Saving, loading in every way, and what is refused."""

import json
import logging

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from tiny_models import ARCHITECTURES, bert, llama, small_config, tokens
from torch import nn
from transformers import AutoModelForCausalLM

import qpeft
from qpeft import QTHAConfig
from qpeft.adapters.registry import QPeftType, register
from qpeft.errors import InputError


def saved_pair(folder, dtype=torch.float32, **kwargs):
    """A base model and an adapter on disk, and the outputs they must give."""
    base = llama(dtype=dtype)
    base.save_pretrained(folder / "base")
    base.name_or_path = str(folder / "base")
    model = get_peft_model(base, small_config(init_weights=False, task_type="CAUSAL_LM", **kwargs)).eval()
    with torch.no_grad():  # values a bfloat16 does not hold
        for name, parameter in model.named_parameters():
            if "qtha_" in name:
                parameter.add_(1e-4)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    with torch.no_grad():
        return model, model(tokens()).logits


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_round_trip_is_bit_equal(tmp_path, arch):
    _, expected = saved_pair(tmp_path, arch=arch)
    for kwargs in ({}, {"low_cpu_mem_usage": True}, {"adapter_name": "another"}):
        model = PeftModel.from_pretrained(llama(), tmp_path / "adapter", **kwargs).eval()
        with torch.no_grad():
            assert torch.equal(model(tokens()).logits, expected), kwargs
        assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_angles_survive_a_bfloat16_base(tmp_path, low_cpu_mem_usage):
    trained, expected = saved_pair(tmp_path, dtype=torch.bfloat16)
    base = llama(dtype=torch.bfloat16)
    model = PeftModel.from_pretrained(base, tmp_path / "adapter", low_cpu_mem_usage=low_cpu_mem_usage).eval()
    loaded = dict(model.named_parameters())
    for name, parameter in trained.named_parameters():
        assert torch.equal(parameter, loaded[name]), name
        assert parameter.dtype == loaded[name].dtype
    with torch.no_grad():
        assert torch.equal(model(tokens()).logits, expected)


def test_file_holds_the_adapter_alone(tmp_path):
    saved_pair(tmp_path)
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(tensors) == 2 * 2 * 3
    assert "base_model.model.model.layers.0.self_attn.q_proj.qtha_circuit.weight" in tensors
    assert all(t.dtype == torch.float32 and t.dim() == 1 for t in tensors.values())
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["peft_type"] == "QTHA"
    assert (settings["library_name"], settings["qpeft_version"]) == ("qpeft", qpeft.__version__)


@pytest.mark.parametrize("arch", ["ABC", "BE", "AB"])
def test_configuration_round_trip(tmp_path, arch):
    config = small_config(arch=arch, n_layers=None, factors={"48": [6, 4, 2, 1]}, layers_to_transform=[0])
    config.save_pretrained(tmp_path)
    again = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(again, QTHAConfig)
    assert again == config


def test_load_gives_the_model_back(tmp_path):
    _, expected = saved_pair(tmp_path)
    for kwargs in ({}, {"base_model": llama()}, {"base_model": tmp_path / "base"}, {"adapter_name": "again"}):
        model = qpeft.load(tmp_path / "adapter", **kwargs)
        assert not model.training
        with torch.no_grad():
            assert torch.equal(model(tokens()).logits, expected), kwargs
    trainable = qpeft.load(tmp_path / "adapter", is_trainable=True)
    assert sum(p.numel() for p in trainable.parameters() if p.requires_grad) > 0
    model = qpeft.load(tmp_path / "adapter", dtype=torch.bfloat16)
    assert {p.dtype for n, p in model.named_parameters() if "qtha_" in n} == {torch.float32}
    assert model.get_base_model().dtype == torch.bfloat16


def test_other_loaders_find_the_method(tmp_path):
    _, expected = saved_pair(tmp_path)
    models = [
        AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter"),
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter"),
    ]
    native = llama()
    native.load_adapter(str(tmp_path / "adapter"))
    for model in [*models, native]:
        with torch.no_grad():
            torch.testing.assert_close(model.eval()(tokens()).logits, expected)


def test_sequence_classification_trains_its_head_and_loads(tmp_path):
    base = bert()
    base.save_pretrained(tmp_path / "base")
    config = small_config(target_modules=None, task_type="SEQ_CLS", init_weights=False)
    model = get_peft_model(base, config)
    assert len(model.targeted_module_names) == 4  # query and value of two layers
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(tokens(), labels=torch.tensor([0, 1, 2])).loss.backward()
    optimizer.step()
    model.eval().save_pretrained(tmp_path / "adapter")
    loaded = qpeft.load(tmp_path / "adapter", num_labels=3)
    with torch.no_grad():
        assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_load_without_a_task_type_asks_the_base_model(tmp_path):
    model, expected = saved_pair(tmp_path)
    model.peft_config["default"].task_type = None
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        assert torch.equal(qpeft.load(tmp_path / "adapter")(tokens()).logits, expected)


def test_load_refuses_with_a_sentence(tmp_path):
    with pytest.raises(InputError, match="there is no folder"):
        qpeft.load(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"holds no adapter_config\.json"):
        qpeft.load(tmp_path)
    get_peft_model(llama(), LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path / "lora")
    with pytest.raises(InputError, match=r"is of type LORA.*peft\.PeftModel\.from_pretrained"):
        qpeft.load(tmp_path / "lora")
    saved_pair(tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "base_model_name_or_path": None}))
    with pytest.raises(InputError, match="does not name its base model: pass base_model="):
        qpeft.load(tmp_path / "adapter")
    file.write_text(json.dumps({**settings, "base_model_name_or_path": str(tmp_path / "moved")}))
    with pytest.raises(InputError, match="pass the folder it is in as base_model="):
        qpeft.load(tmp_path / "adapter")
    file.write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        qpeft.load(tmp_path / "adapter")
    file.write_text(json.dumps(settings))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match="without its weights"):
        qpeft.load(tmp_path / "adapter")


def test_load_without_a_network_says_so(monkeypatch):
    def unreachable(*args, **kwargs):
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("qpeft.adapters.loading.hf_hub_download", unreachable)
    with pytest.raises(InputError, match="neither a folder here nor an adapter that could be fetched"):
        qpeft.load("someone/adapter")


def test_newer_formats_are_refused_and_newer_versions_reported(tmp_path, caplog):
    saved_pair(tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps({**settings, "qpeft_version": "99.1.0"}))
    with caplog.at_level(logging.WARNING):
        qpeft.load(tmp_path / "adapter", base_model=llama())
    assert "made by qpeft 99.1.0, newer than the installed" in caplog.text
    newer = {**settings, "qpeft_version": "99.1.0", "format_version": 2, "entanglers": "new"}
    file.write_text(json.dumps(newer))
    for loader in (qpeft.load, lambda path, base_model: PeftModel.from_pretrained(base_model, path)):
        with (
            pytest.warns(UserWarning, match="entanglers"),
            pytest.raises(InputError, match=r"saved in format 2 by qpeft 99\.1\.0.*pip install -U qpeft"),
        ):
            loader(tmp_path / "adapter", base_model=llama())


def test_registration_is_idempotent_and_refuses_collisions():
    register(QPeftType.QTHA, QTHAConfig, qpeft.QTHAModel)

    class Impostor(qpeft.QTHAModel):
        pass

    with pytest.raises(RuntimeError, match="peft already has a method called QTHA"):
        register(QPeftType.QTHA, QTHAConfig, Impostor)
    assert isinstance(QPeftType.QTHA, str)
    assert hash(QPeftType.QTHA) == hash("QTHA")


def test_adapter_takes_the_base_dtype_only_when_asked():
    base = nn.Sequential(nn.Linear(8, 8)).to(torch.bfloat16)
    model = get_peft_model(base, small_config(target_modules=["0"]), autocast_adapter_dtype=False)
    assert {p.dtype for n, p in model.named_parameters() if "qtha_" in n} == {torch.bfloat16}
    assert model(torch.ones(2, 8, dtype=torch.bfloat16)).dtype == torch.bfloat16
