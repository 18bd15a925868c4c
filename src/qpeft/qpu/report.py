"""What an executor has done, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class RowCount:
    """How many rows of a layer ran where.

    Args:
        chip: Rows that ran on the executor.
        simulated: Rows that ran on the simulator beside it.
        covered: Rows that took the result of another, as tokens of a pooled sequence do.
    """

    chip: int = 0
    simulated: int = 0
    covered: int = 0

    def __add__(self, other: RowCount) -> RowCount:
        return RowCount(self.chip + other.chip, self.simulated + other.simulated, self.covered + other.covered)

    @property
    def share(self) -> float:
        """Share of all rows whose result comes from the executor."""
        total = self.chip + self.simulated + self.covered
        return (self.chip + self.covered) / total if total else 0.0


@dataclass(frozen=True)
class ExecutorReport:
    """What an executor has done so far.

    Args:
        executor: Its name.
        chip: Name of the chip.
        circuits: Circuits of one row and one measurement basis, as gradient rules count them, calibrations too.
        packed_circuits: Circuits that were sent, each with several of those side by side.
        jobs: Submissions.
        shots: Shots of all packed circuits.
        chip_seconds: What the provider says, or shots times the chip's repetition time.
        cost: What the provider charged; ``None`` where nobody knows.
        currency: Of the cost.
        rows: Rows by purpose.
        regions: Regions of the latest plan.
        calibrations: Ids of the calibrations that were used, oldest first.
        layers: Rows by layer, where layers were switched with :func:`qpeft.adapters.execution.run_on`.
    """

    executor: str
    chip: str
    circuits: int = 0
    packed_circuits: int = 0
    jobs: int = 0
    shots: int = 0
    chip_seconds: float = 0.0
    cost: float | None = None
    currency: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    regions: int = 0
    calibrations: tuple[str, ...] = ()
    layers: dict[str, RowCount] = field(default_factory=dict)

    @property
    def circuits_per_job(self) -> float:
        """Circuits of one row that a job carries in the mean."""
        return self.circuits / self.jobs if self.jobs else 0.0
