"""One chip executor for all processes of a run: one ledger, one budget, one order of jobs.

Every process runs the same layers in the same order. At each call of a layer they send their rows to the first one,
which runs them together, in the order of the processes, as one process with the whole batch would:

    rows of process 0, rows of process 1, ... -> the executor -> each process's part of the expectations

so that a run that was killed asks for the same batches again, and none is paid for twice. A process without rows sends
none, and waits with the others. Twins are differentiated where their rows are, with what the first process tells of
the chip and of the regions where these rows ran.

What goes wrong in the first process ends all of them. So does a process that is gone, which the others find out here.
They wait for a chip as long as the first one does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from qpeft.chips import ChipSnapshot
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit
from qpeft.errors import TrainingError
from qpeft.qpu.executor import ChipExecutor
from qpeft.qpu.plans import Planner
from qpeft.qpu.report import ExecutorReport, RowCount
from qpeft.qpu.twin import Ran, expected
from qpeft.training import ranks

T = TypeVar("T")

_QUEUE = timedelta(days=30)  # a chip's queue is no fault; a process that died is noticed at once


@dataclass(frozen=True)
class _Asked:
    """What a process asks for."""

    circuit: str
    purpose: str
    inputs: Tensor  # (rows, n_inputs)
    weights: Tensor  # (n_weights,)


@dataclass(frozen=True)
class _Answer:
    """What a process gets."""

    values: Tensor  # (rows, n_observables)
    ran: Ran | None
    model: tuple[ChipSnapshot, float, dict[str, Any]] | None  # where the chip is another than at the last answer


@dataclass(frozen=True)
class _Failure:
    """Why the first process ends the run."""

    sentence: str


class RankedExecutor:
    """An executor that all processes of a run call together.

    Args:
        executor: In the first process; it closes it.

    Raises:
        RankLost: A process is gone.
    """

    def __init__(self, executor: ChipExecutor | None) -> None:
        self._executor = executor
        self._group: Any = dist.new_group(backend="gloo", timeout=_QUEUE)
        ranks.keep(self._group)
        self._chip = ""
        self._planner = Planner({})
        self._model: VirtualChip | None = None
        self._ran: Ran | None = None
        self.name: str = self._from_first(lambda: self._first.name)

    def __deepcopy__(self, memo: dict[int, Any]) -> RankedExecutor:
        return self  # copies of a model share the chip

    @property
    def _first(self) -> ChipExecutor:
        assert self._executor is not None
        return self._executor

    def expectations(self, circuit: Circuit, inputs: Tensor, weights: Tensor, purpose: str = "forward") -> Tensor:
        """``(rows, n_inputs) -> (rows, n_observables)`` of this process's rows, not differentiable.

        Raises:
            SaidElsewhere: In all processes but the first, where that fails.
            RankLost: A process is gone.
        """
        asked = _Asked(circuit.key, purpose, inputs.detach().cpu(), weights.detach().cpu())
        answer = self._exchange(asked)
        self._ran = answer.ran
        if answer.model is not None:
            chip, crosstalk, options = answer.model
            self._planner, self._model = Planner(options), VirtualChip(chip, crosstalk=crosstalk)
        return answer.values.to(inputs.device)

    def twin(self, circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
        """What the last call was expected to return for this process's rows, differentiable."""
        if self._ran is None or self._model is None:  # no process had a row
            return inputs.new_zeros(0, circuit.n_observables) + 0 * (inputs.sum() + weights.sum())
        return expected(self._planner, self._model, circuit, inputs, weights, self._ran)

    def total(self, layers: dict[str, RowCount]) -> dict[str, RowCount]:
        """Rows of all processes, by layer."""
        counts: list[Any] = [None] * ranks.world_size()
        with ranks.told_if_lost():
            dist.all_gather_object(counts, layers, group=self._group)
        return {name: sum((each[name] for each in counts), RowCount()) for name in layers}

    def report(self) -> ExecutorReport:
        """What the executor did so far, for all processes."""
        return self._from_first(lambda: self._first.report())

    def close(self) -> None:
        """Let go of the executor."""
        if self._executor is not None:
            self._executor.close()

    def _exchange(self, asked: _Asked) -> _Answer:
        n = ranks.world_size()
        gathered: list[Any] | None = [None] * n if ranks.is_first() else None
        own: list[Any] = [None]
        with ranks.told_if_lost():
            dist.gather_object(asked, gathered, dst=0, group=self._group)
        failed: BaseException | None = None
        answers: list[Any] | None = None
        if gathered is not None:
            try:
                answers = list(self._run(gathered))
            except BaseException as error:  # Ctrl-C too: the others wait
                failed, answers = error, [_Failure(" ".join(str(error).split()))] * n
        try:
            with ranks.told_if_lost():
                dist.scatter_object_list(own, answers, src=0, group=self._group)
        finally:
            if failed is not None:
                raise failed
        if isinstance(own[0], _Failure):
            raise ranks.SaidElsewhere(f"process 0 ended the run: {own[0].sentence}")
        answer: _Answer = own[0]
        return answer

    def _run(self, asked: list[_Asked]) -> list[_Answer]:
        """Run the rows of all processes as one batch."""
        first = asked[0]
        for number, other in enumerate(asked):
            same = (first.circuit, first.purpose) == (other.circuit, other.purpose)
            if not same or not torch.equal(first.weights, other.weights):
                raise TrainingError(
                    f"processes 0 and {number} asked for circuits of different layers at the same time"
                )
        circuit, sizes = Circuit.from_key(first.circuit), [len(each.inputs) for each in asked]
        total, executor = sum(sizes), self._first
        inputs = torch.cat([each.inputs for each in asked])  # (total, n_inputs)
        if total == 0:
            return [_Answer(inputs.new_zeros(0, circuit.n_observables), None, None)] * len(asked)
        values = executor.expectations(circuit, inputs, first.weights, first.purpose)  # (total, n_observables)
        model = executor.model
        changed, self._chip = model[0].id != self._chip, model[0].id
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        return [
            _Answer(
                values[start : start + size].clone(),  # a view would be sent with the whole
                executor.ran(circuit, size, start, total),
                model if changed else None,
            )
            for start, size in zip(starts, sizes, strict=True)
        ]

    def _from_first(self, make: Callable[[], T]) -> T:
        made: list[Any] = [make() if ranks.is_first() else None]
        with ranks.told_if_lost():
            dist.broadcast_object_list(made, src=0, group=self._group)
        found: T = made[0]
        return found
