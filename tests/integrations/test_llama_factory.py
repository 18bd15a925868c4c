"""QTHA in LLaMA-Factory's table of methods: as written down, and the real one where it is installed."""

import importlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import llama_factory_interface
import pytest
import torch
import yaml
from peft import PeftModel

import qpeft
from qpeft.errors import InputError
from qpeft.models import load_model

ROOT = Path(__file__).parents[2]
HOME = ROOT / "integrations" / "llama_factory"
SMALL = {"name": "qtha", "r": 2, "bond_dim": 2, "inner_features": 8, "target_modules": ["q_proj"]}
INSTALLED = importlib.util.find_spec("llamafactory") is not None


@pytest.fixture
def table(monkeypatch):
    """LLaMA-Factory's table with our method in it."""
    monkeypatch.syspath_prepend(str(HOME))
    if not INSTALLED:
        for name, module in llama_factory_interface.modules().items():
            monkeypatch.setitem(sys.modules, name, module)
    importlib.import_module("qpeft_llama_factory")
    yield importlib.import_module("llamafactory.v1.plugins.model_plugins.peft").PeftPlugin
    for name in [name for name in sys.modules if name.startswith("qpeft_llama_factory")]:
        del sys.modules[name]


@pytest.fixture
def launcher(table):
    return importlib.import_module("qpeft_llama_factory.__main__")


def base(folder):
    return load_model(str(folder), dtype="float32", device="cpu")


def test_the_method_is_found_by_its_name_and_trains(table, llama_base, tmp_path):
    model = table("qtha")(base(llama_base), SMALL, True)
    assert isinstance(model, PeftModel)
    assert model.peft_config["default"].r == 2
    ids = torch.arange(8)[None]
    model(ids, labels=ids).loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    with torch.no_grad():
        for p in model.parameters():
            p += 0.1 * torch.randn_like(p) * p.requires_grad
        expected = model.eval()(ids).logits
    model.save_pretrained(tmp_path, state_dict=model.state_dict())  # as its trainers save
    torch.testing.assert_close(qpeft.load(tmp_path, base_model=str(llama_base))(ids).logits, expected)
    trained = {"name": "qtha", "adapter_name_or_path": [str(tmp_path)]}
    used = table("qtha")(base(llama_base), trained, False)
    assert not any(p.requires_grad for p in used.parameters())
    torch.testing.assert_close(used.eval()(ids).logits, expected)
    further = table("qtha")(base(llama_base), trained, True)
    assert any(p.requires_grad for p in further.parameters())


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"bond_dims": 3}, r"unknown key peft_config\.bond_dims.*did you mean peft_config\.bond_dim"),
        ({"lora_alpha": 16}, r"unknown key peft_config\.lora_alpha"),
        ({"r": 0}, "rank must be between 1 and 20"),
        ({"start_from": "runs/x"}, r"peft_config\.start_from is a key of qpeft's recipes"),
        ({"adapter_name_or_path": "runs/x", "r": 4}, "give adapter_name_or_path alone"),
        ({"adapter_name_or_path": ["a", "b"]}, r"takes one folder \(got 2\)"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_in_one_sentence(table, llama_base, fields, sentence):
    with pytest.raises(InputError, match=sentence) as error:
        table("qtha")(base(llama_base), {"name": "qtha", **fields}, True)
    assert "\n" not in str(error.value)


def test_the_example_is_good(table, llama_base):
    example = yaml.safe_load((HOME / "qtha.yaml").read_text())
    model = table(example["peft_config"]["name"])(base(llama_base), example["peft_config"], True)
    assert qpeft.count_parameters(model).angles > 0
    sets = yaml.safe_load((ROOT / example["train_dataset"]).read_text())
    for entry in sets.values():
        lines = json.loads((ROOT / entry["path"]).read_text())
        assert all(set(line) == {"instruction", "input", "output"} for line in lines)


def test_the_launcher_hands_its_arguments_on(launcher, monkeypatch, capsys):
    seen = []
    trainers = importlib.import_module("llamafactory.v1.trainers.sft_trainer")
    monkeypatch.setattr(trainers, "run_sft", lambda: seen.append(sys.argv[1:]), raising=False)
    monkeypatch.setattr(sys, "argv", ["launcher"])
    assert launcher.main(["sft", "qtha.yaml", "max_steps=2"]) == 0
    assert seen == [["qtha.yaml", "max_steps=2"]]
    assert launcher.main(["sft"]) == 2
    assert launcher.main(["tune", "qtha.yaml"]) == 2
    assert "usage:" in capsys.readouterr().err

    def refuse():
        raise InputError("peft_config.x cannot be used")

    monkeypatch.setattr(trainers, "run_sft", refuse)
    assert launcher.main(["sft", "qtha.yaml"]) == 2
    assert capsys.readouterr().err == "error: peft_config.x cannot be used\n"


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="llamafactory is not installed")
def test_llama_factory_itself_trains_the_example(llama_base, tmp_path):
    values = [f"model={llama_base}", f"output_dir={tmp_path / 'out'}", "max_steps=2", "micro_batch_size=2"]
    command = [sys.executable, "-m", "qpeft_llama_factory", "sft", str(HOME / "qtha.yaml"), *values]
    path = ":".join([str(HOME), *filter(None, sys.path)])
    done = subprocess.run(
        command, cwd=ROOT, env={"PYTHONPATH": path, "PATH": ""}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert qpeft.load(tmp_path / "out", base_model=str(llama_base)).peft_config["default"].r == 4
