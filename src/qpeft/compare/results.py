"""What a comparison measured: one `CellResult` for every base, task, arm, learning rate and seed, kept as JSON.

A *sweep* cell chooses a learning rate on the validation set and never sees the test set; a *final* cell opens the
test set once. An arm that trains nothing of its own (the frozen base, a branch switched off at evaluation, the same
adapter on a chip) is measured on what another cell trained, and stands here as a cell like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Stage = Literal["sweep", "final"]

#: of the metrics, those where less is better
LOWER_IS_BETTER = frozenset({"loss", "perplexity", "train_loss", "eval_loss"})


#: as a share: where trained numbers differ by more, they are not called the same count
SAME_COUNT = 0.05


@dataclass(frozen=True)
class Accounting:
    """What a cell cost.

    Attributes:
        trainable: Trained numbers, all kinds together.
        angles: Those of them that are angles of circuits.
        adapter_bytes: The saved adapter on disk.
        peak_memory_bytes: Of the process that trained it, with everything it had run before.
        seconds: Wall clock of the training steps.
        tokens_per_second: Median over the steps.
        flops: Floating-point operations of the training, matrix products alone; `None` where not counted.
        circuits: Circuits that the training evaluated forward.
    """

    trainable: int = 0
    angles: int = 0
    adapter_bytes: int = 0
    peak_memory_bytes: int = 0
    seconds: float = 0.0
    tokens_per_second: float = 0.0
    flops: float | None = None
    circuits: int = 0


@dataclass(frozen=True)
class CellResult:
    """One measured cell.

    Attributes:
        base: Name of the base model in the plan.
        task: Name of the task in the plan.
        arm: Name of the arm in the plan.
        learning_rate: 0 for an arm that trains nothing of its own.
        seed: Of the training; the data order follows it.
        stage: `"sweep"` or `"final"`.
        status: `"done"`, or `"diverged"` (a loss, gradient or number stopped being finite) with a `reason`.
        train_loss: Mean of the last tenth of the steps.
        mean_train_loss: Mean over all steps, which papers often report.
        eval_loss: On the validation set after the last step.
        losses: `(step, loss)` of the logged steps.
        eval_losses: `(step, loss)` on the validation set.
        metrics: Of the test set: name to value (accuracies between 0 and 1, losses in nats a token). Empty in a sweep.
        items: Of the test set: name of an item-wise measure to one number an item, in the order of the set, the same
            for every arm: `"answer"` and `"strict"` (0 or 1), or `"loss"` with `"tokens"` (summed loss and labelled
            tokens of each sample).
        accounting: What it cost.
        versions: Packages and machine.
    """

    base: str
    task: str
    arm: str
    learning_rate: float
    seed: int
    stage: Stage
    status: Literal["done", "diverged"] = "done"
    reason: str = ""
    train_loss: float | None = None
    mean_train_loss: float | None = None
    eval_loss: float | None = None
    losses: tuple[tuple[int, float], ...] = ()
    eval_losses: tuple[tuple[int, float], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    items: dict[str, tuple[float, ...]] = field(default_factory=dict)
    accounting: Accounting = field(default_factory=Accounting)
    versions: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> CellResult:
        """The inverse of `to_dict`, also after a way through JSON."""
        values = dict(values)
        values["accounting"] = Accounting(**values.get("accounting", {}))
        for name in ("losses", "eval_losses"):
            values[name] = tuple((int(step), float(loss)) for step, loss in values.get(name, ()))
        values["items"] = {name: tuple(column) for name, column in values.get("items", {}).items()}
        return cls(**values)


@dataclass(frozen=True)
class ArmInfo:
    """An arm as the report names it.

    Attributes:
        name: As in the plan.
        label: For people, as `LoRA, same count (r = 1)`.
        kind: `"adapter"` (the one under test), `"reference"` (LoRA at the same rank), `"matched"` (another method at
            the same count), `"control"` (the adapter with a part changed), `"evaluation"` (the adapter's trained
            numbers, evaluated otherwise) or `"base"`.
        note: One sentence: what it is for; for a matched arm the remaining difference in numbers.
        circuit: Whether circuits with entanglement take part.
    """

    name: str
    label: str
    kind: Literal["adapter", "reference", "matched", "control", "evaluation", "base"]
    note: str = ""
    circuit: bool = False


@dataclass(frozen=True)
class GridResults:
    """Everything that a comparison has measured so far.

    Attributes:
        title: Of the plan.
        arms: By name, in the order of the plan, as matched on the first base.
        cells: All measured cells.
        planned: Number of cells of the whole plan, for partial reports; 0 if unknown.
        metric: Of each task the measure that decides, a name in `CellResult.metrics`.
        command: What repeats the comparison.
        plan: The plan as written before the first step.
        elsewhere: By base, arms whose size, and so label and note, are others there.
    """

    title: str
    arms: dict[str, ArmInfo]
    cells: tuple[CellResult, ...]
    planned: int = 0
    metric: dict[str, str] = field(default_factory=dict)
    command: str = ""
    plan: dict[str, Any] = field(default_factory=dict)
    elsewhere: dict[str, dict[str, ArmInfo]] = field(default_factory=dict)

    def arms_on(self, base: str) -> dict[str, ArmInfo]:
        """All arms, in the order of the plan, as they were matched on a base."""
        own = self.elsewhere.get(base, {})
        return {name: own.get(name, arm) for name, arm in self.arms.items()}

    def places(self) -> list[tuple[str, str]]:
        """The (base, task) pairs that were measured, in the order of the cells."""
        return list(dict.fromkeys((cell.base, cell.task) for cell in self.cells))

    def select(
        self, base: str, task: str, arm: str | None = None, stage: Stage | None = None, done: bool = True
    ) -> list[CellResult]:
        """Cells of one place, by seed; with `done` without the diverged ones."""
        found = [
            cell
            for cell in self.cells
            if (cell.base, cell.task) == (base, task)
            and arm in (None, cell.arm)
            and stage in (None, cell.stage)
            and (cell.status == "done" or not done)
        ]
        return sorted(found, key=lambda cell: (cell.arm, cell.learning_rate, cell.seed))

    def arms_at(self, base: str, task: str, stage: Stage = "final") -> list[ArmInfo]:
        """Arms with at least one finished cell of a stage at a place, in the order of the plan."""
        present = {cell.arm for cell in self.select(base, task, stage=stage)}
        return [arm for name, arm in self.arms_on(base).items() if name in present]


def chosen_rate(cells: Sequence[CellResult]) -> float | None:
    """The learning rate of the lowest mean validation loss over the sweep's seeds, diverged rates left out.

    A rate counts as diverged where any of its seeds diverged. Ties go to the lower rate.
    """
    rates = dict.fromkeys(sorted(cell.learning_rate for cell in cells))
    means = []
    for rate in rates:
        own = [cell for cell in cells if cell.learning_rate == rate]
        losses = [cell.eval_loss for cell in own if cell.status == "done" and cell.eval_loss is not None]
        if own and len(losses) == len(own):
            means.append((sum(losses) / len(losses), rate))
    return min(means)[1] if means else None


def by_arm(cells: Sequence[CellResult]) -> Iterator[tuple[str, list[CellResult]]]:
    """Cells grouped by arm, arms in order of appearance."""
    for arm in dict.fromkeys(cell.arm for cell in cells):
        yield arm, [cell for cell in cells if cell.arm == arm]
