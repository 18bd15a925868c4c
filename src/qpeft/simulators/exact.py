r"""Exact expectations ``<P_m>`` of a batch, differentiable for inputs and weights.

On a processor it is the native kernel (:mod:`qpeft.simulators.native`) that does the work; on a CUDA device, for few
qubits, kernels in Triton (:mod:`qpeft.simulators.triton_engine`). On other devices, for more qubits, and where nothing
was compiled or installed, it is plain torch: light cones where every observable depends on few qubits
and inputs enter only at the start (:mod:`qpeft.simulators.lightcone`), else the whole state vector
(:mod:`qpeft.simulators.statevector`). All go through the batch in pieces that fit into the processor's cache, so
memory is bounded whatever the batch is, and keep nothing for the backward pass except inputs and weights.

Everything sits in two operators registered with torch, opaque to the compiler and to autocast. Code that runs eagerly
reaches the same engines through an autograd function, which costs half the time per call.

An angle that is NaN or infinite is an error unless ``check=False``: then, and on accelerators always, because a check
would make the host wait, it makes every expectation NaN that depends on it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators import cuda, native
from qpeft.simulators.angles import check_angles
from qpeft.simulators.lightcone import LightConeEngine
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine

MAX_QUBITS = native.MAX_QUBITS
# Inside torch.func's transformations tensors are wrapped, and only operators know what to do with them.
_functorch_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: False)
_MAX_QUBITS_TORCH = 20  # one complex64 state of 20 qubits takes 8 MiB, and torch's backward pass keeps one per step


def run(circuit: Circuit, inputs: Tensor, weights: Tensor, check: bool = True) -> Tensor:
    """Evaluate a circuit for a batch of inputs.

    Args:
        circuit: What to run, at most 24 qubits (20 without the native kernel).
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians, shared by the batch.
        check: Whether a NaN or infinite angle is an error (on the processor). Layers of a network pass ``False``:
            activations of tokens that nobody attends to may be NaN.

    Returns:
        Expectations ``(batch, n_observables)`` in [-1, 1] up to rounding: float64 if ``inputs`` are float64, else
        float32. Differentiable once for inputs and weights.

    Raises:
        InputError: A shape, dtype or device that does not fit, too many qubits, or (on the processor) an angle that is
            NaN or infinite.
    """
    if circuit.n_qubits > MAX_QUBITS:
        raise InputError(
            f"the exact simulator holds at most {MAX_QUBITS} qubits in memory (got {circuit.n_qubits}); "
            f"use fewer qubits."
        )
    check_angles(circuit, inputs, weights)
    if inputs.dtype != torch.float64:
        inputs = inputs.float()
    if type(inputs) is not Tensor or torch.compiler.is_compiling() or _functorch_active():
        return torch.ops.qpeft.expectations(inputs, weights, circuit.key, check)
    if torch.is_grad_enabled() and (inputs.requires_grad or weights.requires_grad):
        return _Expectations.apply(inputs, weights, circuit.key, check)
    return _evaluate(inputs, weights, circuit.key, check)


class _Engine(Protocol):
    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor: ...

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]: ...


@lru_cache(maxsize=256)
def engine(key: str, device: str = "cpu", check: bool = True) -> _Engine:
    """What runs a circuit, given by its key, on a type of device.

    Raises:
        InputError: Too many qubits for the engine at hand.
    """
    circuit = Circuit.from_key(key)
    if device == "cpu" and native.available():
        return native.NativeEngine(circuit, check=check)
    if device == "cuda":
        chosen = cuda.engine(circuit)
        if chosen is not None:
            return chosen
    if circuit.n_qubits > _MAX_QUBITS_TORCH:
        raise InputError(
            f"{circuit.n_qubits} qubits need the native kernel, which is {native.description()}; without it the "
            f"exact simulator holds at most {_MAX_QUBITS_TORCH}."
        )
    cones = LightConeEngine.for_circuit(circuit)
    if cones is not None and cones.pays:
        return cones
    return StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights)


def _evaluate(inputs: Tensor, weights: Tensor, circuit: str, check: bool) -> Tensor:
    chosen = engine(circuit, inputs.device.type, check)
    if isinstance(chosen, native.NativeEngine):
        return chosen.evaluate(inputs, weights)
    if check and inputs.device.type == "cpu":
        for name, angles in (("inputs", inputs), ("weights", weights)):
            if not angles.isfinite().all():
                raise InputError(f"{name} hold NaN or infinity; angles must be finite numbers of radians.")
    # Inside the operators autocast is off: it would turn the matrix products into half precision.
    with torch.autocast(inputs.device.type, enabled=False):
        return chosen.evaluate(inputs, weights)


def _evaluate_backward(
    gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str, check: bool
) -> tuple[Tensor, Tensor]:
    chosen = engine(circuit, inputs.device.type, check)
    if isinstance(chosen, native.NativeEngine):
        to_inputs, to_weights = chosen.differentiate(gradient, inputs, weights)
    else:
        with torch.autocast(inputs.device.type, enabled=False):
            to_inputs, to_weights = chosen.differentiate(gradient, inputs, weights)
    return to_inputs, to_weights.to(weights.dtype)


class _Expectations(torch.autograd.Function):
    """The operators below for code that runs eagerly."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weights: Tensor, circuit: str, check: bool) -> Tensor:
        ctx.save_for_backward(inputs, weights)
        ctx.settings = circuit, check
        return _evaluate(inputs, weights, circuit, check)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        inputs, weights = ctx.saved_tensors
        if torch.is_grad_enabled():  # someone wants to differentiate again: the operator refuses that
            return *torch.ops.qpeft.expectations_backward(gradient, inputs, weights, *ctx.settings), None, None
        return *_evaluate_backward(gradient, inputs, weights, *ctx.settings), None, None


_expectations = torch.library.custom_op("qpeft::expectations", _evaluate, mutates_args=())
_expectations_backward = torch.library.custom_op("qpeft::expectations_backward", _evaluate_backward, mutates_args=())


@_expectations.register_fake
def _(inputs: Tensor, weights: Tensor, circuit: str, check: bool) -> Tensor:
    return inputs.new_empty(inputs.shape[0], Circuit.from_key(circuit).n_observables)


@_expectations_backward.register_fake
def _(gradient: Tensor, inputs: Tensor, weights: Tensor, circuit: str, check: bool) -> tuple[Tensor, Tensor]:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format), torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str, bool], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])
    ctx.settings = inputs[2:]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
    inputs, weights = ctx.saved_tensors
    return *torch.ops.qpeft.expectations_backward(gradient, inputs, weights, *ctx.settings), None, None


_expectations.register_autograd(_differentiate, setup_context=_keep)
