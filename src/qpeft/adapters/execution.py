"""Switching a trained or training model to a quantum computer and back, and controls that leave the circuits out.

    with run_on(model, executor, tokens="last") as run:
        model.generate(...)
    run.report()

The model stays as it is: nothing in its state dict changes, and on leaving every layer has what it had before.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpeft.errors import InputError
from qpeft.execution import Constant, Execution, Executor, ExecutorRule, OnExecutor, Padding, SharedExecutor
from qpeft.layer import QuantumLayer
from qpeft.qpu.executor import ChipExecutor
from qpeft.qpu.report import ExecutorReport, RowCount
from qpeft.qpu.tokens import Tokens, real_rows

Branch = Literal["off", "mean"]


def quantum_layers(model: nn.Module, layers: Iterable[str] | None = None) -> dict[str, QuantumLayer]:
    """The quantum layers of a model by name.

    Args:
        model: Any module.
        layers: Which ones, by parts of names between dots (``"layers.0"``, ``"q_proj"``) or shell patterns; ``None``
            for all.

    Raises:
        InputError: There are none, or one of ``layers`` matches none.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, QuantumLayer)}
    if not found:
        raise InputError("the model has no circuits: load a QTHA adapter whose arch has the circuit branch.")
    if layers is None:
        return found
    chosen: dict[str, QuantumLayer] = {}
    for pattern in [layers] if isinstance(layers, str) else layers:
        own = {n: layer for n, layer in found.items() if f".{pattern}." in f".{n}." or fnmatch.fnmatch(n, pattern)}
        if not own:
            raise InputError(f"no circuit matches {pattern!r}; they are {', '.join(list(found)[:20])}.")
        chosen.update(own)
    return {name: layer for name, layer in found.items() if name in chosen}


class Run:
    """A model whose circuits run elsewhere; made by :func:`run_on`. As a context manager it ends with the block."""

    def __init__(
        self, model: nn.Module, layers: dict[str, QuantumLayer], executions: dict[str, Execution], padding: Padding
    ) -> None:
        self._layers = layers
        self._executions = executions
        self._before = {name: layer.execution for name, layer in layers.items()}
        self._hooks = _watch_masks(model, padding)
        for name, layer in layers.items():
            layer.execution = executions[name]

    def __enter__(self) -> Run:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def restore(self) -> None:
        """Give every layer back what it had before; a second time does nothing."""
        for name, layer in self._layers.items():
            if layer.execution is self._executions[name]:
                layer.execution = self._before[name]
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def layers(self) -> dict[str, RowCount]:
        """Rows of each layer that was switched, by where they ran."""
        return {name: execution.rows for name, execution in self._executions.items()}

    @property
    def share(self) -> float:
        """Share of all rows of these layers whose result came from the executor."""
        return sum(self.layers.values(), RowCount()).share

    def report(self) -> ExecutorReport:
        """What the executor did so far, and which rows of each layer it did it for."""
        executors = [each.executor for each in self._executions.values() if isinstance(each, OnExecutor)]
        if executors and isinstance(executors[0], SharedExecutor):
            return replace(executors[0].report(), layers=executors[0].total(self.layers))
        if executors and isinstance(executors[0], ChipExecutor):
            return replace(executors[0].report(), layers=self.layers)
        name = executors[0].name if executors else "constant"
        return ExecutorReport(executor=name, chip="", layers=self.layers)


