"""What a quantum layer does in place of its simulator: circuits on an executor, or a constant as a control.

With an executor, chosen rows run there and the others on the layer's own simulator, each part with its own gradient:

============  ===========================================================================================
gradient      of the rows on the executor
============  ===========================================================================================
``"shift"``   parameter-shift rule on the executor; no bias (without noise), many circuits
``"spsa"``    simultaneous perturbation on the executor; two circuits a direction, noisy
``"twin"``    value from the executor, derivative of the executor's model of itself; no circuits, biased as
              far as the model is wrong
============  ===========================================================================================

:func:`qpeft.gradients.count_circuits` says what each costs. A backward pass draws shots of its own, and runs no
circuits for rows whose outputs carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, get_args, runtime_checkable

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.gradients import shift_gradient, spsa_gradient
from qpeft.qpu.report import ExecutorReport, RowCount
from qpeft.qpu.tokens import Tokens, chosen_rows, pooled_inputs, real_rows

ExecutorRule = Literal["twin", "shift", "spsa"]
Simulate = Callable[[Tensor], Tensor]
"""Runs rows ``(rows, n_inputs)`` on the layer's own simulator, differentiable."""


@runtime_checkable
class Executor(Protocol):
    """Evaluates circuits somewhere."""

    @property
    def name(self) -> str:
        """Name for reports."""

    def expectations(self, circuit: Circuit, inputs: Tensor, weights: Tensor, purpose: str = "forward") -> Tensor:
        """``(rows, n_inputs) -> (rows, n_observables)``, not differentiable."""


