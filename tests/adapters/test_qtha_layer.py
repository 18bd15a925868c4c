"""One adapted layer: its equation, its start, and what it refuses."""

import math

import numpy as np
import pytest
import torch
from peft import get_peft_model
from tiny_models import ARCHITECTURES, bert, gpt2, llama, slow_circuit, small_config, tokens
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from qpeft import QTHAConfig
from qpeft.adapters.qtha import QTHALinear
from qpeft.circuits import qtha_block
from qpeft.errors import InputError


def adapted_linear(n_in: int, n_out: int, **kwargs) -> tuple[nn.Module, QTHALinear]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(n_in, n_out))
    config = small_config(target_modules=["0"], init_weights=False, **kwargs)
    layer = get_peft_model(model, config).base_model.model[0]
    return layer.base_layer, layer


def explicit_output(layer: QTHALinear, config: QTHAConfig, x: torch.Tensor) -> torch.Tensor:
    """The equations of the method with dense matrices and the slow circuit, in float64."""
    arch = layer.architectures["default"]
    encoder, decoder = layer.encoder("default"), layer.decoder("default")
    parts = {name: part.double().detach() for name, part in {**encoder.parts(), **decoder.parts()}.items()}
    compress, expand = parts["A"], parts["B"]
    if arch.tensor_network:
        compress = compress @ encoder.mpo.dense(parts["MPO_A"])
        expand = decoder.mpo.dense(parts["MPO_B"]) @ expand
    z = x.double() @ compress.T
    scaled = {"none": z, "tanh": z.tanh(), "pi_tanh": math.pi * z.tanh()}[config.input_scale]
    if arch.branch == "circuit":
        angles = layer.qtha_circuit["default"].weight.detach().double().numpy()
        older = config.gate_order == "older"
        entangled = config.entanglement == "ring"
        rows = [slow_circuit(row, angles, config.depth, older, entangled) for row in scaled.numpy()]
        u = torch.from_numpy(np.stack(rows)) @ parts["W_q"].T
        if arch.linear:
            linear = z @ parts["W_c"].T
            u = linear * u if config.fusion == "product" else linear + u
    elif arch.branch == "classical":
        p = {k: v.double().detach() for k, v in layer.qtha_classical["default"].parts().items()}
        q = z
        for k in range(1, config.classical_layers + 1):
            q = (nn.functional.silu(q) if k > 1 else q) @ p[f"layer{k}.matrix"].T + p[f"layer{k}.bias"]
        u = z @ parts["W_c"].T + q @ parts["W_q"].T
    elif arch.branch == "pointwise":
        function = {"silu": nn.functional.silu, "sin": torch.sin, "tanh": torch.tanh}[config.pointwise]
        q = scaled
        for part in layer.qtha_classical["default"].weight.detach().double().view(config.depth, 4, config.r):
            a, b, c, d = part
            q = a * function(b * q + c) + d
        linear = z @ parts["W_c"].T
        u = linear * (q @ parts["W_q"].T) if config.fusion == "product" else linear + q @ parts["W_q"].T
    else:
        u = z @ parts["W_c"].T
    return config.scaling * u @ expand.T


