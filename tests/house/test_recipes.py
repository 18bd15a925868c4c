"""Every recipe is valid, and its first line is the command that runs it."""

import re
import shlex
from pathlib import Path

import pytest
from command_lines import parse_command

from qpeft.training.recipe import Recipe, load_recipe, packaged_recipes

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
PACKAGED = packaged_recipes()


def commands_in(file: Path) -> list[str]:
    """The commands in a recipe's comments."""
    lines = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return [line for line in lines if line.startswith("qpeft ")]


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_is_valid_and_says_how_to_run_it(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(file)
    assert recipe.output == f"runs/{file.stem}"
    first = file.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# qpeft train recipes/{file.name}"
    for command in commands_in(file):
        parse_command(shlex.split(command))


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_recipe_is_valid_and_says_how_to_run_it(name):
    load_recipe(name)
    first = PACKAGED[name].read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith(f"# qpeft train {name}")


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_evaluation_has_something_to_measure_on(file):
    recipe = load_recipe(file)
    assert recipe.evaluation.task is not None
    assert recipe.data.train == "arithmetic" or recipe.data.test is not None
    assert recipe.data.test != recipe.data.train or recipe.data.train == "arithmetic"


@pytest.mark.parametrize("file", [file for file in RECIPES if file.stem.endswith("-lora")], ids=lambda file: file.stem)
def test_arms_of_a_pair_differ_in_the_adapter_alone(file):
    ours = load_recipe(file.with_name(file.name.replace("-lora", "-qtha")))
    theirs = load_recipe(file)
    assert ours.adapter.fields["r"] == theirs.adapter.fields["r"]
    assert ours.adapter.fields["target_modules"] == theirs.adapter.fields["target_modules"]
    for section in ("model", "data", "training", "evaluation"):
        assert getattr(ours, section) == getattr(theirs, section), section


def test_readme_lists_every_recipe():
    text = (ROOT / "recipes" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([a-z0-9]+-(?:qtha|lora|linear))`", text)) == {file.stem for file in RECIPES}


def test_reference_names_every_key():
    import importlib.util

    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    hooks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hooks)
    page = hooks.on_page_markdown((ROOT / "docs" / "recipes.md").read_text(encoding="utf-8"))
    for name, field in Recipe.model_fields.items():
        keys = getattr(field.annotation, "model_fields", None)
        for key in [name] if keys is None else [f"{name}.{key}" for key in keys]:
            assert f"| `{key}` |" in page, key