@runtime_checkable
class ModelledExecutor(Executor, Protocol):
    """An executor that has a model of itself, for the gradient rule ``"twin"``."""

    def twin(self, circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
        """What the last call of :meth:`expectations` was expected to return, differentiable."""


@runtime_checkable
class SharedExecutor(ModelledExecutor, Protocol):
    """One executor for all processes of a run: they call it together, each with the rows it has, even with none."""

    def total(self, layers: dict[str, RowCount]) -> dict[str, RowCount]:
        """Rows of all processes, by layer."""

    def report(self) -> ExecutorReport:
        """What the executor did so far, for all processes."""


class Execution(Protocol):
    """What a layer does in place of its simulator."""

    rows: RowCount

    def __call__(self, circuit: Circuit, inputs: Tensor, weights: Tensor, simulate: Simulate) -> Tensor:
        """``(..., n_inputs) -> (..., n_observables)``."""


@dataclass
class Padding:
    """The attention mask ``(batch, total)`` of the model's call that is under way, where one is known."""

    mask: Tensor | None = None


@dataclass
class OnExecutor:
    """Circuits on an executor.

    Args:
        executor: Where.
        gradient: How they are differentiated.
        tokens: Which tokens go there.
        n_directions: Directions of ``"spsa"``.
        step: Step of ``"spsa"``, radians.
        padding: Which rows hold tokens; shared by the layers of a model.
        rows: How many rows ran where so far.

    Raises:
        InputError: An unknown rule, ``"twin"`` for an executor without a model of itself, or several processes that
            do not share their executor.
    """

    executor: Executor
    gradient: ExecutorRule = "twin"
    tokens: Tokens = field(default_factory=Tokens)
    n_directions: int = 1
    step: float = 0.1
    padding: Padding = field(default_factory=Padding)
    rows: RowCount = field(default_factory=RowCount)

    def __post_init__(self) -> None:
        self._refuse_processes()
        if self.gradient not in get_args(ExecutorRule):
            raise InputError(
                f"unknown gradient rule {self.gradient!r} of the executor {self.executor.name!r}; "
                f"available: {', '.join(get_args(ExecutorRule))}."
            )
        if self.gradient == "twin" and not isinstance(self.executor, ModelledExecutor):
            raise InputError(
                f"the executor {self.executor.name!r} has no model of itself, which the gradient rule 'twin' "
                f"differentiates; use 'shift' or 'spsa'."
            )

    def __repr__(self) -> str:
        return f"{self.executor.name!r}, tokens={str(self.tokens)!r}, gradient={self.gradient!r}"

    def _refuse_processes(self) -> None:
        distributed = torch.distributed
        alone = not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1
        if alone or isinstance(self.executor, SharedExecutor):
            return
        raise InputError(
            f"circuits on an executor run from one process, which keeps the ledger and the budget "
            f"(got {distributed.get_world_size()} processes); start one process, or train with qpeft train, which "
            f"shares one executor."
        )

    @torch.compiler.disable(reason="circuits on an executor are sent while the model runs")
    def __call__(self, circuit: Circuit, inputs: Tensor, weights: Tensor, simulate: Simulate) -> Tensor:
        """``(..., n_inputs) -> (..., n_observables)``."""
        self._refuse_processes()
        if inputs.dtype != torch.float64:
            inputs = inputs.float()
        if inputs.dim() == 1:
            return self(circuit, inputs[None], weights, simulate)[0]
        if inputs.dim() == 2:
            if self.tokens.mode != "all":
                raise InputError(
                    f"tokens={str(self.tokens)!r} needs inputs (batch, sequence, {circuit.n_inputs}) "
                    f"(got shape {tuple(inputs.shape)}); use tokens='all'."
                )
            return self(circuit, inputs[None], weights, simulate)[0]
        sequences = inputs.flatten(0, -3)  # (batch, sequence, n_inputs)
        real, earlier = real_rows(sequences, self.padding.mask)
        if self.tokens.mode == "pooled":
            own, covered = real, int(real.sum())
            some = real.any(1)
            means = pooled_inputs(sequences, real)[some]
            pooled = self._run_or_skip(circuit, means, weights, simulate)  # (some, n_observables)
            values = pooled.repeat_interleave(real[some].sum(1), 0)  # (covered, n_observables)
            count = RowCount(len(pooled), int((~real).sum()), covered - len(pooled))
        else:
            own = chosen_rows(self.tokens, real, earlier)
            chosen = sequences[own]
            values = self._run_or_skip(circuit, chosen, weights, simulate)  # (chosen, n_observables)
            count = RowCount(len(values), int((~own).sum()))
        out = values.new_empty(*own.shape, circuit.n_observables)
        out[own] = values
        if count.simulated:
            out[~own] = simulate(sequences[~own]).to(out.dtype)
        self.rows += count
        return out.view(*inputs.shape[:-1], circuit.n_observables)

    def _run_or_skip(self, circuit: Circuit, inputs: Tensor, weights: Tensor, simulate: Simulate) -> Tensor:
        """No circuits for no rows, unless other processes wait for this one's answer."""
        if len(inputs) or isinstance(self.executor, SharedExecutor):
            return self._run(circuit, inputs, weights)
        return simulate(inputs)

    def _run(self, circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(rows, n_inputs) -> (rows, n_observables)``, by the gradient rule."""
        if not (torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad)):
            return self.executor.expectations(circuit, inputs, weights, purpose="evaluation")
        if self.gradient == "twin":
            assert isinstance(self.executor, ModelledExecutor)
            values = self.executor.expectations(circuit, inputs.detach(), weights.detach(), purpose="forward")
            model = self.executor.twin(circuit, inputs, weights).to(values.dtype)
            return values + (model - model.detach())
        found: Tensor = _Estimated.apply(inputs, weights, circuit, self)
        return found

    def differentiate(
        self, circuit: Circuit, inputs: Tensor, weights: Tensor, cotangent: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Vector-Jacobian products from further circuits: ``(rows, n_inputs)`` and ``(n_weights,)``."""
        to_inputs = torch.zeros_like(inputs)
        used = (cotangent != 0).any(1)
        evaluate = partial(self.executor.expectations, purpose="gradient")
        if self.gradient == "shift":
            found = shift_gradient(circuit, inputs[used], weights, evaluate, cotangent[used])
        else:
            found = spsa_gradient(
                circuit, inputs[used], weights, cotangent[used], evaluate, self.n_directions, self.step
            )
        to_inputs[used] = found.inputs
        return to_inputs, found.weights.to(weights.dtype)


@dataclass
class Constant:
    """The same outputs for every row, as a control of what the circuit adds.

    Args:
        values: ``(n_observables,)``.
        rows: How many rows there were so far.
    """

    values: Tensor
    rows: RowCount = field(default_factory=RowCount)

    def __repr__(self) -> str:
        return "'constant'"

    def __call__(self, circuit: Circuit, inputs: Tensor, weights: Tensor, simulate: Simulate) -> Tensor:
        """``(..., n_inputs) -> (..., n_observables)``."""
        outputs = self.values.to(inputs).expand(*inputs.shape[:-1], circuit.n_observables)
        self.rows += RowCount(simulated=inputs.shape[:-1].numel())
        return outputs


class _Estimated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, circuit: Circuit, execution: OnExecutor) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        ctx.settings = circuit, execution
        return execution.executor.expectations(circuit, inputs, weights, purpose="forward")

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inputs, weights = ctx.saved_tensors
        circuit, execution = ctx.settings
        return *execution.differentiate(circuit, inputs, weights, cotangent), None, None