@pytest.mark.parametrize(
    "kwargs",
    [
        *({"arch": arch} for arch in ARCHITECTURES),
        {"arch": "ABC", "n_layers": None},
        {"arch": "BC", "n_layers": 2, "gate_order": "older", "input_scale": "tanh"},
        {"arch": "ABC", "fusion": "product", "input_scale": "pi*tanh", "alpha": 0.5},
        {"arch": "BF"},
        {"arch": "ABC", "entanglement": "none", "n_layers": 2},
        {"arch": "mpo+classical", "classical_layers": 3},
        {"arch": "mpo+pointwise", "pointwise": "sin", "n_layers": 3, "input_scale": "pi_tanh"},
        {"arch": "pointwise", "pointwise": "tanh", "n_layers": None, "fusion": "product"},
        {"arch": "AB", "factors": {"48": [6, 4, 2, 2], "16": [4, 4, 2, 1]}},
    ],
    ids=str,
)
@pytest.mark.parametrize(("n_in", "n_out"), [(48, 20), (53, 67)], ids=["even", "padded"])
def test_output_is_the_equation(kwargs, n_in, n_out):
    if n_in == 53 and "factors" in kwargs:
        kwargs = {**kwargs, "factors": {"53": [8, 7, 1, 1], "16": [4, 4, 2, 1]}}
    base, layer = adapted_linear(n_in, n_out, **kwargs)
    config = small_config(**kwargs)
    x = torch.randn(2, 4, n_in) * 0.3
    expected = explicit_output(layer, config, x.reshape(8, n_in)).reshape(2, 4, n_out)
    added = layer(x) - base(x)
    torch.testing.assert_close(added.double(), expected, rtol=2e-4, atol=2e-4)
    assert expected.abs().max() > 1e-2


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "BF"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_start_is_bit_exact_and_learns(arch, dtype):
    base = llama(dtype=dtype)
    ids = tokens()
    with torch.no_grad():
        expected = base(ids).logits
        model = get_peft_model(base, small_config(arch=arch))
        assert torch.equal(model(ids).logits, expected)
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if "qtha_" in n)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        if name in before:
            assert not torch.equal(parameter, before[name]), f"{name} does not learn"
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, expected)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, expected)


def test_storage_is_one_flat_parameter_a_leaf():
    model = get_peft_model(llama(), small_config())
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    for name in ("qtha_encoder", "qtha_circuit", "qtha_decoder"):
        leaf = getattr(layer, name)["default"]
        assert not list(leaf.children())
        assert [(n, p.dim(), p.dtype) for n, p in leaf.named_parameters()] == [("weight", 1, torch.float32)]
        assert not list(leaf.buffers())
    assert layer.qtha_circuit["default"].weight.abs().max() <= math.pi


def test_initialisers_are_the_published_ones():
    torch.manual_seed(0)
    layer = adapted_linear(512, 512, arch="mpo", r=16, inner_features=256, bond_dim=8)[1]
    encoder, decoder = layer.encoder("default").parts(), layer.decoder("default").parts()
    for part in (encoder["A"], decoder["B"], decoder["W_c"]):  # Kaiming uniform with a = 0: |w| < sqrt(6 / fan_in)
        limit = (6 / part.shape[1]) ** 0.5
        assert limit * 0.95 < part.abs().max() <= limit
    model = get_peft_model(nn.Sequential(nn.Linear(64, 64)), small_config(target_modules=["0"], arch="ABC"))
    leaf = model.base_model.model[0].decoder("default")
    cores = leaf.mpo.cores(leaf.parts()["MPO_B"])
    assert torch.count_nonzero(cores[-1]) == 0
    assert all(torch.count_nonzero(core) == core.numel() for core in cores[:-1])
    linear = get_peft_model(nn.Sequential(nn.Linear(64, 64)), small_config(target_modules=["0"], arch="BC"))
    assert torch.count_nonzero(linear.base_model.model[0].decoder("default").parts()["B"]) == 0


def test_a_pointwise_branch_starts_as_its_function_with_the_size_of_the_circuit():
    layer = get_peft_model(
        nn.Sequential(nn.Linear(12, 12)), small_config(target_modules=["0"], arch="pointwise", n_layers=2)
    ).base_model.model[0]
    branch, z = layer.qtha_classical["default"], torch.randn(5, 3)
    torch.testing.assert_close(branch(z), nn.functional.silu(nn.functional.silu(z)))
    assert branch.weight.numel() == qtha_block.shape(3, 2)[0]
    assert branch(z.bfloat16()).dtype == torch.float32


def test_conv1d_of_gpt2_and_default_targets():
    model = get_peft_model(gpt2(), small_config(target_modules=None, init_weights=False)).eval()
    assert model.targeted_module_names == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    layer = model.base_model.model.transformer.h[0].attn.c_attn
    assert (layer.in_features, layer.out_features) == (24, 72)
    x = torch.randn(2, 3, 24)
    config = small_config(init_weights=False)
    expected = explicit_output(layer, config, x.reshape(6, 24)).reshape(2, 3, 72)
    torch.testing.assert_close((layer(x) - layer.base_layer(x)).double(), expected, rtol=2e-4, atol=2e-4)


