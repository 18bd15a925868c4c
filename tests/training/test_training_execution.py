"""Runs whose circuits go to a (virtual) chip: the recipe's section, training, starting from a trained adapter."""

import json

import pytest
import torch
from safetensors.torch import load_file

from qpeft.errors import InputError
from qpeft.training import RunFolder, make_recipe, train
from qpeft.training.run import planned_calls, prepare
from tiny_base import recipe_values

ADAPTER = {"method": "qtha", "r": 2, "arch": "quantum", "target_modules": ["q_proj"]}
CHIP = {"executor": "virtual-wukong", "shots": 200, "tokens": "last", "max_blocks": 4}


def values(base, output, **sections):
    training = {"max_steps": 2, "per_device_train_batch_size": 2, "eval_steps": None, "save_steps": 2}
    found = recipe_values(base, output, adapter=dict(ADAPTER), training=training)
    return {**found, **sections}


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"shotz": 3}, "unknown key execution.shotz; did you mean execution.shots?"),
        ({"executor": "wukong"}, "unknown executor 'wukong'"),
        ({"executor": "virtual-wukong", "shots": "many"}, "shots must be a whole number"),
        ({"executor": "virtual-wukong", "tokens": "some"}, "tokens must be"),
        ({"executor": "virtual-wukong", "layers": "q_proj"}, "execution.layers"),
        ("origin", "execution"),
    ],
)
def test_a_wrong_section_is_told_in_one_sentence(llama_base, tmp_path, section, message):
    with pytest.raises(InputError, match=message.replace("?", r"\?")) as error:
        make_recipe(values(llama_base, tmp_path / "run", execution=section))
    assert "\n" not in str(error.value)


def test_a_section_survives_the_run_folder(llama_base, tmp_path):
    recipe = make_recipe(values(llama_base, tmp_path / "run", execution={**CHIP, "mitigation": {"affine": True}}))
    import yaml

    again = make_recipe(yaml.safe_load(recipe.to_yaml()))
    assert again == recipe
    assert again.execution.settings.mitigation.affine


@pytest.fixture(scope="module")
def on_chip(llama_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("chip") / "run"
    recipe = make_recipe(values(llama_base, folder, execution=CHIP))
    return train(recipe), RunFolder(folder), recipe


def test_training_on_a_chip_says_what_ran_there(on_chip):
    result, folder, _ = on_chip
    told = json.loads(folder.result.read_text())["execution"]
    assert told["executor"] == "virtual:wukong-72"
    # two steps of two sequences and four for validation, one token each, in both layers
    assert sum(told["rows"].values()) == (2 * 2 + 4) * 2
    assert sum(layer["chip"] for layer in told["layers"].values()) == (2 * 2 + 4) * 2
    assert all(layer["simulated"] > layer["chip"] for layer in told["layers"].values())
    assert (folder.path / "ledger.sqlite").exists()
    assert result.steps == 2


def test_the_workload_was_known_beforehand(on_chip):
    _, folder, recipe = on_chip
    told = json.loads(folder.result.read_text())["execution"]
    calls = planned_calls(recipe, prepare(recipe))
    assert sum(call.rows * call.times for call in calls) == sum(told["rows"].values())


def test_a_run_starts_from_a_trained_adapter(on_chip, llama_base, tmp_path):
    _, folder, _ = on_chip
    adapter = {**ADAPTER, "start_from": str(folder.path)}
    training = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-12, "eval_steps": None}
    train(make_recipe(values(llama_base, tmp_path / "run", adapter=adapter, training=training)))
    before = load_file(folder.adapter / "adapter_model.safetensors")
    after = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("change", "message"), [({"r": 3}, "does not fit"), ({"arch": "linear"}, "does not fit")])
def test_an_adapter_of_other_sizes_is_refused(on_chip, llama_base, tmp_path, change, message):
    _, folder, _ = on_chip
    adapter = {**ADAPTER, **change, "start_from": str(folder.path)}
    with pytest.raises(InputError, match=message):
        train(make_recipe(values(llama_base, tmp_path / "run", adapter=adapter)))
    with pytest.raises(InputError, match="holds no trained adapter"):
        train(make_recipe(values(llama_base, tmp_path / "run", adapter={**ADAPTER, "start_from": str(tmp_path)})))


def test_a_run_over_its_budget_is_refused_before_anything_is_sent(llama_base, tmp_path):
    recipe = make_recipe(values(llama_base, tmp_path / "run", execution={**CHIP, "max_circuits": 3}))
    with pytest.raises(InputError, match=r"the run would use .* of 3 circuits: nothing was sent"):
        train(recipe)
    from qpeft.qpu.ledger import LedgerReader

    assert LedgerReader(tmp_path / "run").spent("virtual:wukong-72").jobs == 0
    assert (
        train(make_recipe(values(llama_base, tmp_path / "other", execution={**CHIP, "max_circuits": 100}))).steps == 2
    )
