"""Arms that a plan writes out itself, with strict keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qpeft.errors import InputError
from qpeft.training.execution import ExecutionSection
from qpeft.training.keys import nearest
from qpeft.training.recipe import TrainingSection


class OwnArm(BaseModel):
    """An arm of a plan's own: an adapter to train, or another way to evaluate the arm `of`."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = Field(..., min_length=1)
    label: str | None = None
    adapter: dict[str, Any] | None = None
    training: dict[str, Any] = Field(default_factory=dict)
    learning_rates: list[float] | None = Field(None, min_length=1)
    of: str | None = None
    branch: Literal["off", "mean"] | None = None
    execution: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> OwnArm:
        if not all(letter.isalnum() or letter in "._-" for letter in self.name):
            raise ValueError("its name becomes part of file names: use letters, digits, . _ and -")
        ways = [key for key in ("branch", "execution") if getattr(self, key) is not None]
        if self.of is None and ways:
            raise ValueError(f"{ways[0]} changes the evaluation of another arm: say which with of")
        if self.of is not None:
            if len(ways) != 1:
                raise ValueError(
                    "of evaluates a trained arm otherwise: give branch (off, mean) or execution, one of them"
                )
            trains = [key for key in ("adapter", "training", "learning_rates") if getattr(self, key)]
            if trains:
                raise ValueError(f"of trains nothing: leave out {' and '.join(trains)}")
        return self

    @model_validator(mode="after")
    def _rates_are_rates(self) -> OwnArm:
        rates = self.learning_rates or []
        if any(rate <= 0 for rate in rates):
            raise ValueError(f"learning_rates must be greater than 0 (got {min(rates)})")
        if len(set(rates)) < len(rates):
            raise ValueError("learning_rates holds a rate twice")
        return self

    @model_validator(mode="after")
    def _sections_are_usable(self) -> OwnArm:
        for key in self.training:
            if key in ("learning_rate", "seed"):
                raise ValueError(f"training.{key} is what the comparison varies: leave it out")
        _validate(TrainingSection, self.training, "training")
        if self.execution is not None:
            _validate(ExecutionSection, self.execution, "execution")
            if self.execution.get("executor", "exact") == "exact":
                raise ValueError("execution.executor says where the circuits run: name another one than exact")
        return self


def read_own_arm(entry: Any) -> OwnArm:
    """Validate an arm that is written out.

    Raises:
        InputError: An unknown key or a wrong value; the message names the arm.
    """
    if not isinstance(entry, Mapping):
        raise InputError(f"an arm is a name, or a mapping with a name (got {entry!r})")
    where = f"arm {entry['name']}" if isinstance(entry.get("name"), str) else "an arm"
    try:
        return OwnArm.model_validate(dict(entry))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = OwnArm.model_fields
            near = nearest(place, known) or f"; the keys here are: {', '.join(known)}"
            raise InputError(f"{where}: unknown key {place}{near}") from error
        if problem["type"] == "missing":
            raise InputError(f"{where}: the key {place} is missing") from error
        message = problem["msg"].removeprefix("Value error, ")
        if place:
            message = f"{place} cannot be {problem['input']!r}: {message[:1].lower() + message[1:]}"
        raise InputError(f"{where}: {message}") from error


def _validate(section: type[BaseModel], values: dict[str, Any], name: str) -> None:
    """Check a part of a recipe's section, told as one sentence."""
    try:
        section.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = nearest(key, section.model_fields, f"{name}.")
            raise ValueError(f"unknown key {name}.{key}{near}") from error
        message = problem["msg"].removeprefix("Value error, ")
        at = f"{name}.{key} cannot be {problem['input']!r}: " if key else ""
        raise ValueError(f"{at}{message[:1].lower() + message[1:]}") from error
