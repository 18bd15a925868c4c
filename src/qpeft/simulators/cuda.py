"""What runs circuits whose tensors are on a CUDA device: Triton, the processor, or plain torch.

``QPEFT_CUDA`` in the environment chooses:

* ``triton``, the default: kernels for few qubits (:mod:`qpeft.simulators.triton_engine`), plain torch for more and
  where the kernels do not work;
* ``torch``: plain torch always;
* ``cpu``: the native kernel on the processor, to which samples are sent through pinned memory and from which results
  come back. The device waits for it. That can pay for small batches where there is no Triton, because plain torch
  takes some hundred launches.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators import native, triton_engine

_CHOICES = ("triton", "torch", "cpu")


def chosen() -> str:
    """What the environment asks for.

    Raises:
        InputError: Something else than the three.
    """
    choice = os.environ.get("QPEFT_CUDA", "triton")
    if choice not in _CHOICES:
        raise InputError(f"QPEFT_CUDA must be one of {', '.join(_CHOICES)} (got {choice!r}).")
    return choice


def engine(circuit: Circuit) -> triton_engine.TritonEngine | PinnedEngine | None:
    """What runs a circuit on CUDA devices; ``None`` leaves it to plain torch."""
    choice = chosen()
    if choice == "cpu" and native.available():
        return PinnedEngine(circuit)
    if choice == "triton" and circuit.n_qubits <= triton_engine.MAX_QUBITS and triton_engine.problem() is None:
        return triton_engine.TritonEngine(circuit)
    return None


def description() -> str:
    """One line for people."""
    choice = chosen()
    if choice == "torch":
        return "plain torch, because QPEFT_CUDA=torch"
    if choice == "cpu":
        if native.available():
            return "the native kernel on the processor, because QPEFT_CUDA=cpu"
        return f"plain torch, because the native kernel is {native.description()}"
    problem = triton_engine.problem()
    if problem is None:
        return f"Triton kernels up to {triton_engine.MAX_QUBITS} qubits, plain torch above"
    return f"plain torch, because Triton {problem}"


class PinnedEngine:
    """The native kernel for tensors on another device.

    Args:
        circuit: The circuit, at most 24 qubits.
    """

    def __init__(self, circuit: Circuit) -> None:
        self.kernel = native.NativeEngine(circuit, check=False)  # as on accelerators: NaN stays with its sample

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_observables)``, on the device of ``inputs``."""
        return _to(inputs.device, self.kernel.evaluate(*_fetched(inputs, weights)))

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_observables), ... -> (batch, n_inputs), (n_weights,)``."""
        on_processor = _fetched(gradient.to(inputs.dtype), inputs, weights)
        to_inputs, to_weights = self.kernel.differentiate(*on_processor)
        return _to(inputs.device, to_inputs), _to(inputs.device, to_weights)


def _fetched(*tensors: Tensor) -> list[Tensor]:
    """Copies in pinned memory, under way together, complete on return."""
    copies = []
    for tensor in tensors:
        copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
        copies.append(copy.copy_(tensor, non_blocking=True))
    if tensors[0].is_cuda:
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return copies


def _to(device: torch.device, result: Tensor) -> Tensor:
    return (result.pin_memory() if device.type == "cuda" else result).to(device, non_blocking=True)
