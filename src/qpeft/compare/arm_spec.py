"""An arm of a comparison as it will be run, and the adapter under test from which arms are made."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qpeft.adapters import QTHAConfig
from qpeft.compare.counting import adapted, share_text
from qpeft.compare.results import ArmInfo
from qpeft.errors import InputError
from qpeft.training.parameters import parameter_table
from qpeft.training.recipe import adapter_config_class

#: where an adapter sits and what is trained beside it, which all arms share
_SHARED = (
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save",
    "trainable_token_indices",
)  # fmt: skip


@dataclass(frozen=True)
class ArmSpec:
    """An arm, resolved: what a recipe needs to train it, or which arm's trained numbers it evaluates otherwise.

    Attributes:
        info: As the report names it.
        adapter: Adapter section of the recipe; `None` for the frozen base and for evaluation arms.
        training: Changes of the recipe's training section.
        learning_rates: To sweep in place of the plan's.
        of: For an evaluation arm: the arm whose trained numbers it takes.
        branch: For an evaluation arm: what stands for the circuits' outputs, `"off"` or `"mean"`.
        execution: For an evaluation arm: an execution section, the executor the circuits run on.
        trainable: Trained numbers, counted on the base of the comparison; 0 where nothing is trained.
    """

    info: ArmInfo
    adapter: dict[str, Any] | None = None
    training: dict[str, Any] = field(default_factory=dict)
    learning_rates: list[float] | None = None
    of: str | None = None
    branch: Literal["off", "mean"] | None = None
    execution: dict[str, Any] | None = None
    trainable: int = 0

    @property
    def name(self) -> str:
        return self.info.name

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ArmSpec:
        """The inverse of `dataclasses.asdict`, also after a way through JSON."""
        return cls(**{**values, "info": ArmInfo(**values["info"])})


class Subject:
    """The adapter under test on a base model.

    Args:
        section: Adapter section of the recipe.
        model: The base on the meta device.

    Attributes:
        section: As given.
        config: Of the method.
        model: As given.
        trainable: Numbers it trains.
        angles: Those of them that are angles of circuits.

    Raises:
        InputError: The section is not usable, does not fit the model, or starts from trained numbers.
    """

    def __init__(self, section: Mapping[str, Any], model: Any) -> None:
        if section.get("start_from") is not None:
            raise InputError(
                "adapter.start_from lets the adapter under test begin with trained numbers, which no other arm "
                "could: leave it out"
            )
        self.section = dict(section)
        self.model = model
        built = adapted(model, section)
        self.config: Any = built.active_peft_config
        table = parameter_table(built)
        self.trainable, self.angles = table["total"], table.get("angles", 0)

    @property
    def method(self) -> str:
        return str(self.section.get("method", "qtha")).lower()

    @property
    def qtha(self) -> QTHAConfig | None:
        """The config, if the method is QTHA."""
        return self.config if isinstance(self.config, QTHAConfig) else None

    @property
    def rank(self) -> int | None:
        """Width of the bottleneck, if the method has one."""
        rank = getattr(self.config, "r", None)
        return rank if isinstance(rank, int) and rank > 0 else None

    @property
    def scaling(self) -> float | None:
        """Factor of the adapter's output, alpha / r, if the method has one."""
        if self.qtha is not None:
            return self.qtha.scaling
        alpha = getattr(self.config, "lora_alpha", getattr(self.config, "alpha", None))
        return None if self.rank is None or not isinstance(alpha, int | float) else alpha / self.rank

    def elsewhere(self, method: str) -> dict[str, Any]:
        """The section of another method at the same places.

        Raises:
            InputError: The method cannot sit there.
        """
        fields = {each.name for each in dataclasses.fields(adapter_config_class(method))}
        section: dict[str, Any] = {"method": method}
        for key in _SHARED:
            value = getattr(self.config, key, None)  # as peft resolved it: other methods may have other defaults
            if not value and value != 0:
                continue
            if key not in fields:
                raise InputError(f"method {method} has no {key}, which the adapter under test uses")
            section[key] = sorted(value) if isinstance(value, set) else value
        dropout = getattr(self.config, "dropout", getattr(self.config, "lora_dropout", 0.0))
        if dropout and f"{method}_dropout" in fields:
            section[f"{method}_dropout"] = dropout
        return section

    def against(self, trainable: int) -> str:
        """How a count compares with that of the adapter under test."""
        difference = trainable - self.trainable
        if not difference:
            return "exactly as many trained numbers"
        more = "more" if difference > 0 else "fewer"
        return f"{abs(difference):,} trained numbers {more} ({share_text(difference, self.trainable)})"


def has_circuit(config: Any) -> bool:
    """Whether an adapter has circuits."""
    return isinstance(config, QTHAConfig) and config.architecture.branch == "circuit"


def entangles(config: Any) -> bool:
    """Whether an adapter has circuits with entanglement."""
    return has_circuit(config) and config.entanglement == "ring" and config.r > 1
