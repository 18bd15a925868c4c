"""All engines behind :func:`qpeft.simulators.run`, by name, for tests that hold for each of them."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.simulators import run
from qpeft.simulators.lightcone import LightConeEngine
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine
from qpeft.simulators.weight_runs import WeightRun


class Chosen:
    """The engine that :func:`run` chooses, through its operators."""

    def __init__(self, circuit: Circuit) -> None:
        self.circuit = circuit

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return run(self.circuit, inputs, weights)

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        inputs, weights = inputs.detach().requires_grad_(), weights.detach().requires_grad_()
        return torch.autograd.grad(run(self.circuit, inputs, weights), (inputs, weights), gradient)


def native(circuit: Circuit):
    from qpeft.simulators.native import NativeEngine

    return NativeEngine(circuit)


def native_is_built() -> bool:
    if find_spec("qpeft.simulators.native") is None:
        return False
    from qpeft.simulators.native import available

    return available()


@dataclass(frozen=True)
class Engine:
    name: str
    build: Callable[[Circuit], object]
    reads_once: bool = False  # takes only circuits whose inputs are RY angles on |0>, and are not read again
    same_bits_in_any_chunk: bool = False  # matrix libraries round differently for different numbers of columns


def matrices(circuit: Circuit) -> StateVectorEngine:
    """The state vector, with runs of steps that read no inputs as one matrix, whether it pays or not."""
    engine = StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights)
    for step in engine.steps:
        if isinstance(step, WeightRun):
            step.pays = lambda batch: circuit.n_qubits <= 7
    return engine


CHOSEN = Engine("chosen", Chosen)
STATE_VECTOR = Engine("state vector", lambda c: StateVectorEngine(lower(c), c.n_inputs, c.n_weights))
MATRICES = Engine("matrices", matrices)
LIGHT_CONES = Engine("light cones", LightConeEngine.for_circuit, reads_once=True)
NATIVE = Engine("native", native, same_bits_in_any_chunk=True)

needs_native = pytest.mark.skipif(not native_is_built(), reason="the native kernel is not built; install a compiler")
ENGINES = [
    pytest.param(engine, id=engine.name, marks=[needs_native] if engine is NATIVE else [])
    for engine in (CHOSEN, STATE_VECTOR, MATRICES, LIGHT_CONES, NATIVE)
]


def everything(engine, inputs: Tensor, weights: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and both gradients."""
    return engine.evaluate(inputs, weights), *engine.differentiate(cotangent, inputs, weights)
