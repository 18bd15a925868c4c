"""Runs on a base in 4 or 8 bits are served on such a base, which all of them share."""

import importlib.util

import pytest
import torch
import yaml

from qpeft.errors import InputError
from qpeft.models.quantization import beside_parameters
from qpeft.serving import open_models
from qpeft.training import make_recipe, train
from qpeft.training.target import open_target
from tiny_base import recipe_values, save_llama

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="needs bitsandbytes")


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def run(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("quantised")
    base = save_llama(folder / "llama", hidden_size=128, intermediate_size=192)
    values = recipe_values(base, folder / "run", training__max_steps=2, model__quantization=request.param)
    train(make_recipe(values))
    return folder / "run"


def test_a_run_is_served_on_the_base_it_was_trained_on(run):
    said = []
    models = open_models([f"a={run}", f"b={run}"], device="cpu", say=said.append)
    bits = yaml.safe_load((run / "recipe.yaml").read_text())["model"]["quantization"].replace("bit", " bits")
    assert f"the base is held in {bits}, as in the training" in said
    own = {id(one) for one in [*models["llama"].model.parameters(), *beside_parameters(models["llama"].model)]}
    for name in "ab":
        assert models[name].model.get_base_model().is_quantized
        model = models[name].model
        assert own <= {id(one) for one in [*model.parameters(), *beside_parameters(model)]}
    prompt = torch.tensor([models["a"].tokenizer("One and two?")["input_ids"]])
    alone = open_target(str(run), device="cpu").model
    with torch.no_grad():
        want = alone(prompt).logits
        torch.testing.assert_close(models["b"].model(prompt).logits, want)
        torch.testing.assert_close(models["a"].model(prompt).logits, want)
        assert not torch.equal(models["llama"].model(prompt).logits, want)


def test_runs_of_another_precision_are_served_apart(run, tmp_path):
    """The very same run, but that its recipe and adapter know nothing of 4 or 8 bits."""
    plain = tmp_path / "plain"
    plain.mkdir()
    values = yaml.safe_load((run / "recipe.yaml").read_text())
    values["model"]["quantization"] = None
    (plain / "recipe.yaml").write_text(yaml.safe_dump(values))
    (plain / "adapter").symlink_to(run / "adapter")
    with pytest.raises(InputError, match=r"plain: not quantised\): serve them apart"):
        open_models([str(run), str(plain)], device="cpu")