def test_dropout_acts_on_the_input():
    layer = adapted_linear(48, 20, arch="mpo", dropout=0.5)[1]
    x = torch.ones(1, 48)
    layer.eval()
    torch.testing.assert_close(layer(x), layer(x))
    layer.train()
    assert not torch.allclose(layer(x), layer(x))


def test_first_and_last_layers_are_kept_classical():
    base = llama(num_hidden_layers=4)
    model = get_peft_model(base, small_config(n_classical_first=1, n_classical_last=2))
    layers = [block.self_attn.q_proj for block in model.base_model.model.model.layers]
    assert [layer.architectures["default"].name for layer in layers] == ["mpo", "mpo+quantum", "mpo", "mpo"]
    model = get_peft_model(llama(), small_config(arch="C", n_classical_last=1))
    assert model.base_model.model.model.layers[1].self_attn.v_proj.architectures["default"].name == "linear"
    with pytest.raises(InputError, match="not in a numbered list of layers"):
        get_peft_model(nn.Sequential(nn.Linear(4, 4)), small_config(target_modules=["0"], n_classical_first=1))


def test_output_head_is_adapted_only_by_name():
    by_pattern = get_peft_model(llama(), small_config(target_modules=".*(q_proj|head)"))
    assert not [name for name in by_pattern.targeted_module_names if "lm_head" in name]
    everything = get_peft_model(llama(), small_config(target_modules="all-linear"))
    assert len(everything.targeted_module_names) == 14
    by_name = get_peft_model(llama(), small_config(target_modules=["lm_head"]))
    assert by_name.targeted_module_names == ["lm_head"]


def test_two_adapters_add_up_switch_and_are_deleted():
    base = llama()
    ids = tokens()
    with torch.no_grad():
        plain = base(ids).logits
        model = get_peft_model(base, small_config(init_weights=False)).eval()
        first = model(ids).logits
        model.add_adapter("other", small_config(arch="mpo", r=2, init_weights=False))
        assert torch.equal(model(ids).logits, first)
        model.set_adapter("other")
        second = model(ids).logits
        layer = model.base_model.model.model.layers[0].self_attn.q_proj
        model.base_model.set_adapter(["default", "other"])
        x = torch.randn(2, 48)
        both = layer(x) - layer.base_layer(x)
        nothing = torch.zeros(2, 48)
        alone = layer.add_adapter("default", x, nothing) + layer.add_adapter("other", x, nothing)
        torch.testing.assert_close(both, alone, rtol=1e-4, atol=1e-5)
        assert not torch.equal(first, second)
        model.set_adapter("default")
        model.delete_adapter("other")
        assert torch.equal(model(ids).logits, first)
        assert not any("other" in name for name, _ in model.named_parameters())
        assert torch.equal(model.unload()(ids).logits, plain)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"r": 64}, r"rank must be between 1 and 20 \(got 64\): one qubit is used per rank"),
        ({"r": 0}, r"rank must be between 1 and 20 \(got 0\)"),
        ({"r": 0, "arch": "mpo"}, r"r must be a whole number of at least 1 \(got 0\)"),
        ({"r": 2.5, "arch": "mpo"}, "r must be a whole number"),
        ({"arch": "AC"}, r"arch must be one of mpo\+quantum \(ABC\), .*BD/BE/BF\), mpo\+classical, .*\(got 'AC'\)"),
        ({"arch": "A"}, "arch must be one of"),
        ({"arch": "BE", "classical_layers": 2}, "contradicts the letters"),
        ({"arch": "classical", "classical_layers": 5}, "classical_layers must be 2, 3 or 4"),
        ({"n_layers": 0}, "n_layers must be a whole number"),
        ({"bond_dim": 0}, "bond_dim must be"),
        ({"inner_features": -1}, "inner_features must be"),
        ({"alpha": 0}, "alpha must be a number greater than 0"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"fusion": "sum"}, "fusion must be one of linear, product"),
        ({"fusion": "product", "arch": "mpo"}, "does not have both"),
        ({"input_scale": "sigmoid"}, "input_scale must be one of none, tanh, pi_tanh"),
        ({"angle_init": "ones"}, "angle_init must be one of"),
        ({"gate_order": "newer"}, "gate_order must be one of"),
        ({"executor": "wukong"}, "executor must be one of exact"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "target_parameters is not supported"),
        ({"layers_pattern": "layers"}, "give both, or neither"),
        ({"format_version": 99}, "upgrade with"),
    ],
    ids=str,
)
def test_bad_configuration_is_refused_with_a_sentence(kwargs, message):
    with pytest.raises(InputError, match=message):
        small_config(**kwargs)


