"""Matrix-product operators (tensor-train matrices): a large matrix as a chain of four small cores.

    W[o1 o2 o3 o4, i1 i2 i3 i4] = sum_pqs G1[o1,p,1,i1] G2[o2,q,p,i2] G3[o3,s,q,i3] G4[o4,1,s,i4]

Layout: core k has shape ``(o_k, chi_{k+1}, chi_k, i_k)`` and is stored as the matrix ``(o_k chi_{k+1}, chi_k i_k)``;
the cores stand one after the other in one flat vector. See Novikov et al., "Tensorizing neural networks"
(arXiv:1509.06569), and arXiv:2503.12790 for its use around a quantum circuit.

Rows are taken through the operator without ever building ``W``. The cores are first joined in pairs, ``L = G1 G2`` and
``R = G3 G4``, which stay small because each spans half of the modes. With ``a`` for the modes that are summed over
(``i``, or ``o`` for the transposed operator) and ``b`` for those that appear,

    T[n, a1 a2 q, b3 b4] = sum_{a3 a4}   x[n, a1 a2, a3 a4] R[a3 a4, q b3 b4]
    y[n, b1 b2, b3 b4]   = sum_{a1 a2 q} L[a1 a2 q, b1 b2]  T[n, a1 a2 q, b3 b4]

Four matrix products in all, and the rows, by far the largest operand, never change their order in memory.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.tensornet.modes import Modes


@dataclass(frozen=True)
class MPO:
    """Shape of an operator; its numbers are passed to each call as one flat vector.

    Attributes:
        inputs: Modes of the input side.
        outputs: Modes of the output side.
        bond_dim: Dimension of the three inner bonds; the outer two are 1.

    Example:
        >>> from qpeft.tensornet import MPO, choose_modes
        >>> mpo = MPO(choose_modes(3584), choose_modes(256), bond_dim=8)
        >>> mpo.n_parameters, 3584 * 256
        (4576, 917504)
    """

    inputs: Modes
    outputs: Modes
    bond_dim: int

    @property
    def bonds(self) -> tuple[int, ...]:
        """Bond dimensions ``(1, chi, chi, chi, 1)``."""
        return (1, *[self.bond_dim] * (len(self.inputs.factors) - 1), 1)

    @cached_property
    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        """Shape ``(o_k, chi_{k+1}, chi_k, i_k)`` of each core, in the order in which they are stored."""
        pairs = zip(self.outputs.factors, self.inputs.factors, strict=True)
        return [(o, self.bonds[k + 1], self.bonds[k], i) for k, (o, i) in enumerate(pairs)]

    @cached_property
    def core_sizes(self) -> list[int]:
        """Number of entries of each core."""
        return [o * right * left * i for o, right, left, i in self.core_shapes]

    @property
    def n_parameters(self) -> int:
        """Number of entries of all cores: the length of the flat vector."""
        return sum(self.core_sizes)

    def cores(self, flat: Tensor) -> list[Tensor]:
        """Views of the flat vector, one ``(o_k chi_{k+1}, chi_k i_k)`` matrix a core."""
        shapes = [(o * right, left * i) for o, right, left, i in self.core_shapes]
        parts = flat.split(self.core_sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

    @torch.no_grad()
    def initialize(self, flat: Tensor, last_core_zero: bool = False) -> None:
        """Fill the flat vector: Kaiming normal on each stored matrix, optionally with the last core zero (``W = 0``).

        Args:
            flat: Vector of length ``n_parameters``, written in place.
            last_core_zero: Whether the operator starts as the zero matrix while its gradient does not vanish.
        """
        cores = self.cores(flat)
        for core in cores:
            nn.init.kaiming_normal_(core)
        if last_core_zero:
            nn.init.zeros_(cores[-1])

    def apply(self, flat: Tensor, x: Tensor) -> Tensor:
        """Apply the operator to each row, ``y = x W^T``.

        Args:
            flat: Entries of the cores, shape ``(n_parameters,)``.
            x: Rows, shape ``(rows, inputs.size)``.

        Returns:
            Rows of shape ``(rows, outputs.size)``.
        """
        return self._carry(x, flat, self.inputs, self.outputs, transposed=False)

    def apply_transposed(self, flat: Tensor, x: Tensor) -> Tensor:
        """Apply the transposed operator to each row, ``y = x W``.

        Args:
            flat: Entries of the cores, shape ``(n_parameters,)``.
            x: Rows, shape ``(rows, outputs.size)``.

        Returns:
            Rows of shape ``(rows, inputs.size)``.
        """
        return self._carry(x, flat, self.outputs, self.inputs, transposed=True)

    def dense(self, flat: Tensor) -> Tensor:
        """The whole matrix ``W``, shape ``(outputs.size, inputs.size)``; for tests and small layers."""
        if self.inputs.size < self.outputs.size:
            return self.apply(flat, torch.eye(self.inputs.size, dtype=flat.dtype, device=flat.device)).T
        return self.apply_transposed(flat, torch.eye(self.outputs.size, dtype=flat.dtype, device=flat.device))

    def _carry(self, x: Tensor, flat: Tensor, summed: Modes, appearing: Modes, *, transposed: bool) -> Tensor:
        if summed.padding:
            x = nn.functional.pad(x, (0, summed.padding))
        y: Tensor = _Carry.apply(x, flat, self, transposed)
        return y[:, : appearing.size] if appearing.padding else y

    def _factors(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The cores as matrices with ``f1 f2 = L`` and ``f3 f4 = R``.

        Shapes ``(o1 i1, p)``, ``(p, o2 q i2)``, ``(o3 q i3, s)``, ``(s, o4 i4)``.
        """
        (o1, p, _, i1), (o2, q, _, i2), (o3, s, _, i3), (o4, _, _, i4) = self.core_shapes
        g1, g2, g3, g4 = flat.split(self.core_sizes)
        return (
            g1.view(o1, p, i1).transpose(1, 2).reshape(o1 * i1, p),
            g2.view(o2, q, p, i2).permute(2, 0, 1, 3).reshape(p, o2 * q * i2),
            g3.view(o3, s, q, i3).permute(0, 2, 3, 1).reshape(o3 * q * i3, s),
            g4.view(o4, s, i4).transpose(0, 1).reshape(s, o4 * i4),
        )

    def _flat(self, factors: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        """The inverse of :meth:`_factors`."""
        (o1, p, _, i1), (o2, q, _, i2), (o3, s, _, i3), (o4, _, _, i4) = self.core_shapes
        f1, f2, f3, f4 = factors
        cores = (
            f1.view(o1, i1, p).transpose(1, 2),
            f2.view(p, o2, q, i2).permute(1, 2, 0, 3),
            f3.view(o3, q, i3, s).permute(0, 3, 1, 2),
            f4.view(s, o4, i4).transpose(0, 1),
        )
        return torch.cat([core.reshape(-1) for core in cores])

    def _order(self, left: Tensor, right: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        """Both pairs from the axes of their products to (a, a', q, b, b')."""
        (o1, _, _, i1), (o2, q, _, i2), (o3, _, _, i3), (o4, _, _, i4) = self.core_shapes
        left, right = left.view(o1, i1, o2, q, i2), right.view(o3, q, i3, o4, i4)
        if transposed:
            left, right = left.permute(0, 2, 3, 1, 4), right.permute(0, 3, 1, 2, 4)
            return left.reshape(o1 * o2 * q, i1 * i2), right.reshape(o3 * o4, q * i3 * i4)
        left, right = left.permute(1, 4, 3, 0, 2), right.permute(2, 4, 1, 0, 3)
        return left.reshape(i1 * i2 * q, o1 * o2), right.reshape(i3 * i4, q * o3 * o4)

    def _reorder(self, left: Tensor, right: Tensor, transposed: bool) -> tuple[Tensor, Tensor]:
        """The inverse of :meth:`_order`."""
        (o1, _, _, i1), (o2, q, _, i2), (o3, _, _, i3), (o4, _, _, i4) = self.core_shapes
        if transposed:
            left = left.view(o1, o2, q, i1, i2).permute(0, 3, 1, 2, 4)
            right = right.view(o3, o4, q, i3, i4).permute(0, 2, 3, 1, 4)
        else:
            left = left.view(i1, i2, q, o1, o2).permute(3, 0, 4, 2, 1)
            right = right.view(i3, i4, q, o3, o4).permute(3, 2, 0, 4, 1)
        return left.reshape(o1 * i1, o2 * q * i2), right.reshape(o3 * q * i3, o4 * i4)


class _Carry(torch.autograd.Function):
    """Take rows ``(rows, a)`` through an operator, to ``(rows, b)``.

    Differentiated by hand because that takes half of the small operations which autograd would record and replay, and
    an adapted model does this twice a layer and step. Only the arguments are kept: the pairs are cheap to join again.
    The backward pass consists of differentiable operations on the arguments, so it can be differentiated in turn.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, flat: Tensor, mpo: MPO, transposed: bool) -> Tensor:
        ctx.save_for_backward(x, flat)
        ctx.mpo, ctx.transposed = mpo, transposed
        rows = x.shape[0]
        f1, f2, f3, f4 = mpo._factors(flat)
        left, right = mpo._order(f1 @ f2, f3 @ f4, transposed)  # (a1 a2 q, b1 b2), (a3 a4, q b3 b4)
        half = x.reshape(-1, right.shape[0]) @ right  # (rows a1 a2, q b3 b4)
        half = half.view(rows, left.shape[0], -1)  # (rows, a1 a2 q, b3 b4)
        return torch.bmm(left.t().expand(rows, -1, -1), half).view(rows, -1)  # (rows, b1 b2 b3 b4)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (x, flat), mpo, transposed = ctx.saved_tensors, ctx.mpo, ctx.transposed
        rows = x.shape[0]
        f1, f2, f3, f4 = mpo._factors(flat)
        left, right = mpo._order(f1 @ f2, f3 @ f4, transposed)  # (a1 a2 q, b1 b2), (a3 a4, q b3 b4)
        n_summed, n_appearing = left.shape
        x = x.reshape(-1, right.shape[0])  # (rows a1 a2, a3 a4)
        half = (x @ right).view(rows, n_summed, -1)  # (rows, a1 a2 q, b3 b4)
        gradient = gradient.reshape(rows, n_appearing, -1)  # (rows, b1 b2, b3 b4)

        to_half = torch.bmm(left.expand(rows, -1, -1), gradient).view(x.shape[0], -1)  # (rows a1 a2, q b3 b4)
        to_x = (to_half @ right.t()).view(rows, -1)  # (rows, a1 a2 a3 a4)
        to_right = x.t() @ to_half  # (a3 a4, q b3 b4)
        # One product over rows and b3 b4 together is worth two copies: a batched one writes a matrix for each row.
        half = half.transpose(0, 1).reshape(n_summed, -1)  # (a1 a2 q, rows b3 b4)
        to_left = half @ gradient.transpose(0, 1).reshape(n_appearing, -1).t()  # (a1 a2 q, b1 b2)
        to_left, to_right = mpo._reorder(to_left, to_right, transposed)
        to_factors = (to_left @ f2.t(), f1.t() @ to_left, to_right @ f4.t(), f3.t() @ to_right)
        return to_x, mpo._flat(to_factors), None, None
