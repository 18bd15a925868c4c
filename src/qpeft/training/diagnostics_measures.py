r"""Four measures of an adapter that is being trained, as functions of small tensors.

With the tokens' bottlenecks ``Z`` (tokens, r), circuit outputs ``Q`` (tokens, r), and the adapter's output
``D = s (Z W_c^T + Q W_q^T) E^T`` (tokens, d_out):

================  ==================================================================================================
circuit share     ``|s Q W_q^T E^T| / (|s Z W_c^T E^T| + |s Q W_q^T E^T|)``, Frobenius norms
linear-fit R^2    ``1 - sum |q - M x - c|^2 / sum |q - mean q|^2`` over tokens that least squares did not see, for the
                  circuit's input x; 1 means that a matrix could stand in the circuit's place
effective rank    ``exp(-sum_i p_i log p_i)`` with ``p_i = sigma_i / sum_j sigma_j`` (Roy and Vetterli, EUSIPCO 2007)
gradient          ``Var[d<Z_i>/d theta_k]`` over angles, observables and tokens; where it falls as 2^-n with the
variance          number of qubits n, training sits on a barren plateau (McClean et al., arXiv:1803.11173)
================  ==================================================================================================

All are taken in float64 on the processor. ``None`` stands where a measure is not defined.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qpeft.circuits import Circuit
from qpeft.circuits.parameters import weights_as_inputs
from qpeft.simulators import run

#: two tokens closer than this share of the standard deviation, in every coordinate, are one (the same prefix twice)
_SAME = 0.01
#: expectations lie in [-1, 1] with rounding errors of some 1e-7: less variance than this is none
_NO_VARIANCE = 1e-12


def share_of(part: Tensor, rest: Tensor) -> float | None:
    """``|part| / (|part| + |rest|)`` with Frobenius norms; ``None`` where both are zero.

    Example:
        >>> share_of(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 15.0]))
        0.25
    """
    ours, theirs = float(_exact(part).norm()), float(_exact(rest).norm())
    return ours / (ours + theirs) if ours + theirs > 0 else None


def product_singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Singular values of ``left @ right.T`` from ``(m, k)`` and ``(n, k)``, without forming the ``(m, n)`` product.

    Args:
        left: ``(m, k)``.
        right: ``(n, k)``.

    Returns:
        At most k values, largest first; NaN where a number is not finite.
    """
    inner_left = torch.linalg.qr(_exact(left), mode="r").R  # (min(m, k), k)
    inner_right = torch.linalg.qr(_exact(right), mode="r").R  # (min(n, k), k)
    inner = inner_left @ inner_right.T
    return torch.linalg.svdvals(inner) if inner.isfinite().all() else inner.new_full((min(inner.shape),), torch.nan)


def effective_rank(singular_values: Tensor) -> float | None:
    """Exponential of the entropy of normalised singular values: from 1 to their number.

    Returns:
        ``None`` where all are zero, or one is NaN.

    Example:
        >>> round(effective_rank(torch.tensor([2.0, 2.0, 2.0, 0.0])), 6)
        3.0
    """
    values = _exact(singular_values)
    total = values.sum()
    if not total > 0:
        return None
    shares = values / total
    return float(torch.special.entr(shares).sum().exp())


def linear_fit_r2(inputs: Tensor, outputs: Tensor) -> float | None:
    """Held-out R^2 of the least-squares fit ``outputs ~ inputs @ M.T + c``.

    Every second distinct token is fitted, the others are predicted. Tokens that occur more than once (a common prompt)
    count once, or the prediction would know its answer.

    Args:
        inputs: ``(tokens, n)``.
        outputs: ``(tokens, m)``.

    Returns:
        At most 1; below 0 where the fit predicts worse than the mean. ``None`` with fewer than ``4 (n + 1)`` distinct
        tokens, outputs that do not vary, or a number that is not finite.
    """
    x, y = _exact(inputs), _exact(outputs)
    needed = 4 * (x.shape[1] + 1)
    if len(x) < needed or not (x.isfinite().all() and y.isfinite().all()):
        return None
    rows = _distinct(x)
    if len(rows) < needed:
        return None
    x, y = torch.cat([x[rows], x.new_ones(len(rows), 1)], 1), y[rows]  # (distinct, n + 1), (distinct, m)
    coefficients = torch.linalg.lstsq(x[::2], y[::2], driver="gelsd").solution  # (n + 1, m)
    held_out = y[1::2]
    variation = (held_out - held_out.mean(0)).square().sum()
    if variation <= _NO_VARIANCE * held_out.numel():
        return None
    return float(1 - (held_out - x[1::2] @ coefficients).square().sum() / variation)


def circuit_gradient_variance(circuit: Circuit, inputs: Tensor, weights: Tensor) -> float:
    """Variance of ``d<P_i>/d theta_k`` over angles k, observables i and tokens, on the exact simulator.

    It does not depend on the loss or on the rest of the model. An observable outside an angle's light cone counts
    with its derivative of zero.

    Args:
        circuit: The circuit, with at least one weight.
        inputs: ``(tokens, n_inputs)``, radians.
        weights: ``(n_weights,)``, radians.
    """
    given, angles = _exact(inputs), _exact(weights)
    # As inputs, so that every token has a derivative of its own.
    everything = torch.cat([given, angles.expand(len(given), -1)], 1).requires_grad_()  # (tokens, inputs + weights)
    with torch.enable_grad():
        outputs = run(weights_as_inputs(circuit), everything, angles.new_zeros(0), check=False)
        slopes = [torch.autograd.grad(column.sum(), everything, retain_graph=True)[0] for column in outputs.unbind(1)]
    jacobian = torch.stack(slopes)[..., circuit.n_inputs :]  # (observables, tokens, weights)
    return float(jacobian.var(correction=0))


def two_design_variance(n_qubits: int) -> float:
    """``Var[d<P>/d theta]`` of a Pauli rotation between random circuits: ``d^2 / (2 (d^2 - 1) (d + 1))``, ``d = 2^n``.

    The plateau of McClean et al.: the parts before and after the gate are 2-designs, as if drawn from all unitaries.
    It is about ``2^-(n+1)``.

    Example:
        >>> [round(two_design_variance(n), 4) for n in (2, 4, 8)]
        [0.1067, 0.0295, 0.0019]
    """
    d = 2**n_qubits
    return d * d / (2 * (d * d - 1) * (d + 1))


def _exact(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _distinct(x: Tensor) -> Tensor:
    """Places of the first occurrences of rows, in order: ``(tokens, n) -> (distinct,)``."""
    cells = (x / (_SAME * x.std(0)).clamp(min=torch.finfo(x.dtype).tiny)).round()
    _, inverse = torch.unique(cells, dim=0, return_inverse=True)
    first = torch.full((int(inverse.max()) + 1,), len(x))
    return first.scatter_reduce(0, inverse, torch.arange(len(x)), "amin").sort().values
