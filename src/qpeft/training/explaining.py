"""What is left of a training that had to stop, and the command that goes on with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qpeft.errors import Diverged, TrainingError
from qpeft.models.cache import is_disk_full
from qpeft.training import ranks
from qpeft.training.memory import OutOfMemory, is_out_of_memory
from qpeft.training.ranks import RankLost
from qpeft.training.recipe import Recipe
from qpeft.training.run_folder import RunFolder


@contextmanager
def explained(recipe: Recipe, folder: RunFolder) -> Iterator[None]:
    """Add to what stops a run what is left of it.

    Raises:
        TrainingError: The run was stopped by what it says.
    """
    try:
        with ranks.told_if_lost():
            yield
    except RankLost as error:
        raise RankLost(
            f"{error}; {_kept(folder)}; go on with: {ranks.launched(f'train {folder.path} --resume')}"
        ) from error
    except Diverged as error:
        raise Diverged(f"{error}; {_kept(folder)}; lower training.learning_rate and start again") from error
    except Exception as error:
        if is_out_of_memory(error):
            told = error if isinstance(error, OutOfMemory) else "the memory did not suffice"
            go_on = ranks.launched(f"train {folder.path} --resume {_smaller(recipe)}")
            raise OutOfMemory(f"{told}; {_kept(folder)}; go on with less of it: {go_on}") from error
        # torch's writer of archives does not say what kept it from writing; these are its two ways to fail
        if not is_disk_full(error) and not any(sign in str(error) for sign in ("inline_container", "iostream error")):
            raise
        if ranks.is_first():
            folder.remove_partial_checkpoints()  # gives its space back
        raise TrainingError(
            f"the disk of {folder.path} is full; {_kept(folder)}; free some space and go on with: "
            f"qpeft train {folder.path} --resume"
        ) from error


def _smaller(recipe: Recipe) -> str:
    """Overrides with which the run takes less memory, and the same steps."""
    section = recipe.training
    if not section.gradient_checkpointing and recipe.execution.executor == "exact":
        return "training.gradient_checkpointing=true"
    batch, times = section.per_device_train_batch_size, section.gradient_accumulation_steps
    half = next((batch // parts for parts in range(2, batch + 1) if batch % parts == 0), batch)
    changed = (
        f"training.per_device_train_batch_size={half} training.gradient_accumulation_steps={batch * times // half}"
    )
    return changed if half < batch else "(on a machine with more memory)"


def _kept(folder: RunFolder) -> str:
    last = folder.last_checkpoint()
    return f"the last good checkpoint is {last}" if last else "no checkpoint had been saved yet"