def run_on(
    model: nn.Module,
    executor: Executor | None = None,
    *,
    tokens: str | Tokens = "all",
    gradient: ExecutorRule = "twin",
    n_directions: int = 1,
    step: float = 0.1,
    layers: Iterable[str] | None = None,
    branch: Branch | None = None,
    reference: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]] | None = None,
) -> Run:
    """Run the circuits of a model on an executor, or replace their outputs by a constant.

    Works for whatever calls the model: ``generate``, a Trainer, plain code. Circuits of padding never go to the
    executor. Layers that are not chosen stay on their simulator.

    Args:
        model: A peft model, or any module with :class:`~qpeft.layer.QuantumLayer` in it.
        executor: Where circuits run, see :func:`qpeft.qpu.settings.open_executor`.
        tokens: Which tokens' circuits: ``"all"``, ``"last"``, ``"every k"`` or ``"pooled"`` (:mod:`qpeft.qpu.tokens`).
        gradient: ``"twin"``, ``"shift"`` or ``"spsa"`` (:mod:`qpeft.execution`).
        n_directions: Directions of ``"spsa"``.
        step: Step of ``"spsa"``, radians.
        layers: Which layers, as :func:`quantum_layers` takes them.
        branch: A control in place of an executor: ``"off"`` puts 0 for the circuit's outputs, ``"mean"`` their mean
            over the tokens of ``reference``.
        reference: Inputs of the model, or several such batches, for ``"mean"``.

    Returns:
        What is running: use it with ``with``, or call ``restore()``.

    Raises:
        InputError: No circuits, arguments that do not go together, a compiled model, gradient checkpointing, or
            several processes.
    """
    chosen = quantum_layers(model, layers)
    if (executor is None) == (branch is None):
        raise InputError("run_on takes an executor, or branch='off' or 'mean': one of the two.")
    if branch not in (None, "off", "mean"):
        raise InputError(f"unknown branch {branch!r}; available: off, mean.")
    if (reference is not None) != (branch == "mean"):
        raise InputError("branch='mean' needs reference= (inputs of the model), and nothing else takes it.")
    _refuse_compiled(model)
    padding = Padding()
    executions: dict[str, Execution]
    if executor is not None:
        choice = Tokens.parse(tokens)
        executions = {name: OnExecutor(executor, gradient, choice, n_directions, step, padding) for name in chosen}
    elif reference is not None:
        executions = {name: Constant(mean) for name, mean in branch_means(model, reference, chosen).items()}
    else:
        executions = {name: Constant(torch.zeros(layer.circuit.n_observables)) for name, layer in chosen.items()}
    return Run(model, chosen, executions, padding)


@torch.no_grad()
def branch_means(
    model: nn.Module, reference: Mapping[str, Tensor] | Iterable[Mapping[str, Tensor]], layers: dict[str, QuantumLayer]
) -> dict[str, Tensor]:
    """Mean output ``(n_observables,)`` of each layer over the tokens of reference batches, padding left out.

    Args:
        model: The model, which is run in evaluation mode.
        reference: Inputs of the model, or several such batches.
        layers: Layers by name.

    Raises:
        InputError: The batches hold no token that reaches a layer.
    """
    batches = [reference] if isinstance(reference, Mapping) else list(reference)
    padding = Padding()
    sums = {name: torch.zeros(layer.circuit.n_observables, dtype=torch.float64) for name, layer in layers.items()}
    counts = dict.fromkeys(layers, 0)

    def collect(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            given = inputs[0] if inputs[0].dim() > 2 else inputs[0].reshape(1, -1, inputs[0].shape[-1])
            real, _ = real_rows(given.flatten(0, -3), padding.mask)
            values = outputs.reshape(*real.shape, -1)[real].double().cpu()  # (tokens, n_observables)
            sums[name] += values.sum(0)
            counts[name] += len(values)

        return hook

    hooks = [layer.register_forward_hook(collect(name)) for name, layer in layers.items()]
    hooks += _watch_masks(model, padding)
    try:
        with _evaluation_mode(model):
            for batch in batches:
                model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    empty = [name for name, count in counts.items() if count == 0]
    if empty:
        raise InputError(f"the reference batches hold no token that reaches {empty[0]}; give at least one.")
    return {name: (sums[name] / counts[name]).float() for name in layers}


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _watch_masks(model: nn.Module, padding: Padding) -> list[Any]:
    """Keep the attention mask of whatever call reaches the model or one inside it."""

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training and _checkpoints(module):
            raise InputError(
                "gradient checkpointing runs every circuit of the forward pass twice, and pays for both; "
                "turn it off (gradient_checkpointing=False) while circuits run on an executor."
            )
        if "attention_mask" in kwargs:
            mask = kwargs["attention_mask"]
            # Inner models may get masks of another kind, made from the one that was kept.
            if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
                padding.mask = mask

    roots = [module for module in model.modules() if module is model or isinstance(module, PreTrainedModel)]
    return [root.register_forward_pre_hook(before, with_kwargs=True) for root in roots]


def _checkpoints(module: nn.Module) -> bool:
    """Whether a model runs its layers again in the backward pass; transformers has renamed the property."""
    names = ("is_activation_checkpointing", "is_gradient_checkpointing")
    known = next((name for name in names if hasattr(type(module), name)), None)
    return known is not None and bool(getattr(module, known))


def _refuse_compiled(model: nn.Module) -> None:
    wrapped = getattr(model, "_orig_mod", None) is not None
    if wrapped or any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        raise InputError(
            "a compiled model cannot send circuits to an executor while it runs; use the model before torch.compile."
        )
