"""Experiment trackers (W&B, trackio, MLflow, ...): transformers' own callbacks, checked before a run and closed after.

Which account, project and mode they use comes from their own environment variables (`WANDB_PROJECT`,
`WANDB_MODE=offline`, `TRACKIO_DIR`, ...); nothing of it is read or kept here.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from qpeft.errors import InputError, MissingDependencyError
from qpeft.training.keys import nearest


def check_trackers(names: Sequence[str], key: str = "report_to") -> None:
    """Refuse a tracker that does not exist or is not installed.

    Args:
        names: Names that transformers gives to trackers.
        key: Where they were named, for the sentence.

    Raises:
        InputError: There is no such tracker.
        MissingDependencyError: Its package is missing.
    """
    for name in names:
        if name == "tensorboard" and key != "report_to":
            raise InputError(f"{key} needs no tensorboard: training.tensorboard writes its files into the run folder")
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"{key} cannot be {name}{nearest(name, INTEGRATION_TO_CALLBACK)}; there are: {known}")
        if name not in get_available_reporting_integrations():
            raise MissingDependencyError(f"{key} {name} needs its package: pip install {name}")


class CloseTrackers(TrainerCallback):
    """Ends the tracker's run with the training: what this process trains next is a run of its own."""

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        wandb = sys.modules.get("wandb")  # the others end theirs by themselves
        if wandb is not None and state.is_world_process_zero and wandb.run is not None:
            wandb.finish()
