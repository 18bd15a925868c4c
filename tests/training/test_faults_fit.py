"""Damaged and ill-fitting models and data end in one sentence, or work."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qpeft.errors import InputError, QPeftError
from qpeft.training import RunFolder, make_recipe, train
from tiny_base import recipe_values, save_llama


def sentence(values, kind=InputError, **options) -> str:
    with pytest.raises(kind) as told:
        train(make_recipe(values), **options)
    assert "\n" not in str(told.value)
    return str(told.value)


@pytest.fixture
def base(llama_base, tmp_path):
    return shutil.copytree(llama_base, tmp_path / "base")


def test_a_truncated_shard(llama_base, tmp_path):
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(llama_base).save_pretrained(folder, max_shard_size="30KB")
    AutoTokenizer.from_pretrained(llama_base).save_pretrained(folder)
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) > 1
    shards[1].write_bytes(shards[1].read_bytes()[:-100])
    said = sentence(recipe_values(folder, tmp_path / "run"))
    assert "cannot be loaded" in said or "damaged" in said or "incomplete" in said
    assert not (tmp_path / "run/recipe.yaml").exists()
    shards[1].unlink()
    said = sentence(recipe_values(folder, tmp_path / "run"))
    assert str(folder) in said or shards[1].name in said


def test_a_checkpoint_of_another_model(base, tmp_path):
    values = recipe_values(base, tmp_path / "run", training__max_steps=2)
    train(make_recipe(values))
    wide = save_llama(tmp_path / "wide", hidden_size=64)
    train(make_recipe(recipe_values(wide, tmp_path / "other", training__max_steps=2)))
    run, other = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "other")
    run.result.unlink()
    shutil.rmtree(run.checkpoints)
    shutil.copytree(other.checkpoints, run.checkpoints)
    longer = {**values, "training": values["training"]}
    said = sentence(longer, QPeftError, resume=True)
    assert "checkpoint-2" in said


def test_weights_of_mixed_precision_train(base, tmp_path):
    file = base / "model.safetensors"
    weights = load_file(file)
    kinds = (torch.bfloat16, torch.float32, torch.float16)
    save_file({k: v.to(kinds[i % 3]) for i, (k, v) in enumerate(sorted(weights.items()))}, file, {"format": "pt"})
    for dtype in ("auto", "bfloat16"):
        values = recipe_values(base, tmp_path / dtype, training__max_steps=1, model__dtype=dtype)
        assert train(make_recipe(values)).steps == 1


def test_a_tokenizer_without_padding_pads_with_its_end(base, tmp_path):
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (base / name).exists():
            settings = json.loads((base / name).read_text())
            settings.pop("pad_token", None)
            (base / name).write_text(json.dumps(settings))
    assert AutoTokenizer.from_pretrained(base).pad_token is None
    assert train(make_recipe(recipe_values(base, tmp_path / "run", training__max_steps=1))).steps == 1


def test_examples_beyond_the_context(tmp_path):
    short = save_llama(tmp_path / "short", max_position_embeddings=112)
    values = recipe_values(short, tmp_path / "run", training__max_steps=1)
    said = sentence(values)
    assert "the context of" in said
    assert "data.max_length=112" in said
    values["data"] |= {"max_length": 112}
    assert train(make_recipe(values)).steps == 1
