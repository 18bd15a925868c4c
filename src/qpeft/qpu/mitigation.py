r"""From counts to expectations: readout errors undone, scales fitted, and, for audits, noise extrapolated away.

*Tensored readout inversion* (on by default). Wire ``i`` reads 1 for 0 with ``p10`` and 0 for 1 with ``p01``, so what
is read are the state's probabilities times ``⊗_i [[1 - p10, p01], [p10, 1 - p01]]``. For the Z string over the wires
``m`` its inverse comes to the mean, over the bits ``b`` that were read, of

    Π_{i in m} v_i(b_i),        v_i(b) = ((-1)**b - (p01 - p10)) / λ_i,        λ_i = 1 - p10 - p01.

Without bias; where both errors of a wire are alike, a shot has the variance ``Π_i 1/λ_i² - <Z>²``, not ``1 - <Z>²``.
The errors come from two calibration circuits, all wires 0 and all wires 1; what the pulses of the second do wrong
counts as readout.

*Affine normalisation* (QuantumNAT, arXiv 2110.11331). Noise acts on an expectation nearly as ``scale · <P> + shift``.
Both are fitted for every observable and region from reference circuits with known results, and undone; shot noise
grows by ``1 / scale``. How far noise is not affine remains as bias.

*Zero-noise extrapolation* (arXiv 1612.02058, 2005.10921). CZ is its own inverse, so each may stand 1, 3 or 5 times.
The expectations are extrapolated to 0 times: ``Σ_j c_j <P>_j``, with the variance ``Σ_j c_j² σ_j²`` (5.2 σ² for 1, 3,
5 by Richardson). It makes circuits deeper, which short coherence forbids, so it serves to check results, not to get
them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from qpeft.chips import NativeTemplate
from qpeft.circuits import Circuit
from qpeft.circuits.parameters import weights_as_inputs
from qpeft.errors import InputError
from qpeft.qpu.m3 import m3_correct
from qpeft.qpu.protocol import ProviderError
from qpeft.simulators import run

Readout = Literal["tensored", "m3", "none"]
Fit = Literal["richardson", "linear"]

_LEAST_CONTRAST = 0.1  # of a wire's readout; below, shots of any number a user can pay say nothing
_LEAST_SCALE = 0.05
_POOL = 32  # candidates for every reference circuit


@dataclass(frozen=True)
class Mitigation:
    """What is done about errors.

    Args:
        readout: ``"tensored"`` (inversion wire by wire), ``"m3"`` (the same calibration, solved over the bit strings
            that were read, arXiv 2108.12518; for ten wires and more) or ``"none"``.
        affine: Whether scale and shift of every observable are fitted for every region and undone.
        calibration_shots: Shots of each calibration circuit; ``None``: ten times those of the executor, within what
            the provider allows.
        references: Reference circuits of the affine fit in every region.
        minutes: Age from which a calibration is made anew.

    Raises:
        InputError: A value out of range.
    """

    readout: Readout = "tensored"
    affine: bool = False
    calibration_shots: int | None = None
    references: int = 32
    minutes: float = 60.0

    def __post_init__(self) -> None:
        if self.readout not in get_args(Readout):
            raise InputError(
                f"unknown readout mitigation {self.readout!r}; available: {', '.join(get_args(Readout))}."
            )
        for name, least in (("calibration_shots", 1), ("references", 4)):
            value = getattr(self, name)
            if value is None and name == "calibration_shots":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise InputError(f"{name} must be a whole number of at least {least} (got {value!r}).")
        if not isinstance(self.minutes, (int, float)) or not self.minutes > 0:
            raise InputError(f"the age of a calibration must be more than 0 minutes (got {self.minutes!r}).")


def readout_flips(zeros: Tensor, ones: Tensor, names: Sequence[object] | None = None) -> Tensor:
    """Flip probabilities of wires from the two calibration circuits.

    Args:
        zeros: Share of shots in which each wire read 1 although prepared in 0, ``(wires,)``.
        ones: The same, prepared in 1.
        names: What messages call the wires.

    Returns:
        ``(wires, 2)``: p10 and p01.

    Raises:
        ProviderError: A wire reads 0 and 1 alike.

    Example:
        >>> readout_flips(torch.tensor([0.1, 0.0]), torch.tensor([0.75, 1.0])).tolist()
        [[0.10000000149011612, 0.25], [0.0, 0.0]]
    """
    contrast = ones - zeros
    if (contrast < _LEAST_CONTRAST).any():
        wire = int(contrast.argmin())
        raise ProviderError(
            f"qubit {wire if names is None else names[wire]} reads 1 with probability {zeros[wire]:.2f} when it is 0 "
            f"and {ones[wire]:.2f} when it is 1, so its readout says nothing; use other regions (max_blocks, "
            f"min_fidelity), or wait until the chip is calibrated."
        )
    return torch.stack([zeros, 1 - ones], 1)


def outcome_values(masks: Sequence[int], k: int, flips: Tensor | None = None) -> Tensor:
    """What every outcome counts for in the mean that estimates each Z string.

    Args:
        masks: Wires of each string as bits; wire 0 is the most significant of ``k``.
        k: Number of wires.
        flips: ``(k, 2)`` from :func:`readout_flips`; ``None`` takes the bits as they were read.

    Returns:
        ``(2**k, strings)``, float64: ±1 without flips.

    Example:
        >>> outcome_values([0b10, 0b11], k=2).T.tolist()
        [[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, -1.0, 1.0]]
    """
    flips = torch.zeros(k, 2, dtype=torch.float64) if flips is None else flips
    shift, contrast = flips[:, 1] - flips[:, 0], 1 - flips.sum(1)
    read = torch.stack([(1 - shift) / contrast, (-1 - shift) / contrast], 1)  # (k, 2)
    values = torch.ones(1, len(masks), dtype=torch.float64)
    for wire in range(k):
        used = torch.tensor([mask >> (k - 1 - wire) & 1 for mask in masks], dtype=torch.bool)
        factor = torch.where(used, read[wire, :, None], 1.0)  # (2, strings)
        values = (values[:, None] * factor).flatten(0, 1)
    return values


class Estimate(NamedTuple):
    """Expectations and their standard errors from shots, both ``(rows, n_observables)``."""

    values: Tensor
    errors: Tensor


def estimate(counts: Tensor, masks: Sequence[int], flips: Tensor | None = None, m3: bool = False) -> Estimate:
    """Expectations of Z strings from counts.

    Args:
        counts: ``(rows, 2**k)``; wire 0 is the most significant bit.
        masks: Wires of each string, as in :func:`outcome_values`.
        flips: ``(k, 2)`` from :func:`readout_flips`, or ``None``.
        m3: Solve over the outcomes that were read instead of inverting wire by wire.

    Returns:
        Two tensors ``(rows, strings)``, float64. The errors are those of tensored inversion, from these shots and not
        from those of the calibration.
    """
    k = counts.shape[1].bit_length() - 1
    values = outcome_values(masks, k, flips)  # (2**k, strings)
    shares = counts.double() / counts.sum(1, keepdim=True)
    means = shares @ values
    spread = (shares @ values.square() - means.square()).clamp(min=0)
    errors = (spread / counts.sum(1, keepdim=True)).sqrt()
    if m3 and flips is not None:
        p10, p01 = flips.T
        confusion = torch.stack([torch.stack([1 - p10, p01], 1), torch.stack([p10, 1 - p01], 1)], 1)  # (k, 2, 2)
        means = m3_correct(counts, confusion) @ outcome_values(masks, k)
    return Estimate(means, errors)


class AffineFit(NamedTuple):
    """``measured = scale · exact + shift`` for each observable, both ``(n_observables,)``."""

    scale: Tensor
    shift: Tensor

    def undo(self, measured: Tensor) -> Tensor:
        """``(measured - shift) / scale``, differentiable."""
        return (measured - self.shift.to(measured.dtype)) / self.scale.to(measured.dtype)


def fit_affine(measured: Tensor, exact: Tensor) -> AffineFit:
    """Least squares of measured reference circuits against their exact expectations, observable by observable.

    The exact values hold no error, so scale and shift are estimated without bias, with the variances
    ``σ² / Σ (x - x̄)²`` and ``σ² (1/N + x̄² / Σ (x - x̄)²)``.

    Args:
        measured: ``(references, n_observables)``.
        exact: The same shape.

    Raises:
        ProviderError: Noise has left (almost) nothing of an observable.

    Example:
        >>> exact = torch.tensor([[-1.0], [0.0], [1.0]])
        >>> [round(part.item(), 3) for part in fit_affine(0.8 * exact + 0.1, exact)]
        [0.8, 0.1]
    """
    measured, exact = measured.double(), exact.double()
    centre = exact.mean(0)
    spread = (exact - centre).square().sum(0)
    fixed = spread < 1e-9  # an observable that no angle changes has a shift alone
    scale = ((exact - centre) * measured).sum(0) / spread.clamp(min=1e-9)
    scale = torch.where(fixed, 1.0, scale)
    if (scale < _LEAST_SCALE).any():
        place = int(scale.argmin())
        raise ProviderError(
            f"noise leaves {max(0.0, scale[place].item()):.0%} of observable {place}, too little to be scaled up; "
            f"use fewer layers or qubits, better regions (min_fidelity), or leave affine normalisation out."
        )
    return AffineFit(scale, measured.mean(0) - scale * centre)


def reference_angles(circuit: Circuit, count: int, seed: int = 0) -> Tensor:
    """Angles that make good reference circuits: of many random ones, those with the largest expectations.

    Returns:
        ``(count, n_inputs + n_weights)`` radians, float64, for
        :func:`~qpeft.circuits.parameters.weights_as_inputs` of the circuit.
    """
    free = weights_as_inputs(circuit)
    generator = torch.Generator().manual_seed(seed)
    angles = (torch.rand(_POOL * count, free.n_inputs, generator=generator, dtype=torch.float64) * 2 - 1) * math.pi
    sizes = run(free, angles, angles.new_zeros(0)).square().sum(1)
    return angles[sizes.topk(count).indices]


def fold_cz(template: NativeTemplate, times: int) -> NativeTemplate:
    """The template with every CZ repeated: the same circuit, with the noise of CZ that many times.

    Raises:
        InputError: Not an odd number of 1 or more.
    """
    if isinstance(times, bool) or not isinstance(times, int) or times < 1 or times % 2 == 0:
        raise InputError(f"CZ can be repeated an odd number of times, 1, 3, 5, ... (got {times!r}).")
    gates = tuple(gate for gate in template.circuit.gates for _ in range(times if gate.name == "CZ" else 1))
    return replace(template, circuit=replace(template.circuit, gates=gates))


def extrapolation_weights(factors: Sequence[float], fit: Fit = "richardson") -> Tensor:
    """Coefficients ``c_j`` of the expectations at noise ``factors[j]`` in the one at noise 0.

    Richardson's polynomial goes through all points: ``c_j = Π_{i≠j} f_i / (f_i - f_j)``. The line is fitted by least
    squares: more bias, less variance.

    Raises:
        InputError: Fewer than two different factors, or an unknown fit.

    Example:
        >>> extrapolation_weights((1, 3, 5)).tolist()
        [1.875, -1.25, 0.375]
    """
    if len(set(factors)) < 2 or len(set(factors)) != len(factors):
        raise InputError(f"extrapolation needs at least two different factors (got {tuple(factors)}); use 1, 3, 5.")
    points = torch.tensor(factors, dtype=torch.float64)
    if fit == "richardson":
        rest = [torch.cat([points[:j], points[j + 1 :]]) for j in range(len(points))]
        return torch.stack([(r / (r - points[j])).prod() for j, r in enumerate(rest)])
    if fit == "linear":
        return torch.linalg.pinv(torch.stack([torch.ones_like(points), points], 1))[0]
    raise InputError(f"unknown fit {fit!r}; available: {', '.join(get_args(Fit))}.")
