"""GGUF through llama.cpp's converters: a stand-in that notes what it was given, and the real ones where they are."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from qpeft import QTHAConfig
from qpeft.errors import InputError, MergeError, MissingDependencyError
from qpeft.export import find_converter, save_gguf, save_lora_gguf
from qpeft.models import load_model, load_tokenizer
from tiny_base import save_llama

REAL = os.environ.get("LLAMA_CPP")

NOTES = """
import json, pathlib, sys
folder = pathlib.Path(next(word for word in reversed(sys.argv[1:-4])))
given = {"arguments": sys.argv[1:], "files": {path.name: path.stat().st_size for path in folder.iterdir()}}
for name in ("config.json", "adapter_config.json"):
    if (folder / name).exists():
        given[name] = json.loads((folder / name).read_text())
out = sys.argv[sys.argv.index("--outfile") + 1]
pathlib.Path(out).write_text(json.dumps(given))
"""


def write_converters(folder: Path, script: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name in ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py"):
        (folder / name).write_text(script)
    return folder


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No converter but that of the test."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))


@pytest.fixture
def converters(tmp_path):
    return write_converters(tmp_path / "llama.cpp", NOTES)


def adapted(base: Path, **changes):
    torch.manual_seed(1)
    settings = {"r": 2, "bond_dim": 2, "arch": "mpo", "target_modules": ["q_proj", "v_proj"]} | changes
    model = get_peft_model(load_model(str(base), dtype="float32", device="cpu"), QTHAConfig(**settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def test_the_merged_model_and_its_tokenizer_are_converted(llama_base, converters, tmp_path):
    file = tmp_path / "out" / "mine.gguf"
    save_gguf(adapted(llama_base), load_tokenizer(str(llama_base)), file, converters)
    given = json.loads(file.read_text())
    assert given["config.json"]["architectures"] == ["LlamaForCausalLM"]
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja"} <= set(given["files"])
    assert "adapter_config.json" not in given
    assert given["arguments"][-2:] == ["--outtype", "f16"]
    assert Path(given["arguments"][0]).name == "mine"
    assert [path.name for path in file.parent.iterdir()] == ["mine.gguf"], "the folder in between is gone"


def test_a_lora_is_converted_with_its_base(llama_base, converters, tmp_path):
    file = tmp_path / "lora.gguf"
    save_lora_gguf(adapted(llama_base), file, converters, "q8_0")
    given = json.loads(file.read_text())
    assert given["adapter_config.json"]["peft_type"] == "LORA"
    assert given["arguments"][:2] == ["--base", str(llama_base)]
    assert given["arguments"][-2:] == ["--outtype", "q8_0"]


def test_where_converters_are_looked_for(converters, tmp_path, monkeypatch):
    script = converters / "convert_hf_to_gguf.py"
    assert find_converter(given=converters) == script
    assert find_converter(given=script) == script
    assert find_converter("convert_lora_to_gguf.py", script).name == "convert_lora_to_gguf.py"
    with pytest.raises(MissingDependencyError, match=r"github\.com/ggml-org/llama\.cpp.*--converter or LLAMA_CPP"):
        find_converter()
    on_path = write_converters(tmp_path / "bin", NOTES) / script.name
    on_path.chmod(0o755)
    assert find_converter() == on_path
    monkeypatch.setenv("LLAMA_CPP", str(converters))
    assert find_converter() == script
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "moved"))
    with pytest.raises(InputError, match=r"the environment variable LLAMA_CPP names .*moved"):
        find_converter()
    with pytest.raises(InputError, match=r"the converter names .*nothing"):
        find_converter(given=tmp_path / "nothing")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("raise NotImplementedError('BPE pre-tokenizer was not recognized')", "BPE pre-tokenizer was not recognized"),
        ("import sentencpiece", "pip install sentencpiece"),
        ("raise SystemExit(3)", "ended with code 3"),
        ("print('nothing to do')", "nothing to do"),
    ],
)
def test_a_converter_that_fails_is_quoted(llama_base, tmp_path, script, sentence):
    converters = write_converters(tmp_path / "llama.cpp", script)
    with pytest.raises(InputError, match=sentence) as error:
        save_gguf(adapted(llama_base), load_tokenizer(str(llama_base)), tmp_path / "out/x.gguf", converters)
    assert "\n" not in str(error.value)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_circuit_does_not_merge_and_nothing_is_written(llama_base, converters, tmp_path):
    model = adapted(llama_base, arch="mpo+quantum", inner_features=8)
    with pytest.raises(MergeError):
        save_gguf(model, load_tokenizer(str(llama_base)), tmp_path / "out/x.gguf", converters)
    with pytest.raises(MergeError):
        save_lora_gguf(model, tmp_path / "out/x.gguf", converters)
    assert list((tmp_path / "out").iterdir()) == []


def test_files_that_cannot_be_written_are_refused_before_merging(llama_base, converters, tmp_path):
    model = adapted(llama_base)
    (tmp_path / "there.gguf").touch()
    for path, outtype, sentence in (
        ("model.bin", "f16", r"does not end in \.gguf"),
        ("there.gguf", "f16", "exists"),
        ("new.gguf", "q4_k_m", "f32, f16, bf16, q8_0"),
        ("there.gguf/new.gguf", "f16", "cannot be made"),
    ):
        with pytest.raises(InputError, match=sentence):
            save_gguf(model, None, tmp_path / path, converters, outtype)
    assert any("qtha" in name for name, _ in model.named_modules()), "the adapter is still there"


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="LLAMA_CPP names no folder with llama.cpp's converters")
def test_the_real_converter_keeps_the_logits(tmp_path):
    tokenizer = load_tokenizer("smollm2-135m-instruct")  # converters know tokenizers by what they make of a text
    base = save_llama(tmp_path / "base", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    tokenizer.save_pretrained(base)
    model = adapted(base)
    tokens = tokenizer("Three apples and 45 pears", return_tensors="pt").input_ids
    with torch.no_grad():
        merged = model(tokens).logits
        with model.disable_adapter():
            plain = model(tokens).logits
        save_lora_gguf(copy.deepcopy(model), tmp_path / "lora.gguf", REAL)
        save_gguf(model, tokenizer, tmp_path / "merged.gguf", REAL, "f32")
        back = load_model(str(tmp_path / "merged.gguf"), dtype="float32", device="cpu")(tokens).logits
    assert (plain - merged).abs().max() > 1
    torch.testing.assert_close(back, merged, rtol=0, atol=1e-4)
    assert load_tokenizer(str(tmp_path / "merged.gguf"))("Three apples and 45 pears").input_ids == tokens[0].tolist()
    assert (tmp_path / "lora.gguf").stat().st_size < (tmp_path / "merged.gguf").stat().st_size / 10
