"""The plan of a comparison: one YAML file, strict keys, from which every cell follows.

    base models x tasks x arms x learning rates x seeds

A plan is resolved before the first step: arms become adapter sections with counted parameters, and the whole of it is
written into the comparison's folder. What is there can then not be changed, only gone on with; another plan goes to
another folder, and takes over the cells both have in common by `reuse`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qpeft.errors import InputError
from qpeft.training.keys import nearest
from qpeft.training.pretraining import read_pretraining
from qpeft.training.recipe import DataSection, EvaluationSection, ModelSection, apply_overrides, make_recipe
from qpeft.training.yaml_files import read_yaml

#: the measure that decides where a task has several
_DECIDES = {
    "arithmetic": "strict_accuracy", "gsm8k": "answer_accuracy", "mawps": "answer_accuracy",
    "perplexity": "loss", "dialogue": "rougel", "classification": "accuracy",
}  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class BasePlan(_Strict):
    """A base model: the keys of a recipe's model section, or `pretrain`, whose keys are those of `Pretraining`."""

    model: ModelSection | None = None
    pretrain: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            raise ValueError("a base is a mapping: {name: ...} or {pretrain: {...}}")
        if "pretrain" not in values:
            return {"model": dict(values)}
        model = {"name": "made by this comparison", "dtype": "float32"}
        made = read_pretraining(values["pretrain"] or {}).model_dump()
        return {"pretrain": made, "model": {**model, **_without(values, "pretrain")}}


class TaskPlan(_Strict):
    """What is learned and how it is measured; `training` and `arms` are this task's changes of the plan's own."""

    data: DataSection = Field(default_factory=lambda: DataSection())
    training: dict[str, Any] = Field(default_factory=dict)
    evaluation: EvaluationSection = Field(default_factory=lambda: EvaluationSection())
    metric: str | None = Field(None, description="the measure that decides; null: the task's own")

    @model_validator(mode="before")
    @classmethod
    def _generated_problems_measure_themselves(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and (values.get("data") or {}).get("train", "arithmetic") == "arithmetic":
            return {**values, "evaluation": {"task": "arithmetic", **(values.get("evaluation") or {})}}
        return values

    @model_validator(mode="after")
    def _is_measured(self) -> TaskPlan:
        if self.evaluation.task is None:
            raise ValueError("evaluation.task is null, and a comparison has to measure something: name a task")
        return self

    @property
    def decides(self) -> str:
        """The measure that decides, a name in `CellResult.metrics`."""
        return self.metric or _DECIDES[str(self.evaluation.task)]


class SeedPlan(_Strict):
    """Seeds of the two stages; they may not overlap, so that no seed is chosen for and measured with."""

    sweep: list[int] = Field(default_factory=lambda: [100], description="a learning rate is chosen with these")
    final: list[int] = Field(default_factory=lambda: [0, 1, 2, 3, 4], min_length=1, description="measured with these")

    @model_validator(mode="after")
    def _are_apart(self) -> SeedPlan:
        both = sorted(set(self.sweep) & set(self.final))
        if both:
            raise ValueError(
                f"seed {both[0]} stands in seeds.sweep and in seeds.final: use other seeds for one of them"
            )
        for name in ("sweep", "final"):
            seeds = getattr(self, name)
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"seeds.{name} holds a seed twice")
        return self


