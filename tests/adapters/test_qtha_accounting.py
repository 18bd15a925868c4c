"""Parameter counts against the published table, and the description of saved files."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import ARCHITECTURES, llama, small_config
from torch import nn
from transformers import AutoModelForCausalLM, GlmConfig, LlamaConfig, Qwen2Config

from qpeft import QTHAConfig, count_parameters
from qpeft.adapters import describe, parameter_groups
from qpeft.errors import InputError

# Shapes of the published models; vocabulary and feed-forward width do not enter, so they are kept small.
_SMALL = {"vocab_size": 128, "intermediate_size": 128}
QWEN_7B = Qwen2Config(
    hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4, pad_token_id=0, **_SMALL
)
LLAMA_8B = LlamaConfig(
    hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, pad_token_id=0, **_SMALL
)
GLM_9B = GlmConfig(
    hidden_size=4096, num_hidden_layers=40, num_attention_heads=32, num_key_value_heads=2, pad_token_id=0, **_SMALL
)


@pytest.mark.parametrize(
    ("config", "r", "lora", "one_layer", "r_layers"),
    [
        (QWEN_7B, 4, 1_261_568, 569_856, 572_544),
        (QWEN_7B, 8, 2_523_136, 690_816, 703_360),
        (QWEN_7B, 10, 3_153_920, 752_640, 772_800),
        (LLAMA_8B, 8, 3_407_872, 825_344, 839_680),
        (GLM_9B, 8, 4_014_080, 985_600, 1_003_520),
    ],
    ids=["Qwen2.5-7B r4", "Qwen2.5-7B r8", "Qwen2.5-7B r10", "Llama-3-8B r8", "GLM-4-9B r8"],
)
def test_published_table(config, r, lora, one_layer, r_layers):
    for n_layers, expected in ((1, one_layer), (None, r_layers)):
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config)
        model = get_peft_model(base, QTHAConfig(r=r, n_layers=n_layers, target_modules=["q_proj", "v_proj"]))
        count = count_parameters(model)
        assert (count.total, count.lora_equivalent) == (expected, lora)
        assert count.total == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert count.modules == 2 * config.num_hidden_layers
        assert count.angles == 4 * r * (n_layers or r) * count.modules
        assert count.padded == ()


def _operator_size(outputs: list[int], inputs: list[int], bond: int = 8) -> int:
    bonds = [1, bond, bond, bond, 1]
    return sum(o * bonds[k + 1] * bonds[k] * i for k, (o, i) in enumerate(zip(outputs, inputs, strict=True)))


@pytest.mark.parametrize("r", [4, 8, 10])
@pytest.mark.parametrize(
    ("config", "query", "value"),
    [
        (QWEN_7B, [8, 8, 8, 7], [8, 4, 4, 4]),
        (LLAMA_8B, [8, 8, 8, 8], [8, 8, 4, 4]),
        (GLM_9B, [8, 8, 8, 8], [4, 4, 4, 4]),
    ],
    ids=["Qwen2.5-7B", "Llama-3-8B", "GLM-4-9B"],
)
def test_published_formula(config, query, value, r):
    inner = [4, 4, 4, 4]
    expected = 0
    for outputs in (query, value):
        expected += _operator_size(inner, query) + _operator_size(outputs, inner) + 512 * r + 2 * r * r + 4 * r
    with torch.device("meta"):
        shape = {**config.to_dict(), "num_hidden_layers": 1, "layer_types": None}
        base = AutoModelForCausalLM.from_config(type(config)(**shape))
    model = get_peft_model(base, QTHAConfig(r=r, target_modules=["q_proj", "v_proj"]))
    assert count_parameters(model).total == expected


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "BE"])
def test_counts_add_up_to_what_is_trained(arch):
    model = get_peft_model(llama(), small_config(arch=arch, n_classical_last=1))
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters() if p.requires_grad)
    lora = get_peft_model(llama(), LoraConfig(r=3, target_modules=["q_proj", "v_proj"]))
    assert count.lora_equivalent == sum(p.numel() for p in lora.parameters() if p.requires_grad)
    assert count.saved == 1 - count.total / count.lora_equivalent
    described = [line.split("weight[")[1].split("]")[0].split(":") for line in describe(model).splitlines()]
    assert sum(int(stop) - int(start) for start, stop in described) == count.total


def test_a_circuit_without_entanglement_and_a_pointwise_branch_have_the_size_of_the_circuit():
    def count(**kwargs):
        return count_parameters(get_peft_model(llama(), small_config(n_layers=2, **kwargs)))

    full = count()
    assert full.angles == 2 * 2 * 4 * 3 * 2  # layers, modules, 4 r L
    assert count(entanglement="none") == full
    pointwise = count(arch="mpo+pointwise")
    assert (pointwise.angles, pointwise.classical) == (0, full.angles)
    assert pointwise.total == full.total
    assert pointwise.linear == full.linear


def test_description_names_slices_and_padding():
    model = get_peft_model(nn.Sequential(nn.Linear(53, 20)), small_config(target_modules=["0"]))
    encoder = model.base_model.model[0].encoder("default")
    n_mpo = encoder.mpo.n_parameters
    lines = describe(model).splitlines()
    assert lines[0] == f"0.qtha_encoder.weight[0:{n_mpo}] = MPO_A ({n_mpo},)"
    assert lines[1] == f"0.qtha_encoder.weight[{n_mpo}:{n_mpo + 48}] = A (3, 16)"
    assert lines[2] == "0.qtha_circuit.weight[0:12] = angles (12,)"
    assert lines[3] == "0.qtha_decoder.weight[0:9] = W_c (3, 3)"
    assert lines[-1] == "0: input 53 padded to 54"
    padding = count_parameters(model).padded
    assert [(p.module, p.side, p.size, p.padded) for p in padding] == [("0", "input", 53, 54)]


def test_parameter_groups_hold_everything_once():
    model = get_peft_model(llama(), small_config(modules_to_save=["lm_head"]))
    groups = parameter_groups(model, lr=1e-3, angle_lr=1e-1, weight_decay=0.01)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(1e-3, 0.01), (1e-1, 0.0)]
    assert sum(p.numel() for p in groups[1]["params"]) == count_parameters(model).angles
    held = [id(p) for g in groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    optimizer = torch.optim.AdamW(groups)
    assert len(optimizer.param_groups) == 2
    assert len(parameter_groups(get_peft_model(llama(), small_config(arch="mpo")), 1e-3, 1e-1)) == 1
    with pytest.raises(InputError, match="nothing in this model is trained"):
        parameter_groups(model.requires_grad_(False), 1e-3, 1e-1)


def test_unknown_adapter_is_refused():
    model = get_peft_model(llama(), small_config())
    for function in (count_parameters, describe):
        with pytest.raises(InputError, match="no QTHA adapter called 'other'"):
            function(model, "other")
        with pytest.raises(InputError, match="no QTHA adapter called 'default'"):
            function(llama())
