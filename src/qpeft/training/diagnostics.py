"""Is the circuit trained, and does it do what a matrix could not: numbers beside the loss, a line every N steps.

A line of `metrics.jsonl` holds for every decoder layer the mean over its adapted modules:

=========================  =========================================================================================
circuit_share              the circuit's part of the adapter's output, by norms; not for ``fusion: product``
circuit_r2                 held-out R^2 of a linear fit of the circuit's outputs to its inputs
effective_rank             of the adapter's outputs on the sampled tokens; of ``dW`` itself where the adapter is linear
circuit_gradient_variance  ``Var[d<Z_i>/d theta_k]`` over angles, observables and tokens: the circuit alone
loss_gradient_variance     ``Var_k[d loss/d theta_k]`` over the angles, of the gradient that the optimizer is given
=========================  =========================================================================================

Equations are in :mod:`qpeft.training.diagnostics_measures`; the gradient variance follows McClean et al.,
arXiv:1803.11173, the effective rank Roy and Vetterli, EUSIPCO 2007.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qpeft.errors import InputError
from qpeft.layer import QuantumLayer
from qpeft.training.diagnostics_measures import (
    circuit_gradient_variance,
    effective_rank,
    linear_fit_r2,
    product_singular_values,
    share_of,
)
from qpeft.training.diagnostics_sample import AdaptedModule, TokenSample, adapted_modules

#: tokens whose circuits are differentiated one by one
_GRADIENT_TOKENS = 16

Measures = dict[str, float | None]


class DiagnosticsCallback(TrainerCallback):
    """Measures the adapters of a model every so many steps, for any Trainer of transformers or TRL.

    The losses of a run are the same with it and without it.

    Args:
        every: Steps between two measurements.
        path: File to which a JSON line is appended for each, by the main process; ``None``: only :attr:`records`.
        tokens: Tokens kept of each step, spread over its micro-batches.

    Attributes:
        records: The measurements of this process: ``{"step", "diagnostics": {"layers", "tokens", "rank", ...}}``,
            where every measure is a list with a number (or ``None``) for each of ``layers``. A measure that no module
            has is absent. All belong to the weights with which the step began.

    Raises:
        InputError: ``every`` or ``tokens`` out of range; when training starts: no adapter that can be measured, a
            compiled model, or weights that are sharded over processes.

    Example:
        >>> callback = DiagnosticsCallback(every=10)  # Trainer(..., callbacks=[callback])
        >>> callback.records
        []
    """

    def __init__(self, every: int, path: str | Path | None = None, tokens: int = 256) -> None:
        for name, value, lowest in (("every", every, 1), ("tokens", tokens, 8)):
            if isinstance(value, bool) or not isinstance(value, int) or value < lowest:
                raise InputError(f"{name} must be a whole number of at least {lowest} (got {value!r})")
        self.every = every
        self.path = None if path is None else Path(path)
        self.tokens = tokens
        self.records: list[dict[str, Any]] = []
        self._modules: list[AdaptedModule] = []
        self._sample: TokenSample | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        self.close()
        if model is not None:
            refuse_unmeasurable(model, args)

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        self.close()
        if model is None or (state.global_step + 1) % self.every or not state.is_world_process_zero:
            return
        self._modules = adapted_modules(model)
        share = math.ceil(self.tokens / args.gradient_accumulation_steps)
        self._sample = TokenSample(model, self._modules, share)

    def on_substep_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._sample is not None:
            self._sample.next_micro_batch()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._sample is None:
            return
        self._sample.remove()
        line = {"step": state.global_step + 1, "diagnostics": measure(self._modules, scaled_gradient=args.fp16)}
        self.close()
        self.records.append(line)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Take all hooks off the model; safe to call at any time."""
        if self._sample is not None:
            self._sample.remove()
        self._sample, self._modules = None, []


def refuse_unmeasurable(model: nn.Module, args: TrainingArguments) -> None:
    """Raise :class:`qpeft.errors.InputError` for a model whose adapters cannot be measured."""
    if args.torch_compile:
        raise InputError("diagnostics read activations, which a compiled model hides: leave out torch_compile")
    modules = adapted_modules(model)
    if not modules:
        raise InputError(
            "diagnostics measure QTHA, and LoRA on linear layers, and this model has neither: leave diagnostics out"
        )
    for module in modules:
        if any(hasattr(p, "full_tensor") or not p.numel() for p in _leaf_parameters(module)):
            raise InputError(
                "diagnostics need whole adapters in one process, and these are sharded: leave diagnostics out, or use "
                "plain data parallelism"
            )


