"""A base that many runs of one process share: the same numbers as with one of their own, and never a changed one."""

import pytest
import torch
from safetensors.torch import load_file

from qpeft.errors import InputError
from qpeft.training import RunFolder, make_recipe, train
from qpeft.training.bases import BaseModels, checksum
from tiny_base import recipe_values

METHODS = {
    "qtha": {"method": "qtha", "r": 3, "bond_dim": 2, "inner_features": 16, "target_modules": ["q_proj", "v_proj"]},
    "lora": {"method": "lora", "r": 2, "target_modules": ["q_proj", "down_proj"]},
    "oft": {"method": "oft", "oft_block_size": 4, "r": 0, "target_modules": ["v_proj"]},
    "ln_tuning": {"method": "ln_tuning", "target_modules": ["input_layernorm"]},
}


def adapter_of(base, folder, adapter, bases=None):
    recipe = make_recipe(recipe_values(base, folder, adapter=adapter, training={"max_steps": 3}))
    train(recipe, bases=bases)
    return load_file(RunFolder(folder).adapter / "adapter_model.safetensors")


def test_runs_on_a_shared_base_equal_runs_on_their_own(llama_base, tmp_path):
    bases, kept = BaseModels(keep=True), []
    for name, adapter in METHODS.items():
        alone = adapter_of(llama_base, tmp_path / f"{name}-alone", adapter)
        shared = adapter_of(llama_base, tmp_path / f"{name}-shared", adapter, bases)
        bases.release()
        assert alone.keys() == shared.keys()
        assert all(torch.equal(alone[key], shared[key]) for key in alone)
        section = make_recipe(recipe_values(llama_base, tmp_path / name)).model
        kept.append(bases.model(section, "cpu"))
    assert all(model is kept[0] for model in kept)  # it was really the same one


def test_a_base_whose_weights_were_changed_is_loaded_anew(llama_base, tmp_path):
    bases, section = BaseModels(keep=True), make_recipe(recipe_values(llama_base, tmp_path / "run")).model
    first = bases.model(section, "cpu")
    before = checksum(first)
    with torch.no_grad():
        first.model.layers[0].mlp.up_proj.weight[0, 0] += 1e-3
    assert checksum(first) != before
    bases.release()
    assert bases.model(section, "cpu") is not first
    assert checksum(bases.model(section, "cpu")) == before


def test_an_adapter_that_could_not_be_finished_is_taken_off(llama_base, tmp_path):
    bases = BaseModels(keep=True)
    wrong = {"method": "lora", "r": 2, "target_modules": ["q_proj"], "layers_to_transform": [7]}
    with pytest.raises(InputError, match="does not fit"):
        train(make_recipe(recipe_values(llama_base, tmp_path / "wrong", adapter=wrong)), bases=bases)
    bases.release()
    alone = adapter_of(llama_base, tmp_path / "alone", METHODS["lora"])
    shared = adapter_of(llama_base, tmp_path / "shared", METHODS["lora"], bases)
    assert all(torch.equal(alone[key], shared[key]) for key in alone)
