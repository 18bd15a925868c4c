r"""Exact expectations ``<P_m>`` of a batch, differentiable for inputs and weights, in plain torch on any device.

Two engines share the work. Where every observable depends on few qubits and inputs enter only at the start, light
cones are evaluated (:mod:`qpeft.simulators.lightcone`); else the whole state vector
(:mod:`qpeft.simulators.statevector`). Both go through the batch in chunks that fit into the processor's cache, so
memory is bounded whatever the batch is, and keep nothing for the backward pass except inputs and weights. Everything
sits in two operators registered with torch, opaque to the compiler and to autograd, so compiled graphs, autocast and
checkpointing just call them.

An angle that is NaN or infinite makes every expectation that depends on it NaN, for its own sample (inputs) or for the
batch (weights); there is no check here, which would make the host wait for a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators.lightcone import LightConeEngine
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine

MAX_QUBITS = 20  # one complex64 state of 20 qubits takes 8 MiB, and the backward pass keeps one per step


def run(circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
    """Evaluate a circuit for a batch of inputs.

    Args:
        circuit: What to run, at most 20 qubits.
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians, shared by the batch.

    Returns:
        Expectations ``(batch, n_observables)`` in [-1, 1] up to rounding: float64 if ``inputs`` are float64, else
        float32. Differentiable once for inputs and weights. A NaN or infinite angle gives NaN
        where an expectation depends on it.

    Raises:
        InputError: A shape, dtype or device that does not fit, or too many qubits.
    """
    if circuit.n_qubits > MAX_QUBITS:
        raise InputError(
            f"the exact simulator holds at most {MAX_QUBITS} qubits in memory (got {circuit.n_qubits}); "
            f"use fewer qubits."
        )
    if inputs.dim() != 2 or inputs.shape[1] != circuit.n_inputs:
        raise InputError(
            f"inputs must have the shape (batch, {circuit.n_inputs}) (got {tuple(inputs.shape)}); "
            f"the circuit takes {circuit.n_inputs} inputs."
        )
    if weights.dim() != 1 or weights.shape[0] != circuit.n_weights:
        raise InputError(
            f"weights must have the shape ({circuit.n_weights},) (got {tuple(weights.shape)}); "
            f"the circuit takes {circuit.n_weights} weights."
        )
    if not (inputs.is_floating_point() and weights.is_floating_point()):
        raise InputError(f"angles must be real floating point (got {inputs.dtype} and {weights.dtype}); cast them.")
    if inputs.device != weights.device:
        raise InputError(f"inputs are on {inputs.device}, weights on {weights.device}; move them to one device.")
    if inputs.dtype != torch.float64:
        inputs = inputs.float()
    return torch.ops.qpeft.expectations(inputs, weights, circuit.key)


@lru_cache(maxsize=256)
def _engine(key: str) -> LightConeEngine | StateVectorEngine:
    circuit = Circuit.from_key(key)
    cones = LightConeEngine.for_circuit(circuit)
    if cones is not None and cones.pays:
        return cones
    return StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights)


# Inside the operators autocast is off: it would turn the matrix products into half precision.
@torch.library.custom_op("qpeft::expectations", mutates_args=())
def _expectations(inputs: Tensor, weights: Tensor, circuit: str) -> Tensor:
    with torch.autocast(inputs.device.type, enabled=False):
        return _engine(circuit).evaluate(inputs, weights)


@torch.library.custom_op("qpeft::expectations_backward", mutates_args=())
def _expectations_backward(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str) -> tuple[Tensor, Tensor]:
    with torch.autocast(inputs.device.type, enabled=False):
        to_inputs, to_weights = _engine(circuit).differentiate(gradient, inputs, weights)
    return to_inputs, to_weights.to(weights.dtype)


@_expectations.register_fake
def _(inputs: Tensor, weights: Tensor, circuit: str) -> Tensor:
    return inputs.new_empty(inputs.shape[0], Circuit.from_key(circuit).n_observables)


@_expectations_backward.register_fake
def _(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
    values, weights, ctx.circuit = inputs
    ctx.save_for_backward(values, weights)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    inputs, weights = ctx.saved_tensors
    return *torch.ops.qpeft.expectations_backward(gradient, inputs, weights, ctx.circuit), None


_expectations.register_autograd(_differentiate, setup_context=_keep)