def measure(modules: list[AdaptedModule], scaled_gradient: bool = False) -> dict[str, Any]:
    """One measurement of sampled modules.

    Args:
        modules: The modules, in the order of the model.
        scaled_gradient: Whether gradients are multiplied by the scale of fp16; they are left out then.

    Returns:
        ``layers`` (names), ``tokens`` (kept for each module with a branch), ``rank`` (the largest possible one),
        ``n_qubits`` where there are circuits, and a list for each measure.
    """
    groups: dict[str, list[Measures]] = {}
    tokens, n_qubits, rank = [], set(), 0
    with torch.no_grad():
        for module in modules:
            groups.setdefault(module.group, []).append(_measure_module(module, scaled_gradient))
            rank = max(rank, int(module.layer.r[module.adapter]))
            bottleneck = module.kept("bottleneck")
            tokens += [] if bottleneck is None else [len(bottleneck)]
            n_qubits |= {module.branch.circuit.n_qubits} if isinstance(module.branch, QuantumLayer) else set()
    found: dict[str, Any] = {"layers": _short(list(groups)), "tokens": min(tokens, default=0), "rank": rank}
    if n_qubits:
        found["n_qubits"] = max(n_qubits)
    names = dict.fromkeys(name for measures in groups.values() for each in measures for name in each)
    for name in names:
        found[name] = [_mean(each.get(name) for each in measures) for measures in groups.values()]
    return found


def _measure_module(module: AdaptedModule, scaled_gradient: bool) -> Measures:
    layer, adapter = module.layer, module.adapter
    if isinstance(layer, LoraLayer):
        lora_a, lora_b = cast(nn.Linear, layer.lora_A[adapter]), cast(nn.Linear, layer.lora_B[adapter])
        return {"effective_rank": effective_rank(product_singular_values(lora_b.weight, lora_a.weight.T))}
    if layer.is_linear(adapter):
        compression, expansion = layer.linear_factors(adapter)  # (r, d_in), (d_out, r)
        return {"effective_rank": effective_rank(product_singular_values(expansion, compression.T))}
    z, given, q = (module.kept(name) for name in ("bottleneck", "branch input", "branch output"))
    if z is None or given is None or q is None:
        return {}
    decoder = layer.decoder(adapter)
    parts = decoder.parts()
    expansion = decoder.expansion() * layer.scaling[adapter]  # (d_out, r)
    branch = q @ parts["W_q"].T  # (tokens, r)
    linear = z @ parts["W_c"].T if "W_c" in parts else torch.zeros_like(branch)  # (tokens, r)
    bottleneck = linear * branch if decoder.product else linear + branch
    measures: Measures = {}
    if isinstance(module.branch, QuantumLayer):
        if not decoder.product:
            inner = torch.linalg.qr(expansion.double().cpu(), mode="r").R.T  # keeps norms: (r, at most r)
            measures["circuit_share"] = share_of(branch.double().cpu() @ inner, linear.double().cpu() @ inner)
        measures["circuit_r2"] = linear_fit_r2(given, q)
    measures["effective_rank"] = effective_rank(product_singular_values(bottleneck, expansion))
    if isinstance(module.branch, QuantumLayer):
        weight = module.branch.weight
        few = given[:: max(1, len(given) // _GRADIENT_TOKENS)][:_GRADIENT_TOKENS]
        measures["circuit_gradient_variance"] = circuit_gradient_variance(module.branch.circuit, few, weight)
        if weight.grad is not None and not scaled_gradient:
            measures["loss_gradient_variance"] = float(weight.grad.double().var(correction=0))
    return measures


def _leaf_parameters(module: AdaptedModule) -> Iterable[nn.Parameter]:
    for name in module.layer.adapter_layer_names:
        leaves = getattr(module.layer, name)
        if module.adapter in leaves and isinstance(leaves[module.adapter], nn.Module):
            yield from leaves[module.adapter].parameters()


def _short(names: list[str]) -> list[str]:
    """Numbers alone where all names are layers of one stack."""
    stacks = {name.rpartition(".")[0] for name in names}
    numbers = [name.rpartition(".")[2] for name in names]
    return numbers if len(stacks) == 1 and all(number.isdigit() for number in numbers) else names


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(known) if known else None
