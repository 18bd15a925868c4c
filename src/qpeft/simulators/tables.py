r"""What the whole batch shares, for all steps of a program at once: rotation blocks and phases, in float64.

A block is the Kronecker product of rotations RY on neighbouring wires, a phase the diagonal ``exp(iφ(b))``. Blocks of
one width are computed together, and so are all phases: a call takes a handful of tensor operations, however deep the
circuit is. So does the way back, where ``P = Σ λ yᵀ`` is summed over samples and the other wires::

    ∂loss/∂h_k = Σ_ij P_ij (1 ⊗ J_k ⊗ 1)_ij,   J = [[0, -1], [1, 0]],        RY(2h) = exp(hJ)
    ∂loss/∂a_m = Σ_b ∂loss/∂φ(b) (-1)^{|b & m|},                             φ(b) = Σ_m a_m (-1)^{|b & m|}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


class Constant:
    """A tensor that belongs to the circuit, with a copy on each device and of each type that has asked for it."""

    def __init__(self, values: Tensor) -> None:
        self.values = values
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def on(self, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
        key = device, dtype or self.values.dtype
        copy = self._copies.get(key)
        if copy is None:
            copy = self._copies[key] = self.values.to(device=device, dtype=key[1])
        return copy

    def like(self, other: Tensor) -> Tensor:
        return self.on(other.device, other.dtype)


def parities(states: Tensor, masks: Tensor) -> Tensor:
    """``(-1)^{|b & m|}`` as float64: (states,), (masks,) -> (states, masks)."""
    bits = states[:, None] & masks[None]
    for shift in (32, 16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return 1.0 - 2.0 * (bits & 1).double()


@dataclass
class Shared:
    """One call's blocks and phases."""

    turns: Tensor  # (3, rows): cos, sin and -sin of every row
    blocks: dict[int, Tensor]  # width -> (count, 2**width, 2**width)
    phases: Tensor | None  # (count, 2, 2**n, 1): cos and sin

    def to(self, dtype: torch.dtype) -> Shared:
        blocks = {width: blocks.to(dtype) for width, blocks in self.blocks.items()}
        return Shared(self.turns.to(dtype), blocks, None if self.phases is None else self.phases.to(dtype))


@dataclass
class Gradients:
    """What the steps add up over all chunks, in float64, so that the sum is as precise as one chunk's."""

    rows: Tensor  # (rows,)
    blocks: dict[int, Tensor]  # width -> (count, 2**width, 2**width)
    phases: Tensor  # (count, 2**n)


class _Blocks:
    """All blocks of one width."""

    def __init__(self, width: int, blocks: list[list[int]], n_rows: int) -> None:
        self.shape = len(blocks), 1 << width, 1 << width
        rows = torch.tensor(blocks, device="cpu")  # (count, width)
        index = torch.arange(1 << width, device="cpu")
        shifts = torch.arange(width - 1, -1, -1, device="cpu")[:, None]  # first wire first
        bits = index >> shifts & 1  # (width, 2**width)
        kind = (bits[:, :, None] - bits[:, None]) % 3  # 0: cos, 1: sin (0 -> 1), 2: -sin (1 -> 0)
        self.entries = Constant(rows.t()[:, :, None] + n_rows * kind.flatten(1)[:, None])  # (width, count, 4**width)
        turn, one = torch.tensor([[0.0, -1.0], [1.0, 0.0]], device="cpu"), torch.eye(1 << width, device="cpu")
        generators = [
            torch.kron(torch.kron(one[: 1 << k, : 1 << k], turn), one[: 1 << (width - 1 - k), : 1 << (width - 1 - k)])
            for k in range(width)
        ]
        self.generators = Constant(torch.stack(generators, 2).flatten(0, 1).double())  # (4**width, width)
        self.rows = Constant(rows.flatten())

    def share(self, turns: Tensor) -> Tensor:
        return turns.take(self.entries.on(turns.device)).prod(0).view(self.shape)

    def unshare(self, gradient: Tensor, rows: Tensor) -> None:
        of_turns = gradient.flatten(1) @ self.generators.like(gradient)  # (count, width)
        rows.index_add_(0, self.rows.on(rows.device), of_turns.flatten())


