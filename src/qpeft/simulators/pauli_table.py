"""From weights to the matrices of all runs and blocks of a noisy program, and gradients back, in float64.

A few batched products, whatever the number of blocks::

    factor_i = Σ_f feature_f(θ_i) parts_if        run_r = product of its factors        (4 x 4)
    block_b  = pair factor_b · (run_a ⊗ run_a')                                         (16 x 16)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qpeft.simulators.pauli_lowering import Matrix, Table


@dataclass
class Matrices:
    """What :meth:`MatrixTable.build` computes: the matrices, and what its gradient needs."""

    blocks: Tensor  # (blocks, 16, 16): letters of the two wires afterwards, then before
    runs: Tensor  # (runs, 4, 4)
    angles: Tensor  # of one-wire factors, then of two-wire factors
    factors: Tensor  # (runs, depth, 4, 4)
    products: list[Tensor]  # of the first 1, 2, ... factors: (runs, 4, 4)
    pairs: Tensor  # run ⊗ run: (blocks, 16, 16)
    pair_factors: Tensor  # (pair factors, 16, 16)


class MatrixTable:
    """A :class:`~qpeft.simulators.pauli_lowering.Table`, ready to run."""

    def __init__(self, table: Table, n_weights: int) -> None:
        self.n_factors = len(table.parts)
        self.parts = _tensor(table.parts, (3, 16))  # (factors, 3, 16)
        self.pair_parts = _tensor(table.pair_parts, (5, 256))  # (pair factors, 5, 256)
        sources = [*table.weights, *table.pair_weights]
        self.from_weights = torch.zeros(len(sources), n_weights, dtype=torch.float64, device="cpu")
        for row, (weight, scale) in enumerate(sources):
            if weight is not None:
                self.from_weights[row, weight] = scale
        depth = max(1, *map(len, table.runs))
        self.members = torch.tensor([run + [0] * (depth - len(run)) for run in table.runs], device="cpu")
        self.first = torch.tensor([a for _, a, _ in table.blocks], dtype=torch.int64, device="cpu")
        self.second = torch.tensor([b for _, _, b in table.blocks], dtype=torch.int64, device="cpu")
        paired = [(pair, block) for block, (pair, _, _) in enumerate(table.blocks) if pair is not None]
        self.paired = torch.tensor([block for _, block in sorted(paired)], dtype=torch.int64, device="cpu")

    def build(self, weights: Tensor) -> Matrices:
        """``(n_weights,) -> `` all matrices."""
        device = weights.device
        angles = torch.mv(self.from_weights.to(device), weights.double())
        one, two = angles[: self.n_factors], angles[self.n_factors :]
        features = torch.stack([torch.ones_like(one), one.cos(), one.sin()], 1)  # (factors, 3)
        table = torch.bmm(features[:, None], self.parts.to(device)).view(-1, 4, 4)
        factors = table[self.members.to(device)]  # (runs, depth, 4, 4)
        products = [factors[:, 0]]
        for place in range(1, factors.shape[1]):
            products.append(torch.bmm(factors[:, place], products[-1]))
        runs = products[-1]
        first, second = runs[self.first.to(device)], runs[self.second.to(device)]
        pairs = (first[:, :, None, :, None] * second[:, None, :, None, :]).view(-1, 16, 16)
        blocks = pair_factors = pairs
        if len(self.paired):
            half = two / 2
            features = torch.stack([torch.ones_like(two), half.cos(), half.sin(), two.cos(), two.sin()], 1)
            pair_factors = torch.bmm(features[:, None], self.pair_parts.to(device)).view(-1, 16, 16)
            paired = self.paired.to(device)
            blocks = pairs.index_copy(0, paired, torch.bmm(pair_factors, pairs[paired]))
        return Matrices(blocks, runs, angles, factors, products, pairs, pair_factors)

    def backward(self, built: Matrices, blocks: Tensor, runs: Tensor) -> Tensor:
        """From gradients of blocks and runs, which it spoils, to those of the weights ``(n_weights,)``."""
        device = runs.device
        angles = built.angles
        one, two = angles[: self.n_factors], angles[self.n_factors :]
        slopes = torch.zeros_like(angles)
        if len(blocks):
            pairs = blocks
            if len(self.paired):
                paired = self.paired.to(device)
                gradient = pairs[paired]
                factor_gradient = torch.bmm(gradient, built.pairs[paired].transpose(1, 2))
                pairs = pairs.index_copy(0, paired, torch.bmm(built.pair_factors.transpose(1, 2), gradient))
                by_feature = torch.bmm(self.pair_parts.to(device), factor_gradient.view(-1, 256, 1))[:, :, 0]
                half = two / 2
                slope = torch.stack([torch.zeros_like(two), -half.sin() / 2, half.cos() / 2, -two.sin(), two.cos()], 1)
                slopes[self.n_factors :] = (by_feature * slope).sum(1)
            first, second = self.first.to(device), self.second.to(device)
            view = pairs.view(-1, 4, 4, 4, 4)
            runs.index_add_(0, first, (view * built.runs[second][:, None, :, None, :]).sum((2, 4)))
            runs.index_add_(0, second, (view * built.runs[first][:, :, None, :, None]).sum((1, 3)))
        gradient = torch.empty_like(built.factors)
        for place in range(built.factors.shape[1] - 1, 0, -1):
            gradient[:, place] = torch.bmm(runs, built.products[place - 1].transpose(1, 2))
            runs = torch.bmm(built.factors[:, place].transpose(1, 2), runs)
        gradient[:, 0] = runs
        table = torch.zeros(self.n_factors, 16, dtype=torch.float64, device=device)
        table.index_add_(0, self.members.to(device).flatten(), gradient.view(-1, 16))
        by_feature = torch.bmm(self.parts.to(device), table[:, :, None])[:, :, 0]  # (factors, 3)
        slopes[: self.n_factors] = by_feature[:, 2] * one.cos() - by_feature[:, 1] * one.sin()
        return torch.mv(self.from_weights.to(device).t(), slopes)


def _tensor(parts: list[Matrix], shape: tuple[int, int]) -> Tensor:
    return torch.from_numpy(np.array(parts, dtype=np.float64).reshape(len(parts), *shape))
