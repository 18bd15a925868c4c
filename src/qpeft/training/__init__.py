"""Training by recipe: YAML to trainer to run folder."""

from qpeft.training.recipe import Recipe, load_recipe, make_recipe
from qpeft.training.run import TrainingResult, dry_run, train
from qpeft.training.run_folder import RunFolder

__all__ = ["Recipe", "RunFolder", "TrainingResult", "dry_run", "load_recipe", "make_recipe", "train"]
