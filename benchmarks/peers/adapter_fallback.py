"""The library's engines in plain torch, which take over where the native kernel is not there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch_layer import TorchLayer, use_threads

from qpeft.circuits import Circuit
from qpeft.simulators.lightcone import LightConeEngine
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine

__all__ = ["Layer", "use_threads"]


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, engine: Any, inputs: Tensor, weights: Tensor) -> Tensor:
        ctx.engine = engine
        ctx.save_for_backward(inputs, weights)
        return engine.evaluate(inputs, weights)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        to_inputs, to_weights = ctx.engine.differentiate(gradient, *ctx.saved_tensors)
        return None, to_inputs, to_weights.float()


class Layer(TorchLayer):
    def build(self) -> None:
        circuit = Circuit.from_key(self.program.key)
        cones = LightConeEngine.for_circuit(circuit)
        if cones is not None and cones.pays:
            self.engine: Any = cones
        else:
            self.engine = StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights)

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return _Run.apply(self.engine, inputs, weights)
