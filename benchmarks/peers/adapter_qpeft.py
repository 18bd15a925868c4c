"""The library itself, called as a layer calls it: ``qpeft.simulators.run``."""

from __future__ import annotations

from torch import Tensor
from torch_layer import TorchLayer, use_threads

from qpeft.circuits import Circuit
from qpeft.simulators import native, run

__all__ = ["Layer", "use_threads"]


class Layer(TorchLayer):
    def build(self) -> None:
        self.circuit = Circuit.from_key(self.program.key)

    @property
    def note(self) -> str:
        """Which engine runs, for the report."""
        return native.description()

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return run(self.circuit, inputs, weights)
