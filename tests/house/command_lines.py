"""Reading `qpeft ...` command lines without running them."""

from pathlib import Path

import typer

from qpeft.cli.app import app
from qpeft.training.recipe import load_recipe, packaged_recipes

ROOT = Path(__file__).parents[2]


def parse_command(words: list[str]) -> None:
    """Check a command line: the command and its options exist, its recipe and overrides are valid.

    The bare name of a command, as running text mentions it, only has to exist. A recipe is read only if it stands in
    the repository or comes with the package.
    """
    assert words[0] == "qpeft"
    if words[1:] in (["--version"], ["--help"]):
        return
    group = typer.main.get_command(app)
    assert words[1] in group.commands, f"there is no command {words[1]}"
    if len(words) == 2:
        return
    context = group.commands[words[1]].make_context(words[1], words[2:])
    recipe = context.params.get("recipe")
    if recipe is not None:
        file = ROOT / recipe
        if file.is_file():
            load_recipe(file, context.params["overrides"] or [])
        elif str(recipe) in packaged_recipes():
            load_recipe(str(recipe), context.params["overrides"] or [])
        else:
            assert recipe.parts[0] not in ("recipes",), f"there is no recipe {recipe}"
