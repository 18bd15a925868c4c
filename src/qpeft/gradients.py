r"""Gradients from expectations alone, as a quantum computer needs them.

Parameter-shift rules are exact. A rotation ``exp(-iθP/2)`` has the eigenvalues ±1/2, so two evaluations suffice; a
controlled rotation also has the eigenvalue 0, so its expectation holds two frequencies and four are needed::

    RX, RY, RZ:       df/dθ = ½ [f(θ + π/2) - f(θ - π/2)]
    CRX, CRY, CRZ:    df/dθ = c₊ [f(θ + π/2) - f(θ - π/2)] - c₋ [f(θ + 3π/2) - f(θ - 3π/2)],   c± = (√2 ± 1) / (4√2)

The rules hold for one gate. A value that enters several gates (data re-uploading, shared weights) is therefore shifted
in one gate at a time, and the results are summed with the scales of those gates.

Simultaneous perturbation (SPSA) moves all angles of a sample at once, in a random direction Δ of ±1::

    g = [f(θ + cΔ) - f(θ - cΔ)] / 2c · Δ

Two evaluations, whatever the number of angles, with the right mean but for terms of order c², and with the size of the
whole gradient as the deviation of each of its components; shot noise enters divided by c.

Papers: Schuld et al., arXiv 1811.11184 (two terms); Anselmetti et al., arXiv 2104.05695, and Wierichs et al.,
arXiv 2107.12390 (four terms); J. C. Spall, IEEE Trans. Automatic Control 37, 332 (1992) (SPSA).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.circuits.parameters import occurrences, separated, sources, weights_as_inputs
from qpeft.errors import InputError
from qpeft.simulators import run
from qpeft.simulators.bases import settings

_HALF = math.pi / 2
_PLUS = (math.sqrt(2) + 1) / (4 * math.sqrt(2))
_MINUS = (math.sqrt(2) - 1) / (4 * math.sqrt(2))
_TWO_TERMS = ((0.5, _HALF), (-0.5, -_HALF))
_FOUR_TERMS = ((_PLUS, _HALF), (-_PLUS, -_HALF), (-_MINUS, 3 * _HALF), (_MINUS, -3 * _HALF))

SHIFT_RULES: dict[str, tuple[tuple[float, float], ...]] = {
    **dict.fromkeys(("RX", "RY", "RZ"), _TWO_TERMS),
    **dict.fromkeys(("CRX", "CRY", "CRZ"), _FOUR_TERMS),
}
"""Gate name -> (coefficient, shift in radians) of every evaluation."""


RULE_BIAS = {
    "adjoint": "none: the exact derivative of what the executor computes",
    "shift": "none, but for how a chip's noise itself depends on the angles",
    "spsa": "as shift, and of the order of the squared step",
    "twin": "as much as the chip's snapshot is wrong about the chip",
}
"""Gradient rule -> how its mean differs from the gradient of the expectations."""


class CircuitCount(NamedTuple):
    """Circuits of one row and one measurement basis each."""

    forward: int
    gradient: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.forward + self.gradient


def count_circuits(circuit: Circuit, rule: str, rows: int, n_directions: int = 1) -> CircuitCount:
    """Number of circuits that a forward and a backward pass run, known before anything is sent.

    ==============  =====================================
    rule            circuits of the backward pass
    ==============  =====================================
    ``"adjoint"``   0 (on the simulator)
    ``"twin"``      0 (on the simulator)
    ``"spsa"``      2 · rows · directions · bases
    ``"shift"``     shifts · rows · bases
    ==============  =====================================

    Args:
        circuit: The circuit.
        rule: How it is differentiated.
        rows: Samples (tokens) that go through it; in the backward pass those with a gradient to carry.
        n_directions: Directions of ``"spsa"``.

    Raises:
        InputError: Unknown rule.

    Example:
        >>> from qpeft.circuits import qtha_block
        >>> count_circuits(qtha_block(n_qubits=4, n_layers=1), "shift", rows=64)
        CircuitCount(forward=64, gradient=3584)
    """
    each = {"adjoint": 0, "twin": 0, "spsa": 2 * n_directions, "shift": count_shift_circuits(circuit)}
    if rule not in each:
        raise InputError(f"unknown gradient rule {rule!r}; available: {', '.join(each)}.")
    forward = rows * len(settings(circuit.key))
    return CircuitCount(forward, forward * each[rule])


class ShiftGradient(NamedTuple):
    """Gradients for inputs and for weights, as Jacobians or as vector-Jacobian products."""

    inputs: Tensor
    weights: Tensor


def count_shift_circuits(circuit: Circuit) -> int:
    """Number of circuits that :func:`shift_gradient` runs per sample: 14 n L for ``qtha_block`` (two qubits or more).

    Example:
        >>> from qpeft.circuits import qtha_block
        >>> count_shift_circuits(qtha_block(n_qubits=4, n_layers=4))
        224
    """
    return sum(len(SHIFT_RULES[gate.name]) for gate in occurrences(circuit))


def shift_gradient(
    circuit: Circuit,
    inputs: Tensor,
    weights: Tensor,
    evaluate: Callable[[Circuit, Tensor, Tensor], Tensor] = run,
    cotangent: Tensor | None = None,
) -> ShiftGradient:
    """Differentiate a circuit by shifting the angle of each gate occurrence.

    Args:
        circuit: The circuit.
        inputs: ``(batch, n_inputs)`` radians.
        weights: ``(n_weights,)`` radians.
        evaluate: Runs circuits: ``(circuit, inputs, weights) -> expectations``. It is called once, with a circuit in
            which every occurrence has an input of its own (and no weight), and with ``count_shift_circuits(circuit) *
            batch`` rows of angles: all rows of the first shift, then all rows of the second, and so on.
        cotangent: ``(batch, n_observables)``, the gradient of a loss for the expectations; ``None`` asks for
            Jacobians.

    Returns:
        Without cotangent the Jacobians ``(batch, n_observables, n_inputs)`` and ``(batch, n_observables, n_weights)``;
        with it their products ``(batch, n_inputs)`` and ``(n_weights,)``, the latter summed over the batch.

    Raises:
        InputError: A shape that does not fit the circuit.
    """
    batch = inputs.shape[0]
    if inputs.shape != (batch, circuit.n_inputs) or weights.shape != (circuit.n_weights,):
        raise InputError(
            f"inputs and weights must have the shapes (batch, {circuit.n_inputs}) and ({circuit.n_weights},) "
            f"(got {tuple(inputs.shape)} and {tuple(weights.shape)}); pass what the circuit takes."
        )
    if cotangent is not None and cotangent.shape != (batch, circuit.n_observables):
        raise InputError(
            f"the cotangent must have the shape ({batch}, {circuit.n_observables}) (got {tuple(cotangent.shape)}); "
            f"give one number per expectation."
        )
    gates = occurrences(circuit)
    inputs, weights = inputs.detach(), weights.detach().to(inputs.dtype)
    to_inputs, to_weights = sources(circuit, inputs)
    angles = inputs @ to_inputs.t() + to_weights @ weights  # (batch, occurrences)

    terms = [(place, *term) for place, gate in enumerate(gates) for term in SHIFT_RULES[gate.name]]
    shifts = angles.new_zeros(len(terms), len(gates))
    rule = angles.new_zeros(len(gates), len(terms))
    for row, (place, coefficient, shift) in enumerate(terms):
        shifts[row, place] = shift
        rule[place, row] = coefficient
    shifted = (angles + shifts[:, None]).flatten(0, 1)  # (terms * batch, occurrences)
    values = evaluate(separated(circuit), shifted, weights.new_zeros(0)).detach()
    values = values.view(len(terms), batch, circuit.n_observables).to(angles.dtype)

    if cotangent is not None:
        per_gate = torch.einsum("pt,tbm,bm->bp", rule, values, cotangent.detach().to(angles.dtype))
        return ShiftGradient(per_gate @ to_inputs, per_gate.sum(0) @ to_weights)
    jacobian = torch.einsum("pt,tbm->bmp", rule, values)
    return ShiftGradient(jacobian @ to_inputs, jacobian @ to_weights)


def spsa_gradient(
    circuit: Circuit,
    inputs: Tensor,
    weights: Tensor,
    cotangent: Tensor,
    evaluate: Callable[[Circuit, Tensor, Tensor], Tensor] = run,
    n_directions: int = 1,
    step: float = 0.1,
    generator: torch.Generator | None = None,
) -> ShiftGradient:
    """Estimate a gradient by moving all angles of every sample at once, in random directions.

    Args:
        circuit: The circuit.
        inputs: ``(batch, n_inputs)`` radians.
        weights: ``(n_weights,)`` radians; every sample moves them in a direction of its own.
        cotangent: ``(batch, n_observables)``, the gradient of a loss for the expectations.
        evaluate: Runs circuits, as in :func:`shift_gradient`. It is called once, with a circuit whose weights are
            further inputs, and with ``2 * n_directions * batch`` rows.
        n_directions: Directions for each sample, whose estimates are averaged.
        step: c, radians. The bias grows with its square times the number of angles, shot noise with its inverse.
        generator: Where directions come from; ``None``: torch's default.

    Returns:
        ``(batch, n_inputs)`` and ``(n_weights,)``, the latter summed over the batch.

    Raises:
        InputError: A shape that does not fit the circuit, or a number out of range.
    """
    batch = inputs.shape[0]
    if isinstance(n_directions, bool) or not isinstance(n_directions, int) or n_directions < 1:
        raise InputError(f"n_directions must be a whole number of at least 1 (got {n_directions!r}).")
    if not 0 < step <= 1:
        raise InputError(f"the step of SPSA must be above 0 and at most 1 radian (got {step!r}); take 0.1.")
    if inputs.shape != (batch, circuit.n_inputs) or weights.shape != (circuit.n_weights,):
        raise InputError(
            f"inputs and weights must have the shapes (batch, {circuit.n_inputs}) and ({circuit.n_weights},) "
            f"(got {tuple(inputs.shape)} and {tuple(weights.shape)}); pass what the circuit takes."
        )
    inputs, weights = inputs.detach(), weights.detach().to(inputs.dtype)
    angles = torch.cat([inputs, weights.expand(batch, -1)], 1)  # (batch, angles)
    coins = torch.randint(2, (n_directions, *angles.shape), generator=generator, device="cpu")
    signs = (2 * coins - 1).to(angles)
    moved = torch.stack([angles + step * signs, angles - step * signs])  # (2, directions, batch, angles)
    values = evaluate(weights_as_inputs(circuit), moved.flatten(0, 2), angles.new_zeros(0)).detach()
    plus, minus = values.to(angles.dtype).view(2, n_directions, batch, circuit.n_observables)
    slopes = torch.einsum("dbm,bm->db", plus - minus, cotangent.detach().to(angles.dtype)) / (2 * step)
    found = torch.einsum("db,dba->ba", slopes, signs) / n_directions
    return ShiftGradient(found[:, : circuit.n_inputs], found[:, circuit.n_inputs :].sum(0))
