r"""The tensor operations behind :mod:`qpeft.tensornet.orthogonal`: blocks from weights, blocks on vectors, gradients.

Data layout: vectors of ``2**n`` numbers are worked off in chunks of ``t``, as ``(parts, outer, t, inner)`` where
``inner`` is the last group's index and ``outer`` that of all others. So every block is one matrix product with long
rows: of ``(positions, 2**w, rest)`` from the left, for the last group of ``(positions, 2**w)`` from the right.

All steps are orthogonal, so the backward pass keeps only the output ``y``: it sends the adjoint ``λ`` and ``y`` (two
parts of one array) back through the transposed steps together, and a block ``B`` with output ``y`` has ::

    ∂loss/∂B Bᵀ = G = Σ λ yᵀ          (2**w, 2**w), summed over vectors and over all other wires
    ∂loss/∂θ = ½ tr_rest (G_10 - G_01)           for an angle of B's last moment and the wire it turns

and for angles of earlier moments the same with ``Q G Qᵀ``, where ``Q = A_d Bᵀ`` undoes what comes after the moment
(``A_d`` is the product up to it). Blocks, ``Q`` and sums over chunks are float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qpeft.tensornet.orthogonal_plan import Block, Moment, Plan, Primitive, signed_permutation

# Numbers in a chunk, all parts together: it and its successor have to fit into a core's second-level cache.
_CHUNK_NUMBERS = 1 << 17
_CHUNK_NUMBERS_GPU = 1 << 25


class _Blocks:
    """All blocks of a plan, built and differentiated together in float64.

    They are brought to one size: a block of fewer wires leaves the first wires idle and is the corner
    ``[:2**w, :2**w]``, one of fewer moments is followed by identities.
    """

    def __init__(self, blocks: Sequence[Block], n_weights: int, device: torch.device) -> None:
        self.width = width = max(block.width for block in blocks)
        self.n_moments = max(len(block.moments) for block in blocks)
        rows = self.n_moments * len(blocks) * width
        constants = torch.zeros(rows, dtype=torch.float64, device="cpu")
        from_weights = torch.zeros(rows, n_weights, dtype=torch.float64, device="cpu")
        sources, signs = [], []
        for moment in range(self.n_moments):
            for place, block in enumerate(blocks):
                current = block.moments[moment] if moment < len(block.moments) else Moment((), {})
                first = block.first + block.width - width  # of the wires with the idle ones
                source, sign = signed_permutation(current.fixed, width, first)
                sources.append(source + (place << width))
                signs.append(sign)
                for wire, turn in current.turns.items():
                    row = (moment * len(blocks) + place) * width + wire - first
                    constants[row] = turn.constant
                    for index, coefficient in turn.weights.items():
                        from_weights[row, index] = coefficient
        self.constants = constants.to(device)
        self.from_weights = from_weights.to(device)
        self.sources = torch.stack(sources).view(self.n_moments, -1).to(device)  # of the rows of all blocks
        self.signs = torch.stack(signs).view(self.n_moments, -1, 1).to(device)
        self.generators = _generators(width).to(device)

    def products(self, weights: Tensor) -> Tensor:
        """Products up to each moment, (n_weights,) -> (moments, blocks, 2**w, 2**w); the last ones are the blocks."""
        size = 1 << self.width
        half = torch.addmv(self.constants, self.from_weights, weights) / 2
        cos, sin = half.cos(), half.sin()
        turns = torch.stack([cos, -sin, sin, cos], -1).view(-1, self.width, 2, 2)
        kronecker = turns[:, 0]
        for wire in range(1, self.width):
            kronecker = kronecker[:, :, None, :, None] * turns[:, wire, None, :, None, :]
            kronecker = kronecker.reshape(len(turns), 2 << wire, 2 << wire)
        kronecker = kronecker.view(self.n_moments, -1, size, size)
        products = torch.empty_like(kronecker)
        products[0] = kronecker[0]
        for moment in range(1, self.n_moments):
            permuted = products[moment - 1].view(-1, size)[self.sources[moment]].mul_(self.signs[moment])
            torch.bmm(kronecker[moment], permuted.view(-1, size, size), out=products[moment])
        return products

    def gradient(self, products: Tensor, outers: Tensor) -> Tensor:
        """Gradient of the weights from G of each block, (blocks, 2**w, 2**w) -> (n_weights,)"""
        undo = products @ products[-1].mT  # (moments, blocks, 2**w, 2**w)
        at_moments = undo @ outers @ undo.mT
        angles = at_moments.view(-1, len(self.generators)) @ self.generators  # (moments blocks, w)
        return angles.view(-1) @ self.from_weights


def _generators(width: int) -> Tensor:
    """``½ (G_10 - G_01)`` of each wire, traced over the other wires, as a matrix: (4**w, w)"""
    index = torch.arange(1 << width, device="cpu")
    generators = torch.zeros(1 << width, 1 << width, width, dtype=torch.float64, device="cpu")
    for wire in range(width):
        zero = index[(index >> (width - 1 - wire)) & 1 == 0]
        one = zero | 1 << (width - 1 - wire)
        generators[one, zero, wire] = 0.5
        generators[zero, one, wire] = -0.5
    return generators.view(-1, width)


class _Chunk:
    """Two arrays ``(parts, outer, t, inner)``: the current vectors, and room for the next ones."""

    def __init__(self, numbers: Tensor, shape: tuple[int, int, int, int]) -> None:
        size = shape[0] * shape[1] * shape[2] * shape[3]
        self.state = numbers[0, :size].view(shape)
        self.spare = numbers[1, :size].view(shape)

    def swap(self) -> None:
        self.state, self.spare = self.spare, self.state

    def load(self, part: int, vectors: Tensor) -> None:
        """(t, 2**n) -> (outer, t, inner)"""
        _, outer, rows, inner = self.state.shape
        self.state[part].copy_(vectors.view(rows, outer, inner).transpose(0, 1))

    def store(self, part: int, vectors: Tensor) -> None:
        """(outer, t, inner) -> (t, 2**n)"""
        _, outer, rows, inner = self.state.shape
        vectors.view(rows, outer, inner).copy_(self.state[part].transpose(0, 1))


class _BlockStep:
    """Multiplication with block number ``place``."""

    def __init__(self, block: Block, n_qubits: int, place: int) -> None:
        self.before, self.size, self.place = 1 << block.first, 1 << block.width, place
        self.is_last = block.first + block.width == n_qubits

    def multiply(self, chunk: _Chunk, matrix: Tensor) -> None:
        if self.is_last:
            torch.mm(chunk.state.view(-1, self.size), matrix.t(), out=chunk.spare.view(-1, self.size))
        else:
            positions = chunk.state.shape[0] * self.before
            split = (positions, self.size, -1)
            torch.bmm(matrix.expand(positions, -1, -1), chunk.state.view(split), out=chunk.spare.view(split))
        chunk.swap()

    def outer_product(self, chunk: _Chunk) -> Tensor:
        """Σ λ yᵀ of the two parts: (2**w, 2**w)"""
        if self.is_last:
            left, right = chunk.state.view(2, -1, self.size)
            return left.t() @ right
        if self.before == 1:
            left, right = chunk.state.view(2, self.size, -1)
            return left @ right.t()
        left, right = chunk.state.view(2, self.before, self.size, -1)
        return torch.bmm(left, right.mT).sum(0)


class _SignStep:
    """CZ gates across groups, as a vector of signs."""

    def __init__(
        self, gates: Sequence[Primitive], n_qubits: int, inner: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.signs = signed_permutation(gates, n_qubits)[1].view(-1, 1, inner).to(device, dtype)

    def multiply(self, chunk: _Chunk, signs: Tensor) -> None:
        chunk.state.mul_(signs)


_IDLE = Block(0, 1, (Moment((), {}),))  # for circuits in which nothing turns

Factor = tuple[_BlockStep | _SignStep, Tensor]  # a step and what it multiplies with


class OrthogonalEngine:
    """Applies the matrix of a plan to vectors of one dtype on one device, and differentiates that."""

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        self.n_qubits, self.device, self.dtype = plan.n_qubits, device, dtype
        self.inner = 1 << plan.widths[-1]
        blocks: list[Block] = []
        self.steps: list[_BlockStep | _SignStep] = []
        for layer in plan.layers:
            for block in layer.blocks:
                self.steps.append(_BlockStep(block, plan.n_qubits, len(blocks)))
                blocks.append(block)
            if layer.signs:
                self.steps.append(_SignStep(layer.signs, plan.n_qubits, self.inner, device, dtype))
        self.blocks = _Blocks(blocks or [_IDLE], plan.n_weights, device)

    def apply(self, weights: Tensor, x: Tensor, transpose: bool) -> Tensor:
        """Rows ``U x``, or ``Uᵀ x``: (n_weights,), (rows, 2**n) -> (rows, 2**n)"""
        factors = self._factors(self.blocks.products(weights.double()), inverse=transpose)
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for rows, chunk in self._chunks(x.shape[0], 1):
            chunk.load(0, x[rows])
            for step, factor in factors:
                step.multiply(chunk, factor)
            chunk.store(0, result[rows])
        return result

    def differentiate(
        self, gradient: Tensor, output: Tensor, weights: Tensor, transpose: bool, needs_x: bool
    ) -> tuple[Tensor, Tensor]:
        """Gradients of ``x``, (rows, 2**n) or empty where it is not needed, and of the weights, float64 (n_weights,).

        With ``transpose`` vector and adjoint change places: the gradient is the vector that ``U`` is applied to, the
        output is its adjoint before the first step.
        """
        products = self.blocks.products(weights.double())
        factors = self._factors(products, inverse=not transpose)
        outers = torch.zeros_like(products[-1])
        corners = outers.unbind()
        to_x = torch.empty_like(gradient if needs_x else gradient[:0], memory_format=torch.contiguous_format)
        adjoint, vector = (output, gradient) if transpose else (gradient, output)
        for rows, chunk in self._chunks(gradient.shape[0], 2):
            chunk.load(0, adjoint[rows])
            chunk.load(1, vector[rows])
            for step, factor in factors:
                if transpose:
                    step.multiply(chunk, factor)
                if isinstance(step, _BlockStep):
                    corners[step.place][: step.size, : step.size] += step.outer_product(chunk)
                if not transpose:
                    step.multiply(chunk, factor)
            if needs_x:
                chunk.store(1 if transpose else 0, to_x[rows])
        return to_x, self.blocks.gradient(products, outers)

    def _factors(self, products: Tensor, inverse: bool) -> list[Factor]:
        """The steps of ``U``, or those of its inverse in their order."""
        blocks = products[-1].to(self.dtype)
        matrices = (blocks.mT if inverse else blocks).unbind()
        factors: list[Factor] = []
        for step in reversed(self.steps) if inverse else self.steps:
            if isinstance(step, _BlockStep):
                factors.append((step, matrices[step.place][: step.size, : step.size]))
            else:
                factors.append((step, step.signs))
        return factors

    def _chunks(self, n_rows: int, parts: int) -> Iterator[tuple[slice, _Chunk]]:
        """Equal pieces of the rows, each with its arrays."""
        limit = _CHUNK_NUMBERS if self.device.type == "cpu" else _CHUNK_NUMBERS_GPU
        n_chunks = max(1, -(-n_rows * (parts << self.n_qubits) // limit))
        step = max(1, -(-n_rows // n_chunks))
        numbers = torch.empty(2, parts * step << self.n_qubits, dtype=self.dtype, device=self.device)
        for start in range(0, n_rows, step):
            rows = slice(start, min(start + step, n_rows))
            shape = (parts, (1 << self.n_qubits) // self.inner, rows.stop - start, self.inner)
            yield rows, _Chunk(numbers, shape)
