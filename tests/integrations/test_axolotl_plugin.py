"""The axolotl plugin against axolotl's interface: as written down, and the real one where it is installed."""

import importlib
import importlib.util
import inspect
import sys
from pathlib import Path

import axolotl_interface
import pytest
import torch
import yaml
from peft import PeftModel
from pydantic import BaseModel, ValidationError

import qpeft
from qpeft.models import load_model

HOME = Path(__file__).parents[2] / "integrations" / "axolotl"
SMALL = {"r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["q_proj"]}


@pytest.fixture
def package(monkeypatch):
    """The plugin's package, on the written interface unless axolotl is there."""
    monkeypatch.syspath_prepend(str(HOME))
    if importlib.util.find_spec("axolotl") is None:
        for name, module in axolotl_interface.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    yield importlib.import_module("qpeft_axolotl")
    for name in [name for name in sys.modules if name.startswith("qpeft_axolotl")]:
        del sys.modules[name]


@pytest.fixture
def args(package):
    return importlib.import_module("qpeft_axolotl.args").QTHAArgs


def settings(**values):
    return axolotl_interface.DictDefault({"adapter": "qtha", "qtha": SMALL, **values})


def base(folder):
    return load_model(str(folder), dtype="float32", device="cpu")


def test_hooks_have_the_interface_s_names_and_parameters(package):
    for name, method in vars(package.QTHAPlugin).items():
        if not name.startswith("_"):
            theirs = inspect.signature(getattr(axolotl_interface.BasePlugin, name)).parameters
            ours = inspect.signature(method).parameters
            assert list(ours) == list(theirs), name
            assert [p.default for p in ours.values()] == [p.default for p in theirs.values()], name


def test_the_plugin_names_its_adapter_and_its_keys(package):
    plugin = package.QTHAPlugin()
    assert [each.name for each in plugin.get_adapter_capabilities()] == ["qtha"]
    assert not plugin.get_adapter_capabilities()[0].lora_like, "axolotl would load a LoRA"
    module, _, name = plugin.get_input_args().rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), name), BaseModel)


def test_an_adapter_is_made_trained_and_loaded_again(package, llama_base, tmp_path):
    plugin = package.QTHAPlugin()
    model, config = plugin.load_adapter(base(llama_base), settings())
    assert isinstance(model, PeftModel)
    assert (config.r, config.task_type) == (2, "CAUSAL_LM")
    ids = torch.arange(8)[None]
    model(ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p) * p.requires_grad
        expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path)
    again, config = plugin.load_adapter(base(llama_base), settings(lora_model_dir=str(tmp_path)), inference=True)
    assert not any(p.requires_grad for p in again.parameters())
    torch.testing.assert_close(again.eval()(ids).logits, expected)
    resumed, _ = plugin.load_adapter(base(llama_base), settings(lora_model_dir=str(tmp_path)))
    assert any(p.requires_grad for p in resumed.parameters())
    torch.testing.assert_close(qpeft.load(tmp_path, base_model=str(llama_base))(ids).logits, expected)


def test_a_trainer_that_adds_the_adapter_itself_gets_the_config(package, llama_base):
    model, config = package.QTHAPlugin().load_adapter(base(llama_base), settings(), config_only=True)
    assert model is None
    assert config.target_modules == {"q_proj"}


def test_other_adapters_are_left_to_axolotl(package):
    assert package.QTHAPlugin().load_adapter(None, settings(adapter="lora")) is None


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"qtha": {"rank": 4}}, r"unknown key qtha\.rank"),
        ({"qtha": {"bond_dims": 4}}, "did you mean qtha.bond_dim"),
        ({"qtha": {"r": 0}}, "rank must be between 1 and 20"),
        ({"qtha": {"start_from": "runs/x"}}, r"qtha\.start_from is a key of qpeft's recipes"),
        ({"lora_r": 8}, "lora_r belongs to adapter: lora"),
        ({"lora_target_linear": True}, "lora_target_linear belongs to adapter: lora"),
        ({"adapter": "lora", "qtha": SMALL}, "write adapter: qtha"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(args, values, sentence):
    with pytest.raises(ValidationError, match=sentence):
        args.model_validate({"adapter": "qtha", **values})


def test_settings_that_axolotl_fills_in_are_not_refused(args):
    assert args.model_validate({"adapter": "qtha", "lora_dropout": 0.0, "relora": None}).qtha is None
    assert args.model_validate({"adapter": "lora", "lora_r": 8}).qtha is None


def test_the_example_is_good_and_its_learning_rate_finds_the_angles(package, args, llama_base):
    example = yaml.safe_load((HOME / "qtha.yaml").read_text())
    assert args.model_validate({"adapter": example["adapter"], "qtha": example["qtha"]}).qtha == example["qtha"]
    model, _ = package.QTHAPlugin().load_adapter(base(llama_base), axolotl_interface.DictDefault(example))
    group = example["lr_groups"][0]["modules"][0]
    angles = sum(p.numel() for name, p in model.named_parameters() if group in name and p.requires_grad)
    assert angles == qpeft.count_parameters(model).angles > 0


def test_axolotl_itself_accepts_the_example(package, llama_base):
    if not hasattr(sys.modules["axolotl"], "__path__"):
        pytest.skip("axolotl is not installed")
    from axolotl.integrations.base import PluginManager
    from axolotl.integrations.config import merge_input_args
    from axolotl.loaders.adapter import load_adapter
    from axolotl.utils.dict import DictDefault

    example = yaml.safe_load((HOME / "qtha.yaml").read_text())
    manager = PluginManager.get_instance()
    manager.register(example["plugins"][0])
    assert manager.supports_adapter("qtha")
    _, config_class = merge_input_args()
    cfg = DictDefault(config_class.model_validate(example).model_dump(exclude_none=True))
    model, config = load_adapter(base(llama_base), cfg, cfg.adapter)
    assert isinstance(model, PeftModel)
    assert config.r == example["qtha"]["r"]
    with pytest.raises(ValidationError, match=r"unknown key qtha\.rank"):
        config_class.model_validate({**example, "qtha": {"rank": 2}})
