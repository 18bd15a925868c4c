"""A circuit compiled for one place of a chip, once, for any number of angles.

A chip knows three things: pulses of a quarter turn (or a half turn) about X, rotations about Z that cost nothing
because they only move the frame of later pulses, and CZ between neighbours. So a compiled circuit has free angles in
its RZ gates alone, and what changes from sample to sample is one array of numbers:

    native angles (batch, n_angles) = template.angles(inputs (batch, n_inputs), weights (n_weights,)).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from qpeft.circuits import Circuit


@dataclass(frozen=True)
class NativeTemplate:
    """A circuit on given qubits of a chip.

    Args:
        circuit: Native circuit on wires 0 to k - 1: RX of a constant multiple of 90 degrees (a pulse), RZ (free), CZ
            (only between neighbours). Its inputs are the native angles; it has no weights.
        qubits: Qubit of the chip that each wire stands on, ``(k,)``.
        readout: Wire that carries each qubit of the original circuit in the end, ``(n_qubits,)``; routing may have
            moved it.
        bind: From inputs and weights of the original circuit to native angles.
    """

    circuit: Circuit
    qubits: tuple[int, ...]
    readout: tuple[int, ...]
    bind: Callable[[Tensor, Tensor], Tensor] = field(compare=False, repr=False)

    def angles(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Native angles ``(batch, n_angles)`` of inputs ``(batch, n_inputs)`` and weights ``(n_weights,)``.

        Float64 radians in (-π, π], rounded to 8 decimals unless they carry a gradient.

        Raises:
            InputError: A shape that does not fit, or an angle that is NaN or infinite.
        """
        return self.bind(inputs, weights)
