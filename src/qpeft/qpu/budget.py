"""What may be spent, and what has been: circuits, jobs, shots, chip seconds, money.

A budget is kept in two ways. What is known beforehand, a batch or a whole run (:mod:`qpeft.qpu.estimate`), is refused
before anything is sent if it would not fit; and before each submission what was used, as the vendor reported it, plus
the submission itself has to fit, so that a run stops between submissions. A job of which nobody knows whether the
vendor took it counts as spent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from qpeft.errors import InputError
from qpeft.qpu.protocol import Caps, ProviderError


class BudgetSpent(ProviderError):
    """The budget does not cover the next submission; what was answered is kept."""


@dataclass(frozen=True)
class Spend:
    """What was used, or will be.

    Args:
        circuits: (Packed) circuits.
        jobs: Submissions.
        shots: Shots of all circuits.
        seconds: Chip time.
        money: In the currency of the provider's price; ``None`` where the price is not known.
    """

    circuits: int = 0
    jobs: int = 0
    shots: int = 0
    seconds: float = 0.0
    money: float | None = 0.0

    def __add__(self, other: Spend) -> Spend:
        money = None if self.money is None or other.money is None else self.money + other.money
        return Spend(
            self.circuits + other.circuits,
            self.jobs + other.jobs,
            self.shots + other.shots,
            self.seconds + other.seconds,
            money,
        )


@dataclass(frozen=True)
class Budget:
    """Upper limits; ``None`` is no limit.

    Args:
        circuits: (Packed) circuits.
        jobs: Submissions.
        shots: Shots of all circuits.
        seconds: Chip time.
        money: In the currency of the provider's price.

    Raises:
        InputError: A limit below 0.

    Example:
        >>> Budget(circuits=100, money=5.0).excess(Spend(circuits=120, money=4.0))
        '120 of 100 circuits'
        >>> Budget(jobs=3).excess(Spend(jobs=3)) is None
        True
    """

    circuits: int | None = None
    jobs: int | None = None
    shots: int | None = None
    seconds: float | None = None
    money: float | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"the budget of {field.name} must be 0 or more (got {value}); leave it out for none.")

    def excess(self, spend: Spend) -> str | None:
        """What does not fit, in words, or ``None`` where all does; an unknown price fits no budget of money."""
        found = []
        for field in fields(self):
            limit, value = getattr(self, field.name), getattr(spend, field.name)
            if limit is None:
                continue
            if value is None:
                found.append("a price that is not known (set the budget in circuits, jobs, shots or seconds)")
            elif value > limit * (1 + 1e-9):
                found.append(f"{value:,.10g} of {limit:,.10g} {field.name}")
        return ", ".join(found) or None


def cost_of(circuits: int, shots: int, caps: Caps, repetition_us: float) -> Spend:
    """What one submission will use: seconds = circuits·shots·repetition + overhead of the job, and its price.

    Args:
        circuits: (Packed) circuits of the submission.
        shots: Shots of each.
        caps: Of the provider.
        repetition_us: Time from one shot to the next, microseconds.
    """
    seconds = circuits * shots * repetition_us * 1e-6 + caps.seconds_per_job
    money: float | None = None if caps.paid else 0.0
    if caps.price is not None:
        price = caps.price
        money = price.per_job + circuits * (price.per_circuit + shots * price.per_shot) + seconds * price.per_second
    return Spend(circuits, 1, circuits * shots, seconds, money)
