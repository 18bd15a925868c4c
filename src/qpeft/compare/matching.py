"""Sizing a method of peft so that it trains as many numbers as another adapter.

A comparison at equal rank says little where one side spends fewer numbers at that rank. Here a method's size is chosen
so that the count comes as near as the method allows; the remaining difference is told and never hidden. Counts come
from adapters that are really built, on the meta device (:mod:`qpeft.compare.counting`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import nn

from qpeft.compare.counting import adapted, count_trained, share_text
from qpeft.compare.knobs import KNOBS, Knob
from qpeft.compare.results import SAME_COUNT
from qpeft.errors import InputError
from qpeft.training.keys import nearest

#: as a share of the count aimed at: near enough not to try a variant of the method
_NEAR = 0.01

_HIGHEST = 2**20


@dataclass(frozen=True)
class Match:
    """A method at the size that comes nearest.

    Attributes:
        section: Adapter section of a recipe.
        count: Numbers it trains.
        target: Numbers aimed at.
        note: What a reader should know of the method at this size; may be empty.
    """

    section: dict[str, Any]
    count: int
    target: int
    note: str = ""

    @property
    def difference(self) -> int:
        """Numbers more than aimed at; negative where there are fewer."""
        return self.count - self.target

    @property
    def matches(self) -> bool:
        """Whether the counts are within 5 % of each other."""
        return abs(self.difference) <= SAME_COUNT * self.target

    def sentence(self) -> str:
        """The count and the remaining difference."""
        count = f"{self.count:,} trained numbers"
        if not self.difference:
            told = f"{count}, exactly as many"
        else:
            more = "more" if self.difference > 0 else "fewer"
            share = share_text(self.difference, self.target)
            amount = f"{abs(self.difference):,} {more} than {self.target:,} ({share})"
            told = f"{count}, {amount}" if self.matches else f"cannot match: the nearest is {count}, {amount}"
        return f"{told}; {self.note}" if self.note else told


def match_count(section: Mapping[str, Any], target: int, model: nn.Module) -> Match:
    """Size a method so that it trains a number of parameters.

    LoRA and DeLoRA get ranks r and r + 1 on different modules, so that less than one module's rank remains, with
    the same scale everywhere. Other methods get the value of their own size (:data:`qpeft.compare.knobs.KNOBS`).

    Args:
        section: Adapter section of a recipe; its size is what changes, and its scale (alpha / r) stays.
        target: Trained numbers aimed at.
        model: The base on the meta device.

    Raises:
        InputError: The method's size is not known here, or the section does not fit the model.

    Example:
        >>> from qpeft.compare.matching import match_count
        >>> from qpeft.models.empty import empty_model
        >>> section = {"method": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]}
        >>> match = match_count(section, 70_320, empty_model("smollm2-135m-instruct"))
        >>> match.section["r"], match.count, match.sentence()
        (1, 70272, '70,272 trained numbers, 48 fewer than 70,320 (0.068 %)')
    """
    method = str(section.get("method", "qtha")).lower()
    if method not in KNOBS:
        raise InputError(
            f"the size of method {method!r} is not known here{nearest(method, KNOBS)}; "
            f"there are: {', '.join(sorted(KNOBS))}"
        )
    knob = KNOBS[method]
    best: Match | None = None
    for variant in knob.variants:
        sized = _sizes(section, knob, variant)
        found, count = _nearest(sized, knob, target, section, model)
        match = Match(found, count, target, _note(knob, variant, found))
        if best is None or abs(match.difference) < abs(best.difference):
            best = match
        if abs(best.difference) <= _NEAR * target:
            break
    assert best is not None
    return _with_further_ranks(best, sized, knob, model) if knob.per_module and best.difference else best


def _sizes(section: Mapping[str, Any], knob: Knob, variant: Mapping[str, Any]) -> Callable[[int], dict[str, Any]]:
    """The section at each value of its knob."""
    scale = None
    if knob.alpha is not None:
        scale = section.get(knob.alpha, 8) / section.get("r", 8)  # peft's defaults of both

    def sized(value: int) -> dict[str, Any]:
        found = {**section, **knob.fixed, **variant}
        if knob.key is not None:
            found |= {knob.key: value, **knob.follows(value)}
        if knob.alpha is not None and scale is not None:
            found[knob.alpha] = _plain(scale * value)
        return found

    return sized


def _nearest(
    sized: Callable[[int], dict[str, Any]], knob: Knob, target: int, section: Mapping[str, Any], model: nn.Module
) -> tuple[dict[str, Any], int]:
    if knob.key is None:
        found = sized(0)
        return found, count_trained(model, found)
    if knob.values == "rising":
        value, count = _rise(lambda value: count_trained(model, sized(value)), target, knob.lowest, knob.step)
        return sized(value), count
    counts: dict[int, int] = {}
    reason = "its widths have no common divisor"
    for value in _divisors(section, model, outputs=knob.values == "widths"):
        if value >= knob.lowest:
            try:
                counts[value] = count_trained(model, sized(value))
            except InputError as error:
                reason = str(error)
    if not counts:
        raise InputError(f"method {section['method']} has no size that fits this model: {reason}")
    value = min(counts, key=lambda value: abs(counts[value] - target))
    return sized(value), counts[value]


def _rise(count: Callable[[int], int], target: int, lowest: int, step: int) -> tuple[int, int]:
    """The value whose count is nearest, where counts rise; a value that a method refuses counts as too large."""
    known = {lowest: float(count(lowest))}

    def at(value: int) -> float:
        if value not in known:
            try:
                known[value] = count(value)
            except InputError:
                known[value] = math.inf
        return known[value]

    low, high, tries = lowest, _HIGHEST, 0
    if at(low) >= target:
        return low, int(at(low))
    guess = low + step
    while high - low > step:
        previous = low
        if at(guess) >= target:
            high = guess
        else:
            low = guess
        tries += 1
        slope = (at(low) - at(previous)) / (low - previous) if low > previous else 0.0
        if slope > 0 and tries < 8:  # counts are nearly always straight lines
            guess = low + int((target - at(low)) / slope)
        else:
            guess = (low + high) // 2 if high < _HIGHEST else 2 * low
        guess = lowest + (guess - lowest) // step * step
        guess = min(max(guess, low + step), high - step)
        if high == _HIGHEST and tries > 8 and at(low) == at(previous):  # more of it changes nothing any more
            break
    value = min((value for value in known if known[value] < math.inf), key=lambda v: (abs(known[v] - target), v))
    return value, int(known[value])


def _divisors(section: Mapping[str, Any], model: nn.Module, outputs: bool) -> Iterable[int]:
    layers = _lora_layers(section, model)
    widths = {layer.in_features for layer in layers.values()}
    if outputs:
        widths |= {layer.out_features for layer in layers.values()}
    common = math.gcd(*widths)
    return [value for value in range(1, common + 1) if common % value == 0]


def _lora_layers(section: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The layers that a section adapts, by name, seen through a LoRA on the same."""
    places = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
    probe = {"method": "lora", "r": 1, **{key: section[key] for key in places if key in section}}
    return {
        name.removeprefix("base_model.model."): module
        for name, module in adapted(model, probe).named_modules()
        if isinstance(module, LoraLayer)
    }


