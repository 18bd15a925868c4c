"""Probabilities ``|<b|U(x, w)|0>|²`` of all basis states ``b``, differentiable, by the engines of expectations.

They stand in the order of the bit strings ``b``, wire 0 first. What a loss takes from them (a parity, a projector, a
cross entropy) is ordinary torch.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Observable
from qpeft.errors import InputError
from qpeft.simulators import native
from qpeft.simulators.lowering import PauliMask, lower_gates
from qpeft.simulators.statevector import StateVectorEngine
from qpeft.simulators.steps import Constant, Readout, parities

MAX_QUBITS = 20  # a million probabilities for every sample


def probabilities(circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
    """Evaluate the probabilities of all basis states for a batch of inputs.

    Args:
        circuit: What to run, at most 20 qubits; its observables do not matter.
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians, shared by the batch.

    Returns:
        ``(batch, 2**n_qubits)``: float64 if ``inputs`` are float64, else float32. Differentiable once.

    Raises:
        InputError: A shape or device that does not fit, too many qubits, or an angle that is NaN or infinite.

    Example:
        >>> from qpeft.circuits import Gate
        >>> bell = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))))
        >>> probabilities(bell, torch.zeros(1, 0), torch.zeros(0)).round(decimals=6)
        tensor([[0.5000, 0.0000, 0.0000, 0.5000]])
    """
    if circuit.n_qubits > MAX_QUBITS:
        raise InputError(
            f"probabilities are computed for at most {MAX_QUBITS} qubits (got {circuit.n_qubits}); use observables."
        )
    if inputs.dim() != 2 or inputs.shape[1] != circuit.n_inputs or weights.shape != (circuit.n_weights,):
        raise InputError(
            f"inputs and weights must have the shapes (batch, {circuit.n_inputs}) and ({circuit.n_weights},) "
            f"(got {tuple(inputs.shape)} and {tuple(weights.shape)}); pass what the circuit takes."
        )
    if inputs.device != weights.device:
        raise InputError(f"inputs are on {inputs.device}, weights on {weights.device}; move them to one device.")
    if inputs.dtype != torch.float64:
        inputs = inputs.float()
    return torch.ops.qpeft.probabilities(inputs, weights, circuit.key)


@lru_cache(maxsize=64)
def _engine(key: str, device: str) -> native.NativeEngine | _StateProbabilities:
    circuit = Circuit.from_key(key)
    if device == "cpu" and native.available():
        return native.NativeEngine(circuit, probabilities=True)
    return _StateProbabilities(circuit)


class _StateProbabilities(StateVectorEngine):
    """The general simulator in torch, with the probabilities of all outcomes in place of expectations."""

    def __init__(self, circuit: Circuit) -> None:
        n = circuit.n_qubits
        program = lower_gates(n, circuit.gates, [Observable(f"Z{wire}") for wire in range(n)])
        super().__init__(program, circuit.n_inputs, circuit.n_weights)
        self.n_observables = 1 << n
        self.readout = _Outcomes(program.observables, n)


class _Outcomes(Readout):
    """What is read on each wire is the sign of a Z string, because the program ends before the last permutation."""

    def __init__(self, wires: tuple[PauliMask, ...], n_qubits: int) -> None:
        super().__init__(wires, n_qubits)
        states = torch.arange(1 << n_qubits, device="cpu")
        outcomes = torch.zeros_like(states)
        for place, wire in enumerate(wires):
            bit = (wire.sign * parities(states, torch.tensor([wire.signs], device="cpu"))[:, 0] < 0).long()
            outcomes |= bit << (n_qubits - 1 - place)
        self.outcomes = Constant(outcomes)  # of each amplitude
        self.amplitudes = Constant(torch.argsort(outcomes))  # of each outcome

    def forward(self, state: Tensor, out: Tensor) -> None:
        """Write probabilities ``(2**n, samples)`` to ``out``."""
        out.copy_(state.square().sum(0).index_select(0, self.amplitudes.on(state.device)))

    def backward(self, gradient: Tensor, state: Tensor) -> Tensor:
        """From ``(2**n, samples)`` to the adjoint of the state."""
        return state * (2 * gradient).index_select(0, self.outcomes.on(state.device))


def _checked(inputs: Tensor, weights: Tensor) -> None:
    if inputs.device.type == "cpu" and not (inputs.isfinite().all() and weights.isfinite().all()):
        raise InputError("inputs or weights hold NaN or infinity; angles must be finite numbers of radians.")


@torch.library.custom_op("qpeft::probabilities", mutates_args=())
def _probabilities(inputs: Tensor, weights: Tensor, circuit: str) -> Tensor:
    _checked(inputs, weights)
    with torch.autocast(inputs.device.type, enabled=False):
        return _engine(circuit, inputs.device.type).evaluate(inputs, weights)


@torch.library.custom_op("qpeft::probabilities_backward", mutates_args=())
def _probabilities_backward(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str) -> tuple[Tensor, Tensor]:
    with torch.autocast(inputs.device.type, enabled=False):
        to_inputs, to_weights = _engine(circuit, inputs.device.type).differentiate(gradient, inputs, weights)
    return to_inputs, to_weights.to(weights.dtype)


@_probabilities.register_fake
def _(inputs: Tensor, weights: Tensor, circuit: str) -> Tensor:
    return inputs.new_empty(inputs.shape[0], 1 << Circuit.from_key(circuit).n_qubits)


@_probabilities_backward.register_fake
def _(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.circuit = inputs[2]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return *torch.ops.qpeft.probabilities_backward(gradient, *ctx.saved_tensors, ctx.circuit), None


_probabilities.register_autograd(_differentiate, setup_context=_keep)
