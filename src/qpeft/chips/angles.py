r"""From inputs and weights to the angles of the RZ gates on a chip, for a whole batch at once.

Every native angle is affine in the inputs, the weights, and three numbers of each product of turns that was not
simplified before: ``RZ(S + D) RY(T) RZ(S - D)`` is what it multiplies to. As a unit quaternion ``(w, x, y, z)`` it has

    S = atan2(z, w),      D = atan2(-x, y),      T = 2 atan2(√(x² + y²), √(w² + z²)),

so a batch costs one product with a matrix, a few products of quaternions, and one more product with a matrix. The
turns of a product may themselves depend on S, D and T of earlier ones, which then come first.
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
_ASIDE = 1e-8


@dataclass(frozen=True)
class NativeAngles:
    """The function ``bind`` of a template.

    Args:
        n_inputs: Inputs of the original circuit.
        n_weights: Its weights.
        runs: Products of turns, first turn first.
        angles: Every native angle as coefficients of the features 1, inputs, weights, and S, D, T of each product.
    """

    n_inputs: int
    n_weights: int
    runs: tuple[tuple[Turn, ...], ...]
    angles: tuple[Affine, ...]

    def __call__(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """Native angles ``(batch, n_angles)`` in (-π, π], float64, rounded to 8 decimals.

        Differentiable for inputs and weights; angles that carry a gradient, which only a simulator can use, are not
        rounded.

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
        features = self.products(features)
        angles = features @ self._matrix.to(device)  # (batch, angles)
        if not bool(torch.isfinite(angles).all()):
            raise InputError("an angle of the circuit is NaN or infinite; look at its inputs and weights.")
        wrapped = angles - 2 * math.pi * torch.ceil((angles.detach() - math.pi) / (2 * math.pi))
        return wrapped if wrapped.requires_grad else torch.round(wrapped, decimals=DECIMALS) + 0.0

    def products(self, features: Tensor) -> Tensor:
        """All features ``(batch, n_features + 3 n_runs)`` from 1, inputs and weights ``(batch, n_features)``."""
        columns = [features[:, [number]] for number in range(features.shape[1])]
        columns += [features[:, :1]] * (3 * len(self.runs))  # overwritten below
        for members, steps in self._levels:
            known = torch.cat(columns, dim=1)
            found = _euler(torch.einsum("bf,lrf->lbr", known, steps.to(features.device)))  # (batch, runs, 3)
            for place, run in enumerate(members):
                for part in range(3):
                    columns[features.shape[1] + 3 * run + part] = found[:, place, [part]]
        return torch.cat(columns, dim=1)

    @cached_property
    def _levels(self) -> list[tuple[list[int], Tensor]]:
        """Products that need no others, those that need only these, ...: their numbers, and the coefficients
        ``(steps, runs, features)`` of their turns, about Z and Y in alternation."""
        first = 1 + self.n_inputs + self.n_weights
        depth: list[int] = []
        for run in self.runs:
            needed = {(feature - first) // 3 for turn in run for feature in turn.angle if feature >= first}
            depth.append(1 + max((depth[other] for other in needed), default=-1))
        levels = []
        for level in range(max(depth, default=-1) + 1):
            members = [number for number, at in enumerate(depth) if at == level]
            padded = [_alternating(self.runs[number]) for number in members]
            steps = torch.zeros(max(map(len, padded)), len(members), first + 3 * len(self.runs), dtype=torch.float64)
            for place, turns in enumerate(padded):
                for step, turn in enumerate(turns):
                    for feature, value in turn.angle.items():
                        steps[step, place, feature] = value
            levels.append((members, steps))
        return levels

    @cached_property
    def _matrix(self) -> Tensor:
        n_features = 1 + self.n_inputs + self.n_weights + 3 * len(self.runs)
        return _dense(self.angles, n_features)


def _alternating(run: Sequence[Turn]) -> list[Turn]:
    """The run with empty turns where two neighbours have one axis, or the first is about Y."""
    turns: list[Turn] = []
    for turn in run:
        if turn.axis != "ZY"[len(turns) % 2]:
            turns.append(Turn("ZY"[len(turns) % 2], {}))
        turns.append(turn)
    return turns


def _euler(turns: Tensor) -> Tensor:
    """S, D and T ``(batch, runs, 3)`` of turns about Z, Y, Z, ... by angles ``(steps, batch, runs)``."""
    cos, sin = (turns / 2).cos(), (turns / 2).sin()
    w, x, y, z = cos[0], torch.zeros_like(cos[0]), torch.zeros_like(cos[0]), sin[0]
    for step in range(1, turns.shape[0]):
        c, s = cos[step], sin[step]
        if step % 2:  # about Y
            w, x, y, z = c * w - s * y, c * x + s * z, c * y + s * w, c * z - s * x
        else:
            w, x, y, z = c * w - s * z, c * x - s * y, c * y + s * x, c * z + s * w
    # At T = 0 and T = π one of the angles is not defined. A step aside of 1e-8 is less than what rounding changes, and
    # gives all three the derivatives that make that of the product right.
    y = torch.where(x * x + y * y < _ASIDE**2, y + 2 * _ASIDE, y)
    w = torch.where(w * w + z * z < _ASIDE**2, w + 2 * _ASIDE, w)
    tilt = 2 * torch.atan2(torch.hypot(x, y), torch.hypot(w, z))
    return torch.stack([torch.atan2(z, w), torch.atan2(-x, y), tilt], dim=-1)


def _dense(rows: Sequence[Affine], n_features: int) -> Tensor:
    matrix = torch.zeros(n_features, len(rows), dtype=torch.float64)
    for column, row in enumerate(rows):
        for feature, value in row.items():
            matrix[feature, column] = value
    return matrix


def constant_tilts(runs: Sequence[tuple[Turn, ...]], n_inputs: int, n_weights: int) -> list[float | None]:
    """Of every product the tilt T where it is 0, a quarter or a half turn whatever the angles are, else ``None``.

    The cosine of T is a polynomial in sines and cosines of the angles, so it is constant if it is so at random ones.
    This does not hold for products that depend on others, whose S, D and T jump: nothing is said of these.
    """
    first = 1 + n_inputs + n_weights
    plain = [number for number, run in enumerate(runs) if all(max(turn.angle, default=0) < first for turn in run)]
    random = torch.Generator().manual_seed(0)
    features = torch.rand(6, first, dtype=torch.float64, generator=random) * 6 - 3
    features[:, 0] = 1.0
    bind = NativeAngles(n_inputs, n_weights, tuple(runs[number] for number in plain), ())
    tilts = bind.products(features)[:, first + 2 :: 3]  # (probes, runs)
    found: list[float | None] = [None] * len(runs)
    for number, column in zip(plain, tilts.T, strict=True):
        for value in (0.0, math.pi / 2, math.pi):
            if float((column - value).abs().max()) < 1e-7:
                found[number] = value
    return found
