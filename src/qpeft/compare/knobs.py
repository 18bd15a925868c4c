"""What sets the size of each method of peft, and what makes it start as the base model: one table.

`r (d_in + d_out)` numbers a layer is LoRA's count; every method has another, and the counts here are never computed
from formulas but by building the adapter. The settings below are the methods' own defaults, but for the size, and for
starts that would not be the base model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Knob:
    """How a method is sized.

    Attributes:
        key: Field of its config that sets the size; `None` where there is none.
        values: `"rising"` (any whole number, more of it is more numbers), or the divisors of the widths of the adapted
            layers' inputs (`"inputs"`), or of all their widths (`"widths"`).
        lowest: Smallest value.
        step: Between values.
        fixed: Fields that are always set so.
        variants: Further fields, tried in this order until one comes near.
        follows: Fields that follow from the value.
        alpha: Field that is kept in proportion to the value, so that the scale stays.
        per_module: Whether single modules can have another rank, as LoRA's `rank_pattern` does.
        note: What a reader of a comparison should know.
    """

    key: str | None
    values: Literal["rising", "inputs", "widths"] = "rising"
    lowest: int = 1
    step: int = 1
    fixed: Mapping[str, Any] = field(default_factory=dict)
    variants: tuple[Mapping[str, Any], ...] = ({},)
    follows: Callable[[int], dict[str, Any]] = lambda value: {}
    alpha: str | None = None
    per_module: bool = False
    note: str = ""


def _projected_rank(u: int) -> dict[str, Any]:
    """TinyLoRA's r x r matrix has r^2 directions: with fewer than u, some of its u numbers would be idle."""
    return {"r": max(2, math.ceil(math.sqrt(u)))}


KNOBS: dict[str, Knob] = {
    "lora": Knob("r", alpha="lora_alpha", per_module=True),
    "c3a": Knob("block_size", "widths", fixed={"init_weights": True}),
    "delora": Knob("r", per_module=True),
    "fourierft": Knob("n_frequency", fixed={"init_weights": True}),
    "hira": Knob("r"),
    "hra": Knob("r", lowest=2, step=2, note="its r is even, so that it starts as the base model up to rounding"),
    "ia3": Knob(None, fixed={"feedforward_modules": []}),
    "loha": Knob("r", alpha="alpha"),
    "lokr": Knob("r", alpha="alpha", variants=({}, *({"decompose_factor": factor} for factor in (4, 8, 16, 2)))),
    "miss": Knob("r"),
    "oft": Knob("oft_block_size", "inputs", lowest=2, variants=({}, {"block_share": True})),
    "randlora": Knob("r", "widths", follows=lambda r: {"randlora_alpha": 20 * r}),
    "tinylora": Knob("u", follows=_projected_rank),
    "vera": Knob("r"),
    "waveft": Knob("n_frequency"),
}
