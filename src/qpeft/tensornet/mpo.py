"""Matrix-product operators (tensor-train matrices): a large matrix as a chain of four small cores.

    W[o1 o2 o3 o4, i1 i2 i3 i4] = sum_pqs G1[o1,p,1,i1] G2[o2,q,p,i2] G3[o3,s,q,i3] G4[o4,1,s,i4]

Layout: core k has shape ``(o_k, chi_{k+1}, chi_k, i_k)`` and is stored as the matrix ``(o_k chi_{k+1}, chi_k i_k)``;
the cores stand one after the other in one flat vector. The contraction takes one core at a time, as one matrix product
each, so that applying the operator never builds ``W``. See Novikov et al., "Tensorizing neural networks"
(arXiv:1509.06569), and arXiv:2503.12790 for its use around a quantum circuit.
"""

from dataclasses import dataclass

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

    @property
    def core_shapes(self) -> list[tuple[int, int, int, int]]:
        """Shape ``(o_k, chi_{k+1}, chi_k, i_k)`` of each core, in the order in which they are stored."""
        pairs = zip(self.outputs.factors, self.inputs.factors, strict=True)
        return [(o, self.bonds[k + 1], self.bonds[k], i) for k, (o, i) in enumerate(pairs)]

    @property
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
        return _contract(self.cores(flat), self.inputs, self.outputs, x)

    def apply_transposed(self, flat: Tensor, x: Tensor) -> Tensor:
        """Apply the transposed operator to each row, ``y = x W``.

        Args:
            flat: Entries of the cores, shape ``(n_parameters,)``.
            x: Rows, shape ``(rows, outputs.size)``.

        Returns:
            Rows of shape ``(rows, inputs.size)``.
        """
        transposed = []
        for core, (o, right, left, i) in zip(self.cores(flat), self.core_shapes, strict=True):
            swapped = core.view(o, right, left, i).permute(3, 1, 2, 0)  # (i, right, left, o)
            transposed.append(swapped.reshape(i * right, left * o))
        return _contract(transposed, self.outputs, self.inputs, x)

    def dense(self, flat: Tensor) -> Tensor:
        """The whole matrix ``W``, shape ``(outputs.size, inputs.size)``; for tests and small layers."""
        if self.inputs.size < self.outputs.size:
            return self.apply(flat, torch.eye(self.inputs.size, dtype=flat.dtype, device=flat.device)).T
        return self.apply_transposed(flat, torch.eye(self.outputs.size, dtype=flat.dtype, device=flat.device))


def _contract(cores: list[Tensor], inputs: Modes, outputs: Modes, x: Tensor) -> Tensor:
    rows = x.shape[0]
    if inputs.padding:
        x = nn.functional.pad(x, (0, inputs.padding))
    # The state keeps what is contracted next in front and what is finished at the end:
    # (chi_k, i_k, ..., i_4, rows, o_1, ..., o_{k-1}). One product replaces (chi_k, i_k) by (o_k, chi_{k+1}), one
    # transposition takes o_k to the end, and after the last core rows and outputs stand in their final order.
    state = x.T
    for core, o in zip(cores, outputs.factors, strict=True):
        state = core @ state.reshape(core.shape[1], -1)  # (o_k chi_{k+1}, rest)
        state = state.view(o, -1).T  # (chi_{k+1} rest, o_k)
    y = state.reshape(rows, outputs.padded)
    return y[:, : outputs.size] if outputs.padding else y