def test_large_rank_without_a_circuit():
    assert QTHAConfig(r=64, arch="mpo").scaling == 2.0
    assert QTHAConfig(r=64, alpha=16, arch="linear").scaling == 0.25


@pytest.mark.parametrize(
    ("model", "target", "kind"),
    [(llama, "embed_tokens", "Embedding"), (bert, "LayerNorm", "LayerNorm"), (llama, "mlp", "LlamaMLP")],
)
def test_other_module_types_are_refused(model, target, kind):
    with pytest.raises(InputError, match=f"is a {kind}, and QTHA adapts linear layers"):
        get_peft_model(model(), small_config(target_modules=[target]))
    with pytest.raises(InputError, match="is a Conv2d"):
        get_peft_model(nn.Sequential(nn.Conv2d(1, 2, 3)), small_config(target_modules=["0"]))


def test_fused_experts_are_refused():
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2}
    model = MixtralForCausalLM(MixtralConfig(vocab_size=64, num_hidden_layers=1, num_local_experts=2, **shape))
    with pytest.raises(InputError, match=r"is a MixtralExperts, and QTHA adapts linear layers.*fused experts"):
        get_peft_model(model, small_config(target_modules=["experts"]))


def test_missing_targets_are_reported_with_the_nearest_names(caplog):
    with pytest.raises(InputError, match=r"'q_prj'.*not found.*Did you mean .*q_proj"):
        get_peft_model(llama(), small_config(target_modules=["q_prj"]))
    with pytest.raises(InputError, match="Linear layers of this model: 0, 1"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)), small_config(target_modules=["attention"]))
    with pytest.raises(InputError, match="no modules to adapt are known for model type"):
        get_peft_model(nn.Sequential(nn.Linear(3, 3)), small_config(target_modules=None))
    get_peft_model(llama(), small_config(target_modules=["q_proj", "v_prj"]))
    assert "no module is called v_prj, so only the others are adapted" in caplog.text


def test_mixed_batches_are_refused():
    model = get_peft_model(llama(), small_config()).eval()
    with pytest.raises(InputError, match="adapter_names in a forward call"):
        model(tokens(), adapter_names=["default", "__base__", "default"])


def test_autocast_computes_the_small_contractions_in_full_precision():
    layer = adapted_linear(48, 20)[1]
    x = torch.randn(6, 48)
    exact, matrix = layer(x), layer.encoder("default").matrix()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = layer(x)
        assert torch.equal(layer.encoder("default").matrix(), matrix)
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)


def test_remembered_contractions_follow_the_numbers():
    layer = adapted_linear(48, 20, arch="mpo")[1]
    x = torch.randn(3, 48)
    with torch.no_grad():
        before = layer(x)
        assert torch.equal(layer(x), before)
        for leaf in (layer.qtha_encoder["default"], layer.qtha_decoder["default"]):
            leaf.weight.data.mul_(0.5)  # past the version counter
            changed = layer(x)
            assert not torch.allclose(changed, before)
            before = changed
    torch.testing.assert_close(layer(x).detach(), before)
    layer(x).sum().backward()
    assert layer.qtha_encoder["default"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"alpha": "x"}, "alpha must be a number greater than 0"),
        ({"dropout": "x"}, "dropout must be a number"),
        ({"factors": 3}, "factors must map a width to its modes"),
        ({"factors": {"576": 6}}, "factors must map a width to its modes"),
        ({"input_scale": 3}, "input_scale must be one of"),
    ],
)
def test_settings_of_a_wrong_type_are_one_sentence(setting, sentence):
    with pytest.raises(InputError, match=sentence):
        QTHAConfig(**setting)
