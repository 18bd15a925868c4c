"""What every simulator asks of the angles it is given."""

from __future__ import annotations

import math

from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.errors import InputError


def check_angles(circuit: Circuit, inputs: Tensor, weights: Tensor) -> None:
    """Make sure that inputs ``(batch, n_inputs)`` and weights ``(n_weights,)`` fit a circuit.

    Raises:
        InputError: A shape, dtype or device that does not fit.
    """
    if inputs.dim() != 2 or inputs.shape[1] != circuit.n_inputs:
        raise InputError(
            f"inputs must have the shape (batch, {circuit.n_inputs}) (got {tuple(inputs.shape)}); "
            f"the circuit takes {circuit.n_inputs} inputs."
        )
    check_weights(circuit, weights)
    if not (inputs.is_floating_point() and weights.is_floating_point()):
        raise InputError(f"angles must be real floating point (got {inputs.dtype} and {weights.dtype}); cast them.")
    if inputs.device != weights.device:
        raise InputError(f"inputs are on {inputs.device}, weights on {weights.device}; move them to one device.")


def check_weights(circuit: Circuit, weights: Tensor) -> None:
    """Make sure that weights ``(n_weights,)`` are as many as a circuit takes.

    Raises:
        InputError: Another shape.
    """
    if weights.dim() != 1 or weights.shape[0] != circuit.n_weights:
        raise InputError(
            f"weights must have the shape ({circuit.n_weights},) (got {tuple(weights.shape)}); "
            f"the circuit takes {circuit.n_weights} weights."
        )


def check_finite(inputs: Tensor, weights: Tensor) -> None:
    """Make sure that angles are numbers; not on accelerators, where the host would have to wait.

    Raises:
        InputError: NaN or infinity.
    """
    for name, angles in (("inputs", inputs), ("weights", weights)):
        # The sum is quick to look at; only if it is no number, all angles are.
        if angles.device.type == "cpu" and not math.isfinite(angles.sum()) and not angles.isfinite().all():
            raise InputError(f"{name} hold NaN or infinity; angles must be finite numbers of radians.")
