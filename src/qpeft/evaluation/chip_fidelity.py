"""How faithfully a chip returns <Z>, measured on the very circuits that a model asks for.

Activations of real texts are caught in front of the circuits, run exactly and on an executor, and compared. With ideal
values z and measured ones m over all rows and observables:

    slope     Σ (z - z̄)(m - m̄) / Σ (z - z̄)²     what is left of the signal; 1 on a perfect chip, 0 where it drowned
    rms       √ mean (m - z)²                      error of a value
    shots     1/√S at most                         what S shots alone would leave
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.adapters.execution import quantum_layers
from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.execution import Executor
from qpeft.simulators import run


@dataclass(frozen=True)
class Rows:
    """Circuits that one layer asked for.

    Args:
        layer: Name of the layer.
        circuit: Its circuit.
        inputs: ``(rows, n_inputs)`` radians.
        weights: ``(n_weights,)`` radians.
    """

    layer: str
    circuit: Circuit
    inputs: Tensor
    weights: Tensor


@torch.no_grad()
def catch_rows(
    model: nn.Module, batches: Iterable[Mapping[str, Tensor]], n_rows: int, layers: Sequence[str] | None = None
) -> list[Rows]:
    """Run a model and keep what reaches its circuits.

    Args:
        model: With quantum layers; in evaluation mode.
        batches: Inputs of the model, without padding.
        n_rows: Rows kept of each layer, evenly spread over its tokens.
        layers: Which ones, as :func:`qpeft.adapters.execution.quantum_layers` takes them.

    Raises:
        InputError: No circuits, or no token reaches them.
    """
    chosen = quantum_layers(model, layers)
    caught: dict[str, list[Tensor]] = {name: [] for name in chosen}

    def catch(name: str) -> Any:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            caught[name].append(inputs[0].detach().reshape(-1, inputs[0].shape[-1]).double().cpu())

        return hook

    hooks = [layer.register_forward_pre_hook(catch(name)) for name, layer in chosen.items()]
    try:
        for batch in batches:
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    found = []
    for name, layer in chosen.items():
        if not caught[name]:
            raise InputError(f"no token reached {name}: give at least one text.")
        tokens = torch.cat(caught[name])  # (tokens, n_inputs)
        kept = torch.linspace(0, len(tokens) - 1, min(n_rows, len(tokens))).round().long()
        found.append(Rows(name, layer.circuit, tokens[kept], layer.weight.detach().double().cpu()))
    return found


@dataclass(frozen=True)
class Fidelity:
    """Ideal and measured expectations, ``(rows, n_observables)`` each, of all layers together.

    Args:
        ideal: Exact values.
        measured: What the executor returned.
        shots: Shots of every value.
    """

    ideal: Tensor
    measured: Tensor
    shots: int

    @property
    def slope(self) -> float:
        """What is left of the signal."""
        ideal, measured = self.ideal - self.ideal.mean(), self.measured - self.measured.mean()
        return float((ideal * measured).sum() / ideal.square().sum())

    @property
    def rms(self) -> float:
        """Root of the mean squared error."""
        return float((self.measured - self.ideal).square().mean().sqrt())

    @property
    def shot_noise(self) -> float:
        """What as many shots of a perfect chip would leave."""
        return math.sqrt(float((1 - self.ideal.square()).clamp(min=0).mean()) / self.shots)

    def summary(self) -> dict[str, float]:
        """Plain numbers."""
        return {"slope": self.slope, "rms": self.rms, "shot_noise": self.shot_noise, "values": self.ideal.numel()}


def measure_fidelity(rows: Sequence[Rows], executor: Executor, shots: int) -> Fidelity:
    """Run caught circuits exactly and on an executor.

    Args:
        rows: What :func:`catch_rows` gave.
        executor: Where they run.
        shots: Shots that it takes of each.
    """
    ideal = torch.cat([run(each.circuit, each.inputs, each.weights) for each in rows])
    measured = torch.cat(
        [executor.expectations(each.circuit, each.inputs, each.weights, purpose="evaluation") for each in rows]
    )
    return Fidelity(ideal, measured, shots)
