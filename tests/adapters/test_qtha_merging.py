"""Merging and exporting what is a fixed matrix, and refusing what is not."""

import json

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import save_as_lora as peft_save_as_lora
from peft.utils.quantization_utils import ForwardOnlyQuantizationBackend
from tiny_models import ARCHITECTURES, LINEAR, gpt2, llama, small_config, tokens

from qpeft.errors import InputError, MergeError
from qpeft.export import save_as_lora


def outputs(model):
    with torch.no_grad():
        return model.eval()(tokens()).logits


@pytest.mark.parametrize("arch", LINEAR)
@pytest.mark.parametrize("base", [llama, gpt2])
def test_merge_and_unmerge(arch, base):
    plain = outputs(base())
    model = get_peft_model(base(), small_config(arch=arch, target_modules=None, init_weights=False))
    adapted = outputs(model)
    weights = {n: p.clone() for n, p in model.named_parameters()}
    model.merge_adapter()
    torch.testing.assert_close(outputs(model), adapted, rtol=1e-4, atol=1e-4)
    model.unmerge_adapter()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter, weights[name], rtol=0, atol=1e-4)
    merged = model.merge_and_unload(safe_merge=True)
    torch.testing.assert_close(outputs(merged), adapted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(adapted, plain, atol=1e-2)
    assert not any("qtha" in name for name, _ in merged.named_modules())


def test_merge_into_bfloat16_rounds_once():
    model = get_peft_model(llama(dtype=torch.bfloat16), small_config(arch="mpo", init_weights=False))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.get_delta_weight("default").dtype == torch.float32
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default")
    model.merge_adapter()
    assert torch.equal(layer.base_layer.weight, exact.to(torch.bfloat16))


def test_safe_merge_leaves_the_weight_alone():
    model = get_peft_model(llama(), small_config(arch="mpo", init_weights=False))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    before = layer.base_layer.weight.clone()
    layer.qtha_encoder["default"].weight.data[-1] = float("nan")
    with pytest.raises(ValueError, match="The adapter default seems to be broken"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(layer.base_layer.weight, before)


@pytest.mark.parametrize("arch", [arch for arch in ARCHITECTURES if arch not in LINEAR])
def test_circuits_refuse_to_merge_and_say_what_to_do(arch, tmp_path):
    model = get_peft_model(llama(), small_config(arch=arch, init_weights=False))
    expected = outputs(model)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    actions = [
        model.merge_adapter,
        model.merge_and_unload,
        layer.merge,
        lambda: layer.get_delta_weight("default"),
        lambda: save_as_lora(model, tmp_path / "lora"),
    ]
    for action in actions:
        with pytest.raises(MergeError, match=r'keep the adapter .* train with arch="mpo", or distil it') as error:
            action()
        assert isinstance(error.value, NotImplementedError)
    assert not model.supports_lora_conversion()
    assert not (tmp_path / "lora").exists()
    assert torch.equal(outputs(model), expected)


def test_partly_classical_models_refuse_before_anything_is_merged():
    model = get_peft_model(llama(), small_config(init_weights=False, n_classical_first=1))
    with pytest.raises(MergeError):
        model.merge_adapter()
    assert not any(getattr(module, "merged", False) for module in model.modules())


@pytest.mark.parametrize("arch", LINEAR)
@pytest.mark.parametrize(
    "targets", [{"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ".*q_proj"}, {"layers_to_transform": [1]}]
)
def test_export_to_lora_is_exact_and_needs_no_import(arch, targets, tmp_path):
    config = small_config(arch=arch, init_weights=False, task_type="CAUSAL_LM", alpha=5, **targets)
    model = get_peft_model(llama(), config)
    expected = outputs(model)
    save_as_lora(model, tmp_path)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 3, 3)
    assert settings["rank_pattern"] == settings["alpha_pattern"] == {}
    lora = PeftModel.from_pretrained(llama(), tmp_path)
    torch.testing.assert_close(outputs(lora), expected, rtol=1e-4, atol=1e-5)
    assert {p.dtype for n, p in lora.named_parameters() if "lora_" in n} == {torch.float32}


def test_export_from_gpt2_and_with_a_module_trained_whole(tmp_path):
    config = small_config(arch="mpo", target_modules=None, init_weights=False, modules_to_save=["lm_head"])
    model = get_peft_model(gpt2(), config)
    model.base_model.model.lm_head.modules_to_save["default"].weight.data.mul_(1.5)
    expected = outputs(model)
    save_as_lora(model, tmp_path)
    lora = PeftModel.from_pretrained(gpt2(), tmp_path)
    torch.testing.assert_close(outputs(lora), expected, rtol=1e-4, atol=1e-5)


def test_peft_converts_linear_architectures_too(tmp_path):
    model = get_peft_model(llama(), small_config(arch="mpo", init_weights=False))
    assert model.supports_lora_conversion()
    expected = outputs(model)
    peft_save_as_lora(tmp_path, model, rank=3)
    torch.testing.assert_close(outputs(PeftModel.from_pretrained(llama(), tmp_path)), expected, rtol=1e-3, atol=1e-4)


def test_export_of_an_unknown_adapter_is_refused(tmp_path):
    with pytest.raises(InputError, match="no QTHA adapter called 'other'"):
        save_as_lora(get_peft_model(llama(), small_config(arch="mpo")), tmp_path, "other")


def test_weights_that_cannot_be_written_back_refuse_to_merge():
    model = get_peft_model(llama(), small_config(arch="mpo"))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    layer.quantization_backend = ForwardOnlyQuantizationBackend("gptq")
    with pytest.raises(MergeError, match="cannot be merged into gptq weights"):
        layer.merge()
    assert outputs(model).shape == (3, 9, 64)