class Plan(_Strict):
    """A comparison."""

    output: str = Field(..., description="folder of the comparison")
    title: str = Field("A comparison of adapters", description="heading of the report")
    bases: dict[str, BasePlan] = Field(..., min_length=1)
    tasks: dict[str, TaskPlan] = Field(..., min_length=1)
    places: list[list[str]] | None = Field(None, description="[base, task] pairs; null: every base with every task")
    adapter: dict[str, Any] = Field(..., description="the recipe's adapter section: what is under test")
    arms: list[str | dict[str, Any]] = Field(..., min_length=1)
    learning_rates: list[float] = Field(..., min_length=1, description="log-spaced; at least 5 for a fair choice")
    extend_rates: int = Field(0, ge=0, description="points that may be added where the best rate lies at an edge")
    seeds: SeedPlan = Field(default_factory=lambda: SeedPlan())
    training: dict[str, Any] = Field(default_factory=dict, description="keys of the recipe's training section")
    cache_activations: str | None = Field(None, description="keep activations below the adapters, up to so much: 2GB")
    keep_adapters: bool = Field(False, description="keep the trained adapters of the final cells")
    margin: float | None = Field(
        None, gt=0, description="what still counts as a tie; null: 0.02 of an accuracy, 5 % of what LoRA gains"
    )
    reuse: list[str] = Field(default_factory=list, description="folders or .jsonl files with finished cells")

    @model_validator(mode="after")
    def _is_consistent(self) -> Plan:
        if any(rate <= 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be greater than 0 (got {min(self.learning_rates)})")
        if len(set(self.learning_rates)) < len(self.learning_rates):
            raise ValueError("learning_rates holds a rate twice")
        if len(self.learning_rates) > 1 and not self.seeds.sweep:
            raise ValueError("several learning_rates need seeds.sweep to choose with: give one seed at least")
        if self.extend_rates and len(self.learning_rates) < 2:
            raise ValueError("extend_rates needs two learning_rates at least, whose ratio it goes on with")
        for name in [*self.bases, *self.tasks]:
            if not name or not all(letter.isalnum() or letter in "._" for letter in name.replace("-", "")):
                raise ValueError(f"the name {name!r} becomes part of file names: use letters, digits, . _ and -")
        for pair in self.places or []:
            if len(pair) != 2 or pair[0] not in self.bases or pair[1] not in self.tasks:
                raise ValueError(f"places holds {pair}, which is not a pair [base, task] of this plan")
        for section in [self.training, *(task.training for task in self.tasks.values())]:
            for key in ("learning_rate", "seed"):
                if key in section:
                    raise ValueError(f"training.{key} is what the comparison varies: use {key}s of the plan instead")
        return self

    def pairs(self) -> list[tuple[str, str]]:
        """The (base, task) pairs that are measured."""
        if self.places is not None:
            return [(base, task) for base, task in self.places]
        return [(base, task) for base in self.bases for task in self.tasks]


def load_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan and apply `key=value` overrides; a comparison's folder stands for the plan in it.

    Raises:
        InputError: The file is missing or no mapping, or a key or value is wrong; the message names it.
    """
    path = Path(path)
    values = read_yaml(path / "plan.yaml" if path.is_dir() else path, others={})
    if not isinstance(values, dict):
        raise InputError(f"{path}: a comparison is a mapping of keys (output, bases, tasks, adapter, arms, ...)")
    return make_plan(values, overrides, source=str(path))


def make_plan(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "the comparison") -> Plan:
    """Validate a mapping, after applying overrides.

    Raises:
        InputError: A key is unknown, or a value has the wrong type or lies outside its limits.
    """
    values = apply_overrides(values, overrides, source)
    try:
        plan = Plan.model_validate(values)
    except ValidationError as error:
        raise InputError(_sentence(error, source)) from error
    for base, task in plan.pairs():  # whatever a recipe refuses is refused now, not in the fiftieth cell
        section = plan.tasks[task]
        training = {**plan.training, **section.training}
        make_recipe(
            {
                "output": plan.output,
                "model": plan.bases[base].model.model_dump(),  # type: ignore[union-attr]  # a validator sets it
                "adapter": plan.adapter,
                "data": section.data.model_dump(),
                "training": training,
                "evaluation": section.evaluation.model_dump(),
            },
            source=source,
        )
    return plan


def plan_yaml(plan: Plan) -> str:
    """The plan as YAML, every default written out."""
    values = plan.model_dump()
    for base in values["bases"].values():
        model, pretrain = base.pop("model"), base.pop("pretrain")
        base.update(model if pretrain is None else {"pretrain": pretrain, **_without(model, "name")})
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def changes(before: Any, now: Any, place: str = "") -> list[str]:
    """Where two plans differ, a sentence each: `learning_rates: was [0.001], now [0.002]`."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        found = []
        for key in [*before, *(key for key in now if key not in before)]:
            found += changes(before.get(key), now.get(key), f"{place}.{key}" if place else str(key))
        return found
    return [] if before == now else [f"{place}: was {before!r}, now {now!r}"]


def _without(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != key}


def _sentence(error: ValidationError, source: str) -> str:
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = Plan.model_fields if len(problem["loc"]) == 1 else ()
        return f"{source}: unknown key {place}{nearest(str(problem['loc'][-1]), known)}"
    if problem["type"] == "missing":
        return f"{source}: the key {place} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{source}: {place}: {message}" if place else f"{source}: {message}"
    return f"{source}: {place} cannot be {problem['input']!r}: {message[:1].lower() + message[1:]}"
