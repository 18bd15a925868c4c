"""An arm of a comparison: what one run folder (or the frozen base) says about itself."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpeft.errors import InputError
from qpeft.training.run_folder import RunFolder, read_metrics


@dataclass(frozen=True)
class Interval:
    """A measured share with its 95 % interval; `n` items."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    `training` and `parameters` are empty for a frozen base; `losses` holds (step, loss) of every logged step and
    `eval_losses` those on the validation set.
    """

    name: str
    accuracy: dict[str, Interval]
    training: dict[str, Any] = field(default_factory=dict)
    losses: list[tuple[int, float]] = field(default_factory=list)
    eval_losses: list[tuple[int, float]] = field(default_factory=list)

    @property
    def parameters(self) -> dict[str, int]:
        return dict(self.training.get("parameters", {}))


def read_arm(name: str, path: Path) -> Arm:
    """Read an arm from its run folder, or from the folder of a frozen base's evaluation.

    Raises:
        InputError: the run is not finished.
    """
    folder = RunFolder(path)
    try:
        result = json.loads(folder.result.read_text(encoding="utf-8"))
        metrics = result["evaluation"]["metrics"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no finished and evaluated run: run it first") from error
    lines = read_metrics(folder.metrics)
    return Arm(
        name=name,
        accuracy={
            key: Interval(value["value"], value["low"], value["high"], result["evaluation"]["n"])
            for key, value in metrics.items()
            if isinstance(value, dict) and value.get("low") is not None
        },
        training=result.get("training", {}),
        losses=[(line["step"], line["loss"]) for line in lines if "loss" in line],
        eval_losses=[(line["step"], line["eval_loss"]) for line in lines if "eval_loss" in line],
    )