class _Phases:
    """All phases. Parities factor into those of the high and of the low half of the bits: two small tables."""

    def __init__(self, n_qubits: int, phases: list[tuple[list[int], list[int]]], empty_row: int) -> None:
        most = max(len(masks) for masks, _ in phases)
        masks = torch.tensor([masks + [0] * (most - len(masks)) for masks, _ in phases], device="cpu")
        low_bits = n_qubits // 2
        self.high = Constant(self._parities(n_qubits - low_bits, masks >> low_bits))  # (count, 2**high, terms)
        self.low = Constant(self._parities(low_bits, masks & ((1 << low_bits) - 1)))
        rows = [rows + [empty_row] * (most - len(rows)) for _, rows in phases]
        self.rows = Constant(torch.tensor(rows, device="cpu"))  # (count, terms)

    @staticmethod
    def _parities(bits: int, masks: Tensor) -> Tensor:
        states = torch.arange(1 << bits, device="cpu")
        return torch.stack([parities(states, row) for row in masks])

    def share(self, angles: Tensor) -> Tensor:
        high, low = self.high.like(angles), self.low.like(angles)
        scaled = high * angles[self.rows.on(angles.device)].unsqueeze(1)
        phases = torch.bmm(scaled, low.transpose(1, 2)).flatten(1)  # (count, 2**n)
        return torch.stack([phases.cos(), phases.sin()], 1).unsqueeze(3)

    def unshare(self, gradient: Tensor, rows: Tensor) -> None:
        high, low = self.high.like(rows), self.low.like(rows)
        grid = gradient.view(len(gradient), high.shape[1], low.shape[1])
        terms = (torch.bmm(grid, low) * high).sum(1)  # (count, terms)
        rows.index_add_(0, self.rows.on(rows.device).flatten(), terms.flatten())


class Tables:
    """Blocks and phases of a program: the steps ask for them one by one, then :meth:`freeze`.

    Args:
        n_qubits: Number of wires.
        n_rows: Number of angles; the last is no angle, always zero.
    """

    def __init__(self, n_qubits: int, n_rows: int) -> None:
        self.n_qubits = n_qubits
        self.n_rows = n_rows
        self._asked_blocks: dict[int, list[list[int]]] = {}
        self._asked_phases: list[tuple[list[int], list[int]]] = []

    def add_block(self, rows: list[int]) -> int:
        """A block of half-angles; returns its place among those of its width."""
        same = self._asked_blocks.setdefault(len(rows), [])
        same.append(rows)
        return len(same) - 1

    def add_phase(self, masks: list[int], rows: list[int]) -> int:
        """A phase with one angle for each mask; returns its place."""
        self._asked_phases.append((masks, rows))
        return len(self._asked_phases) - 1

    def freeze(self) -> None:
        self._blocks = {width: _Blocks(width, blocks, self.n_rows) for width, blocks in self._asked_blocks.items()}
        phases = self._asked_phases
        self._phases = _Phases(self.n_qubits, phases, self.n_rows - 1) if phases else None

    def share(self, angles: Tensor) -> Shared:
        """From angles ``(rows,)`` in float64."""
        sin = angles.sin()
        turns = torch.stack([angles.cos(), sin, -sin])
        blocks = {width: blocks.share(turns) for width, blocks in self._blocks.items()}
        return Shared(turns, blocks, None if self._phases is None else self._phases.share(angles))

    def gradients(self, device: torch.device) -> Gradients:
        """Zeros."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=device)

        of_blocks = {width: zeros(*blocks.shape) for width, blocks in self._blocks.items()}
        return Gradients(zeros(self.n_rows), of_blocks, zeros(len(self._asked_phases), 1 << self.n_qubits))

    def unshare(self, gradients: Gradients) -> Tensor:
        """From the sums over all chunks to the gradients of the angles ``(rows,)``."""
        for width, blocks in self._blocks.items():
            blocks.unshare(gradients.blocks[width], gradients.rows)
        if self._phases is not None:
            self._phases.unshare(gradients.phases, gradients.rows)
        return gradients.rows