def _with_further_ranks(match: Match, sized: Callable[[int], dict[str, Any]], knob: Knob, model: nn.Module) -> Match:
    """One rank more for some modules, spread over the model, so that less than one module's rank remains."""
    r = match.section["r"]
    below, count = match.section, match.count
    if match.difference > 0:
        if r == 1:
            return match
        r -= 1
        below = sized(r)
        count = count_trained(model, below)
    chosen = _further(_module_costs(below, model), match.target - count)
    if not chosen:
        return match
    found = {**below, "rank_pattern": dict.fromkeys(chosen, r + 1)}
    if knob.alpha is not None:
        found["alpha_pattern"] = dict.fromkeys(chosen, sized(r + 1)[knob.alpha])
    note = f"r = {r}, and {r + 1} on {len(chosen)} modules"
    finer = Match(found, count_trained(model, found), match.target, note)
    return finer if abs(finer.difference) < abs(match.difference) else match


def _module_costs(section: Mapping[str, Any], model: nn.Module) -> dict[str, int]:
    """What one rank takes on each module."""
    return {
        name: sum(p.numel() for p in layer.parameters() if p.requires_grad)
        for name, layer in _lora_layers(section, model).items()
    }


def _further(costs: Mapping[str, int], remaining: int) -> list[str]:
    """Modules whose costs together come nearest to a number: an equal share of each cost, then what still fits."""
    by_cost: dict[int, list[str]] = {}
    for name, cost in costs.items():
        by_cost.setdefault(cost, []).append(name)
    share = remaining / sum(costs.values())
    taken = {cost: int(share * len(names)) for cost, names in by_cost.items()}
    left = remaining - sum(cost * number for cost, number in taken.items())
    for cost in sorted(by_cost, reverse=True):
        more = min(len(by_cost[cost]) - taken[cost], left // cost)
        taken[cost] += more
        left -= cost * more
    smallest = min((cost for cost in by_cost if taken[cost] < len(by_cost[cost])), default=0)
    if smallest and smallest - left < left:  # one more comes nearer than none
        taken[smallest] += 1
    return [name for cost, names in by_cost.items() for name in _spread(names, taken[cost])]


def _spread(names: list[str], number: int) -> list[str]:
    """So many of the names, evenly over the list."""
    return [names[(2 * k + 1) * len(names) // (2 * number)] for k in range(number)]


def _note(knob: Knob, variant: Mapping[str, Any], section: Mapping[str, Any]) -> str:
    size = [f"{knob.key} = {section[knob.key]}"] if knob.key is not None else ["it has no size to choose"]
    size += [f"{key} = {value}" for key, value in variant.items()]
    return ", ".join([*size, *([knob.note] if knob.note else [])])


def _plain(number: float) -> float | int:
    """A whole number as such: configs and their readers expect one."""
    return int(number) if float(number).is_integer() else number
