r"""From inputs and weights to the angles of the RZ gates on a chip, for a whole batch at once.

Every native angle is affine in the inputs, the weights, and three numbers of each run that has more than one turn
about Y: ``RZ(S + D) RY(T) RZ(S - D)`` is what the run multiplies to. As a unit quaternion ``(w, x, y, z)`` it has

    S = atan2(z, w),      D = atan2(-x, y),      T = 2 atan2(√(x² + y²), √(w² + z²)),

so a batch costs one product with a matrix, a few products of quaternions, and one more product with a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from qpeft.chips.turns import Affine, Turn
from qpeft.errors import InputError

DECIMALS = 8  # what OriginIR writes
_NOWHERE = 1e-24


@dataclass(frozen=True)
class NativeAngles:
    """The function ``bind`` of a template.

    Args:
        n_inputs: Inputs of the original circuit.
        n_weights: Its weights.
        runs: Runs that have no simpler form than a product, first turn first.
        angles: Every native angle as coefficients of the features 1, inputs, weights, and S, D, T of each run.
    """

    n_inputs: int
    n_weights: int
    runs: tuple[tuple[Turn, ...], ...]
    angles: tuple[Affine, ...]

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Native angles ``(batch, n_angles)`` in (-π, π], float64, rounded to 8 decimals.

        Gradients pass through the rounding as if it were not there. Where a run of several turns happens to be a plain
        RZ or a half turn, S and D are not unique and their gradients are 0.

        Args:
            inputs: ``(batch, n_inputs)``.
            weights: ``(n_weights,)``.

        Raises:
            InputError: A shape that does not fit, or an angle that is NaN or infinite.
        """
        if inputs.dim() != 2 or inputs.shape[1] != self.n_inputs:
            raise InputError(
                f"inputs have the shape {tuple(inputs.shape)}, the circuit needs (batch, {self.n_inputs}); reshape."
            )
        if weights.dim() != 1 or weights.shape[0] != self.n_weights:
            raise InputError(
                f"weights have the shape {tuple(weights.shape)}, the circuit needs ({self.n_weights},); reshape."
            )
        batch, device = inputs.shape[0], inputs.device
        one = torch.ones(batch, 1, dtype=torch.float64, device=device)
        shared = weights.to(device=device, dtype=torch.float64).expand(batch, -1)
        features = torch.cat([one, inputs.to(torch.float64), shared], dim=1)  # (batch, features)
        if self.runs:
            features = torch.cat([features, self.products(features)], dim=1)
        angles = features @ self._matrix.to(device)  # (batch, angles)
        if not bool(torch.isfinite(angles).all()):
            raise InputError("an angle of the circuit is NaN or infinite; look at its inputs and weights.")
        turns = torch.ceil((angles.detach() - math.pi) / (2 * math.pi))
        wrapped = angles - 2 * math.pi * turns
        rounded = torch.round(wrapped.detach(), decimals=DECIMALS) + 0.0
        return (wrapped - wrapped.detach()) + rounded

    def products(self, features: Tensor) -> Tensor:
        """S, D and T of every run ``(batch, 3 n_runs)`` from features ``(batch, n_features)``."""
        half = torch.einsum("bf,lrf->lbr", features, self._steps.to(features.device)) / 2  # (steps, batch, runs)
        cos, sin = half.cos(), half.sin()
        w, x, y, z = cos[0], torch.zeros_like(cos[0]), torch.zeros_like(cos[0]), sin[0]  # the first step is about Z
        for step in range(1, half.shape[0]):
            c, s = cos[step], sin[step]
            if step % 2:  # about Y
                w, x, y, z = c * w - s * y, c * x + s * z, c * y + s * w, c * z - s * x
            else:
                w, x, y, z = c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w
        total, difference = _direction(z, w), _direction(-x, y)
        tilt = 2 * torch.atan2(_length(x, y), _length(w, z))
        return torch.stack([total, difference, tilt], dim=-1).flatten(1)  # (batch, 3 runs)

    @cached_property
    def _steps(self) -> Tensor:
        """Coefficients ``(steps, runs, features)`` of the turns, about Z and Y in alternation."""
        padded = [((Turn("Z", {}),) if run[0].axis == "Y" else ()) + run for run in self.runs]
        steps = torch.zeros(
            max(map(len, padded)), len(padded), 1 + self.n_inputs + self.n_weights, dtype=torch.float64
        )
        for number, run in enumerate(padded):
            for step, turn in enumerate(run):
                for feature, value in turn.angle.items():
                    steps[step, number, feature] = value
        return steps

    @cached_property
    def _matrix(self) -> Tensor:
        n_features = 1 + self.n_inputs + self.n_weights + 3 * len(self.runs)
        return _dense(self.angles, n_features)


def _dense(rows: Sequence[Affine], n_features: int) -> Tensor:
    matrix = torch.zeros(n_features, len(rows), dtype=torch.float64)
    for column, row in enumerate(rows):
        for feature, value in row.items():
            matrix[feature, column] = value
    return matrix


def _direction(sine: Tensor, cosine: Tensor) -> Tensor:
    """atan2 with the value and the gradient 0 where both arguments vanish."""
    nowhere = sine * sine + cosine * cosine < _NOWHERE
    return torch.atan2(torch.where(nowhere, 0.0, sine), torch.where(nowhere, 1.0, cosine))


def _length(first: Tensor, second: Tensor) -> Tensor:
    """√(a² + b²) with the gradient 0 where it vanishes."""
    square = first * first + second * second
    nowhere = square < _NOWHERE
    return torch.where(nowhere, 0.0, torch.where(nowhere, 1.0, square).sqrt())


def constant_tilts(runs: Sequence[tuple[Turn, ...]], n_inputs: int, n_weights: int) -> list[float | None]:
    """Of every run the tilt T where it is 0, a quarter or a half turn whatever the angles are, else ``None``.

    The cosine of T is a polynomial in sines and cosines of the angles: it is constant if it is so at random ones.
    """
    if not runs:
        return []
    random = torch.Generator().manual_seed(0)
    probes = 1 + n_inputs + n_weights
    features = torch.rand(6, probes, dtype=torch.float64, generator=random) * 6 - 3
    features[:, 0] = 1.0
    tilts = NativeAngles(n_inputs, n_weights, tuple(runs), ()).products(features)[:, 2::3]  # (probes, runs)
    found: list[float | None] = []
    for column in tilts.T:
        same = [value for value in (0.0, math.pi / 2, math.pi) if float((column - value).abs().max()) < 1e-7]
        found.append(same[0] if same else None)
    return found
