"""What a run will use, from plain counts, before anything is sent.

With R rows (samples, or tokens, times modules), c circuits a row (measurement bases times one for a forward pass,
1 + 2P for parameter shift with P angles, 2 for SPSA), k blocks side by side in one packed circuit, S shots, C circuits
a job and B batches:

    circuits = B·R·c        packed = B·⌈R·c / k⌉ + B·calibration        jobs = B·⌈packed per batch / C⌉
    chip seconds = packed·S·t_repetition + jobs·t_job

The wall time adds a second a job for asking about it; the queue in front of a chip is not in it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qpeft.chips import ChipSnapshot
from qpeft.errors import InputError
from qpeft.qpu.budget import Spend, cost_of
from qpeft.qpu.protocol import Caps

_ASKING_SECONDS = 1.0


@dataclass(frozen=True)
class Estimate:
    """What a run will use.

    Args:
        circuits: Logical circuits: one for every row, measurement basis and shift.
        packed: Circuits that are sent, each with several logical ones side by side.
        jobs: Submissions.
        shots: Shots of all packed circuits.
        chip_seconds: Shots times repetition time, and the overhead of jobs.
        wall_seconds: A guess, without the queue.
        price: What it costs, or ``None`` where the price is not known.
        currency: Of the price.
    """

    circuits: int
    packed: int
    jobs: int
    shots: int
    chip_seconds: float
    wall_seconds: float
    price: float | None
    currency: str = ""

    @property
    def spend(self) -> Spend:
        """The same as a budget counts it."""
        return Spend(self.packed, self.jobs, self.shots, self.chip_seconds, self.price)

    def __add__(self, other: Estimate) -> Estimate:
        if {self.currency, other.currency} - {""} not in ({self.currency}, {other.currency}, set()):
            raise InputError(f"prices in {self.currency} and {other.currency} cannot be added; estimate them apart.")
        price = None if self.price is None or other.price is None else self.price + other.price
        return Estimate(
            self.circuits + other.circuits,
            self.packed + other.packed,
            self.jobs + other.jobs,
            self.shots + other.shots,
            self.chip_seconds + other.chip_seconds,
            self.wall_seconds + other.wall_seconds,
            price,
            self.currency or other.currency,
        )

    def sentence(self) -> str:
        """In words.

        Example:
            >>> Estimate(64, 6, 1, 6000, 3.96, 4.96, None).sentence()
            '64 circuits in 6 packed ones, 1 job, 6,000 shots, 4 s on the chip, about 5 s in all without the queue, \
price unknown'
        """
        price = "price unknown" if self.price is None else f"{self.price:,.2f} {self.currency}".strip()
        return (
            f"{self.circuits:,} circuits in {self.packed:,} packed ones, {self.jobs:,} job{'s' * (self.jobs != 1)}, "
            f"{self.shots:,} shots, {duration(self.chip_seconds)} on the chip, about {duration(self.wall_seconds)} in "
            f"all without the queue, {price}"
        )


def estimate(
    rows: int,
    shots: int,
    caps: Caps,
    snapshot: ChipSnapshot,
    *,
    circuits_per_row: int = 1,
    blocks: int = 1,
    batches: int = 1,
    calibration: int = 0,
    in_flight: int = 4,
) -> Estimate:
    """Estimate a run of equal batches.

    Args:
        rows: Rows of a batch: samples or tokens that go to the chip, times modules.
        shots: Shots of every circuit.
        caps: Of the provider.
        snapshot: Of the chip.
        circuits_per_row: Measurement bases times the circuits of the gradient rule.
        blocks: Circuits side by side in one packed circuit.
        batches: Calls of the broker: steps, say.
        calibration: Packed circuits that each batch adds.
        in_flight: Jobs at the vendor at once.

    Raises:
        InputError: A count below 0, fewer than 1 block, or shots that the provider does not take.

    Example:
        >>> from qpeft.chips import load_chip
        >>> caps = Caps(200, 100, 10_000, packs=True, finds=False, paid=True, seconds_per_job=3.0)
        >>> cost = estimate(2112, 1000, caps, load_chip("wukong-72"), blocks=12)
        >>> cost.circuits, cost.packed, cost.jobs
        (2112, 176, 1)
    """
    for name, value, least in (
        ("rows", rows, 0), ("circuits_per_row", circuits_per_row, 1), ("blocks", blocks, 1), ("batches", batches, 0),
        ("calibration", calibration, 0), ("in_flight", in_flight, 1),
    ):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of {least} or more (got {value!r}).")
    if not caps.min_shots <= shots <= caps.max_shots:
        raise InputError(f"shots must be {caps.min_shots} to {caps.max_shots} here (got {shots}).")
    if blocks > 1 and not caps.packs:
        raise InputError(f"this provider runs one block at a time (got blocks={blocks}); set blocks=1.")
    logical = rows * circuits_per_row
    packed = math.ceil(logical / blocks) + (calibration if logical else 0)
    size = caps.circuits_per_job(shots)
    jobs = math.ceil(packed / size)
    one = Spend()
    for start in range(0, packed, size):
        one += cost_of(min(size, packed - start), shots, caps, snapshot.repetition_us)
    waiting = jobs * (caps.seconds_per_job + _ASKING_SECONDS) / min(in_flight, max(jobs, 1))
    wall = packed * shots * snapshot.repetition_us * 1e-6 + waiting
    return Estimate(
        batches * logical,
        batches * packed,
        batches * jobs,
        batches * one.shots,
        batches * one.seconds,
        batches * wall,
        None if one.money is None else batches * one.money,
        caps.price.currency if caps.price else "",
    )


def duration(seconds: float) -> str:
    """Seconds as people say them.

    Example:
        >>> duration(4.2), duration(150), duration(12_345)
        ('4 s', '2.5 min', '3.4 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s" if seconds >= 1 or seconds == 0 else f"{seconds:.2g} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
