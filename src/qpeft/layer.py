"""The quantum layer: a circuit whose weights are trained, as a torch module.

``layer(x) = (<P_1>, ..., <P_m>)`` of the state ``U(x, weight)|0...0>``. The module joins a circuit (what is computed)
and an executor (where it is computed); adapters hold such layers and never know about either.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators import run

AngleInit = Literal["uniform", "normal", "zeros"]

_EXECUTORS: dict[str, Callable[[Circuit, Tensor, Tensor], Tensor]] = {"exact": run}
_NORMAL_STD = 0.1


class QuantumLayer(nn.Module):
    """Expectations of a parameterised circuit, differentiable for inputs and weights.

    The angles are one float32 parameter called ``weight``, in the order in which the gates stand in the circuit.

    Args:
        circuit: The circuit; its inputs are the layer's inputs, its observables the outputs.
        executor: Where the circuit runs: ``"exact"`` (batched simulation without noise).
        init: How :meth:`reset_parameters` draws the angles: ``"uniform"`` from [-π, π), ``"normal"`` with standard
            deviation 0.1, ``"zeros"``. Draws come from torch's default generator, so ``torch.manual_seed`` fixes them.

    Raises:
        InputError: Unknown executor or initialiser.

    Shape:
        ``(..., n_inputs) -> (..., n_observables)``. Computed in float32 (float64 for float64 inputs) also under
        autocast; the result has the dtype of the inputs.

    Example:
        >>> from qpeft.circuits import qtha_block
        >>> layer = QuantumLayer(qtha_block(n_qubits=4, n_layers=1))
        >>> layer(torch.zeros(2, 3, 4, dtype=torch.bfloat16)).shape, layer.weight.shape
        (torch.Size([2, 3, 4]), torch.Size([16]))
    """

    def __init__(self, circuit: Circuit, executor: str = "exact", init: AngleInit = "uniform") -> None:
        super().__init__()
        if executor not in _EXECUTORS:
            raise InputError(f"unknown executor {executor!r}; available: {', '.join(sorted(_EXECUTORS))}.")
        if init not in get_args(AngleInit):
            raise InputError(
                f"unknown initialiser {init!r} of the angles; available: {', '.join(get_args(AngleInit))}."
            )
        self.circuit = circuit
        self.executor = executor
        self.init = init
        self.weight = nn.Parameter(torch.empty(circuit.n_weights, dtype=torch.float32))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the angles anew."""
        if self.init == "uniform":
            nn.init.uniform_(self.weight, -math.pi, math.pi)
        elif self.init == "normal":
            nn.init.normal_(self.weight, std=_NORMAL_STD)
        else:
            nn.init.zeros_(self.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """``(..., n_inputs) -> (..., n_observables)``."""
        if inputs.shape[-1:] != (self.circuit.n_inputs,):
            raise InputError(
                f"the last dimension of the inputs must be {self.circuit.n_inputs} (got shape {tuple(inputs.shape)}); "
                f"the circuit takes {self.circuit.n_inputs} inputs."
            )
        batch = inputs.shape[:-1]
        flat = inputs.reshape(math.prod(batch), self.circuit.n_inputs)  # (samples, n_inputs)
        outputs = _EXECUTORS[self.executor](self.circuit, flat, self.weight)
        return outputs.view(*batch, self.circuit.n_observables).to(inputs.dtype)

    def extra_repr(self) -> str:
        c = self.circuit
        return (
            f"n_qubits={c.n_qubits}, n_inputs={c.n_inputs}, n_weights={c.n_weights}, "
            f"n_observables={c.n_observables}, executor={self.executor!r}"
        )
