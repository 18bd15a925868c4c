"""The recipe's execution section: on which quantum computer, if any, the adapter's circuits run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator

from qpeft.adapters.execution import Run, run_on
from qpeft.qpu.budget import Spend
from qpeft.qpu.settings import ExecutionSettings, open_executor
from qpeft.training import ranks
from qpeft.training.keys import nearest

if TYPE_CHECKING:
    from qpeft.qpu.executor import ChipExecutor
    from qpeft.training.workload import Call


class ExecutionSection(BaseModel):
    """`executor` names where circuits run; all other keys are those of `qpeft.qpu.settings.ExecutionSettings`."""

    model_config = ConfigDict(extra="allow")

    executor: str = Field("exact", description="exact (the simulator), virtual-wukong, origin, qiskit, qbraid")
    layers: list[str] | None = Field(None, description="only circuits of these layers, by parts of their names")

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @property
    def settings(self) -> ExecutionSettings:
        return ExecutionSettings(executor=self.executor, **self.fields)

    @model_validator(mode="after")
    def _is_usable(self) -> ExecutionSection:
        known = {field.name for field in dataclasses.fields(ExecutionSettings)} - {"executor"}
        for key in self.fields:
            if key not in known:
                raise ValueError(f"unknown key execution.{key}{nearest(key, known, 'execution.')}")
        try:
            assert self.settings
        except (TypeError, ValueError) as error:
            raise ValueError(f"execution: {error}") from error
        return self


@contextmanager
def executing(
    section: ExecutionSection, model: Any, folder: str | Path | None, calls: Sequence[Call] = ()
) -> Iterator[Run | None]:
    """Run the circuits of a model as the section says, for as long as the block lasts.

    Args:
        section: Where and how.
        model: With quantum layers.
        folder: Holds the ledger. Without one that of a simulated chip is forgotten, and a paid chip is refused.
        calls: What the block will ask for, so that a run that does not fit the budget is refused before it starts.

    Yields:
        What is running, for its report; `None` for the simulator.

    Raises:
        InputError: Settings that do not go together, a model without circuits, or a run over its budget.
        SaidElsewhere: Another process of this run raises one of these.
        MissingDependencyError: The vendor's package is not installed.
    """
    settings = section.settings
    if settings.executor == "exact":
        yield None
        return
    executor = _opened(settings, folder, calls)
    try:
        with run_on(
            model,
            executor,
            tokens=settings.tokens,
            gradient=settings.gradient,  # type: ignore[arg-type]  # checked by the settings
            n_directions=settings.n_directions,
            step=settings.step,
            layers=section.layers,
        ) as run:
            yield run
    finally:
        executor.close()


def _opened(settings: ExecutionSettings, folder: str | Path | None, calls: Sequence[Call]) -> Any:
    """The executor, of this process or, in a run of several, of the first one, which the others share."""
    shared = ranks.world_size() > 1 and torch.distributed.is_initialized()
    if not shared:
        return _within_budget(settings, folder, calls)
    with ranks.together():
        own = _within_budget(settings, folder, calls) if ranks.is_first() else None
    from qpeft.training.sharing import RankedExecutor

    return RankedExecutor(own)


def _within_budget(settings: ExecutionSettings, folder: str | Path | None, calls: Sequence[Call]) -> ChipExecutor:
    executor = open_executor(settings, folder)
    try:
        if settings.budget and calls:
            _check_budget(executor, settings, calls)
    except BaseException:
        executor.close()
        raise
    return executor


def _check_budget(executor: ChipExecutor, settings: ExecutionSettings, calls: Sequence[Call]) -> None:
    """Refuse a run that would not fit. One that goes on has spent a part of the plan already: the broker stops it."""
    from qpeft.training.workload import price

    broker = executor.broker
    if broker.ledger.spent(executor.name).jobs == 0:
        parts = price(calls, settings, broker.provider.caps(), broker.provider.snapshot())
        broker.check(sum((part.spend for _, part in parts), Spend()))
