r"""Observables pulled back through what all samples share: ``c -> c R`` for every block, once per call.

Data layout: the coefficients of a group of cones with equal structure are one matrix ``(rows, elements)`` with a row
for each observable of each cone. Its columns are the axes of the wires, in an order that every step knows. A step
contracts its wires in front and puts them back at the end, so that a layer on all wires in order needs no copy::

    (rows, after, rest) -> (rows, rest, before)             after, before: letters of the step's wires

The matrices of all steps are collected from the blocks, cut to the letters that occur, by one operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpeft.simulators.pauli_lowering import Block, Cone, ConeStep, Matrix, Shuffle, Sizes

_PRECISE_ELEMENTS = 1 << 16  # up to here float64 costs nothing worth saving
NO_MATRIX = torch.zeros(1, 0, 0, dtype=torch.int64, device="cpu")
_CACHED_ELEMENTS = 1 << 18  # of the rows that are worked on at once
_KEPT_ELEMENTS = 1 << 23  # kept for the backward pass; where there are more, steps are walked again
_BLOCK = np.arange(256).reshape(4, 4, 4, 4)  # letters of the two wires afterwards, then before


@dataclass
class Layout:
    """Order and sizes of the axes of a cone's wires."""

    order: list[int]
    sizes: dict[int, int]

    def bring(self, front: Sequence[int]) -> Permutation | None:
        """Put these axes first, and after them those that followed; ``None`` if they are first."""
        if self.order[: len(front)] == list(front):
            return None
        place = self.order.index(front[-1])
        order = [*front, *(axis for axis in self.order[place:] + self.order[:place] if axis not in front)]
        permutation = Permutation(
            tuple(self.sizes[axis] for axis in self.order), tuple(self.order.index(axis) for axis in order)
        )
        self.order = order
        return permutation

    def resize(self, axes: Sequence[int | None], sizes: Sizes) -> None:
        """New sizes of some axes; a wire outside the cone has none."""
        self.sizes.update({axis: size for axis, size in zip(axes, sizes, strict=True) if axis is not None})


@dataclass(frozen=True)
class Permutation:
    """Another order of axes, for tensors of ``lead`` times those axes times anything."""

    shape: tuple[int, ...]
    axes: tuple[int, ...]

    def forward(self, tensor: Tensor, lead: int) -> Tensor:
        last = len(self.axes) + 1
        moved = tensor.view(lead, *self.shape, -1).permute(0, *(axis + 1 for axis in self.axes), last)
        return moved.reshape(tensor.shape)

    def backward(self, tensor: Tensor, lead: int) -> Tensor:
        last = len(self.axes) + 1
        inverse = (self.axes.index(axis) + 1 for axis in range(last - 1))
        return (
            tensor.view(lead, *(self.shape[axis] for axis in self.axes), -1)
            .permute(0, *inverse, last)
            .reshape(tensor.shape)
        )


def entries(step: ConeStep) -> NDArray[np.int64]:
    """Where a step's matrix ``(letters after, letters before)`` is found in the table ``(blocks, 4, 4, 4, 4)``."""
    assert isinstance(step.piece, Block)
    (a, b), (c, d) = ((*sizes, 1)[:2] for sizes in (step.after, step.before))
    return 256 * step.piece.index + _BLOCK[:a, :b, :c, :d].reshape(a * b, c * d)


class _Pull:
    """One block, with one matrix for each cone."""

    def __init__(self, step: ConeStep, layout: Layout) -> None:
        axes = [axis for axis in step.axes if axis is not None]
        self.permutation = layout.bring(axes)
        self.entries = torch.from_numpy(entries(step))[None]  # (cones, after, before)
        layout.resize(step.axes, step.before)
        layout.order = layout.order[len(axes) :] + axes
        self.signature: tuple[object, ...] = (step.axes, step.before, step.after)

    def join(self, others: Sequence[_Pull]) -> None:
        """Take over the matrices of the same step of other cones."""
        self.entries = torch.cat([self.entries, *(other.entries for other in others)])

    def forward(self, coefficients: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
        """Pulled-back coefficients, and what the gradient of the matrices needs."""
        if self.permutation is not None:
            coefficients = self.permutation.forward(coefficients, coefficients.shape[0])
        split = coefficients.view(coefficients.shape[0], matrices.shape[1], -1)  # (rows, after, rest)
        own = self._by_row(matrices, split.shape[0])
        if own.shape[2] % 4:  # widths that matrix products are slow to write
            pulled = torch.bmm(own.transpose(1, 2), split).transpose(1, 2).reshape(split.shape[0], -1)
        else:
            pulled = torch.bmm(split.transpose(1, 2), own).view(split.shape[0], -1)  # (rows, rest * before)
        return pulled, split

    def backward(self, gradient: Tensor, split: Tensor, matrices: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        """Gradients of the coefficients (not of the last ones, which are given) and of the matrices."""
        rows = split.shape[0]
        gradient = gradient.view(rows, split.shape[2], -1).transpose(1, 2)  # (rows, before, rest)
        if gradient.shape[1] % 4:
            gradient = gradient.contiguous()
            to_matrices = torch.bmm(gradient, split.transpose(1, 2)).transpose(1, 2)
        else:
            to_matrices = torch.bmm(split, gradient.transpose(1, 2))
        if matrices.shape[0] != rows:
            to_matrices = to_matrices.reshape(matrices.shape[0], -1, *matrices.shape[1:]).sum(1)
        if last:
            return gradient, to_matrices
        back = torch.bmm(self._by_row(matrices, rows), gradient).view(rows, -1)
        if self.permutation is not None:
            back = self.permutation.backward(back, rows)
        return back, to_matrices

    @staticmethod
    def _by_row(matrices: Tensor, rows: int) -> Tensor:
        """``(cones, after, before) -> (rows, after, before)``."""
        if matrices.shape[0] == rows:
            return matrices
        return matrices[:, None].expand(-1, rows // matrices.shape[0], -1, -1).reshape(rows, *matrices.shape[1:])


class _Gather:
    """A run of shuffles: every coefficient comes from one other, times a number."""

    entries = NO_MATRIX

    def __init__(self, steps: Sequence[ConeStep], layout: Layout) -> None:
        route = trace(steps, tuple(layout.sizes[wire] for wire in range(len(layout.order))))
        image = route.images(layout.order)
        origin, found = route.origins(image)
        self.image, self.origin = torch.from_numpy(image)[None], torch.from_numpy(origin)[None]
        self.factor, self.found = torch.from_numpy(route.factor)[None], torch.from_numpy(found)  # (cones, elements)
        self.all_found = bool(found.all())
        self.signature: tuple[object, ...] = (image.tobytes(), found.tobytes())
        layout.sizes = dict(enumerate(route.before))
        layout.order = list(range(len(layout.order)))

    def join(self, others: Sequence[_Gather]) -> None:
        self.factor = torch.cat([self.factor, *(other.factor for other in others)])

    def forward(self, coefficients: Tensor, matrices: Tensor) -> tuple[Tensor, Tensor]:
        pulled = coefficients.gather(1, self.image.to(coefficients.device).expand(coefficients.shape[0], -1))
        return self._scale(pulled), coefficients

    def backward(self, gradient: Tensor, split: Tensor, matrices: Tensor, last: bool) -> tuple[Tensor, Tensor]:
        scaled = self._scale(gradient.clone())
        back = scaled.gather(1, self.origin.to(scaled.device).expand(scaled.shape[0], -1))
        if not self.all_found:
            back *= self.found.to(back)
        return back, matrices

    def _scale(self, coefficients: Tensor) -> Tensor:
        factor = self.factor.to(coefficients)
        coefficients.view(factor.shape[0], -1, factor.shape[1]).mul_(factor[:, None])
        return coefficients


@dataclass(frozen=True)
class Route:
    """Where a run of shuffles takes Pauli strings: ``R[image(q), q] = factor(q)`` for every string ``q`` before it."""

    before: Sizes
    after: Sizes
    letters: NDArray[np.int64]  # of the images: (wires, elements before)
    factor: Matrix  # (elements before,), 0 where the image is cut away

    def images(self, order: Sequence[int]) -> NDArray[np.int64]:
        """Places of the images where the wires' axes stand in this order; 0 where the factor is 0."""
        place = np.zeros(self.letters.shape[1], dtype=np.int64)
        for wire in order:
            place = place * self.after[wire] + self.letters[wire]
        return np.where(self.factor != 0, place, 0)

    def origins(self, images: NDArray[np.int64]) -> tuple[NDArray[np.int64], Matrix]:
        """For every string afterwards the place of its origin, and 1 where it has one: (elements after,) each."""
        size = math.prod(self.after)
        origin, found = np.zeros(size, dtype=np.int64), np.zeros(size)
        there = np.flatnonzero(self.factor)
        origin[images[there]] = there
        found[images[there]] = 1.0
        return origin, found


def trace(steps: Sequence[ConeStep], after: Sizes) -> Route:
    """Follow all Pauli strings through shuffles, given in the order of time, to axes of the sizes ``after``."""
    before = list(after)
    for step in reversed(steps):
        for axis, size in zip(step.axes, step.before, strict=True):
            if axis is not None:
                before[axis] = size
    letters = np.indices(before, dtype=np.int64).reshape(len(before), -1)
    factor = np.ones(letters.shape[1])
    for step in steps:
        assert isinstance(step.piece, Shuffle)
        row = (step.piece.constant != 0).argmax(0)  # of the one number in each column
        number = step.piece.constant[row, np.arange(len(row))]
        a, b = (np.zeros_like(letters[0]) if axis is None else letters[axis] for axis in step.axes)
        string = 4 * a + b
        factor *= number[string]
        for axis, letter in zip(step.axes, np.divmod(row[string], 4), strict=True):
            if axis is not None:
                letters[axis] = letter
    inside = np.all(letters < np.array(after)[:, None], axis=0)
    return Route(tuple(before), after, letters, np.where(inside, factor, 0.0))


class Tail:
    """The tails of cones with equal structure; what is constant next to the observables is multiplied into them."""

    def __init__(self, cone: Cone) -> None:
        layout = Layout(list(range(len(cone.wires))), dict(enumerate(cone.sizes)))
        self.cones = [cone]
        self.elements = cone.elements
        self.vectors = torch.from_numpy(cone.vectors)  # (rows, elements)
        self.steps: list[_Pull | _Gather] = []
        left = list(cone.tail)
        while left:
            shuffles: list[ConeStep] = []
            while left and isinstance(left[-1].piece, Shuffle):
                shuffles.insert(0, left.pop())
            if shuffles:
                self._add(_Gather(shuffles, layout), torch.empty(0, device="cpu"))
            else:
                step = left.pop()
                self._add(_Pull(step, layout), _constant(step))
        self.last = layout.bring(range(len(cone.wires)))
        if self.steps and isinstance(self.steps[0], _Pull) and self.steps[0].permutation is not None:
            self.vectors = self.steps[0].permutation.forward(self.vectors, self.vectors.shape[0])
            self.steps[0].permutation = None
        self.signature: tuple[object, ...] = (len(cone.places), cone.cut_sizes, self.vectors.shape)
        self.signature += tuple(step.signature for step in self.steps)

    def _add(self, step: _Pull | _Gather, constant: Tensor | None) -> None:
        if constant is None or self.steps:
            self.steps.append(step)
        else:
            self.vectors = step.forward(self.vectors, constant)[0]

    def join(self, others: Sequence[Tail]) -> None:
        """Take in tails with the same signature."""
        self.cones = [cone for tail in (self, *others) for cone in tail.cones]
        self.vectors = torch.cat([self.vectors, *(tail.vectors for tail in others)])
        for place, step in enumerate(self.steps):
            step.join([tail.steps[place] for tail in others])  # type: ignore[misc]  # steps of one kind

    @property
    def entries(self) -> list[Tensor]:
        """For every step the places of its numbers among those of the blocks: (cones, after, before)."""
        return [step.entries for step in self.steps]

    def forward(self, matrices: Sequence[Tensor], like: Tensor, keep: bool) -> PulledBack:
        """From the matrices of the steps to the coefficients where the tail begins, as precise as ``like`` or more."""
        precise = self.vectors.shape[0] * self.elements <= _PRECISE_ELEMENTS
        keep = keep and self.kept_elements <= _KEPT_ELEMENTS
        dtype = torch.float64 if precise else like.dtype
        matrices = [matrix.to(dtype) for matrix in matrices]
        parts = self.vectors.to(device=like.device, dtype=dtype).split(self._rows())
        walked = [self._walk(part, matrices, keep) for part in parts]
        coefficients = torch.cat([found for found, _ in walked]) if len(parts) > 1 else walked[0][0]
        split = coefficients.view(len(self.cones), -1, coefficients.shape[1])
        return PulledBack(split, parts, [kept for _, kept in walked], matrices)

    @property
    def kept_elements(self) -> int:
        """Numbers to keep for the backward pass, at most."""
        return self.vectors.shape[0] * self.elements * (len(self.steps) + 1)

    def _rows(self) -> int:
        """How many rows to work on at once: all, or as many as stay in a core's cache."""
        fitting = max(1, _CACHED_ELEMENTS // self.elements)
        return fitting if len(self.cones) == 1 else self.vectors.shape[0]

    def _walk(self, coefficients: Tensor, matrices: Sequence[Tensor], keep: bool) -> tuple[Tensor, list[Tensor]]:
        """Through all steps; what their gradients need is kept or not."""
        kept = []
        for step, own in zip(self.steps, matrices, strict=True):
            coefficients, inner = step.forward(coefficients, own)
            if keep:
                kept.append(inner)
        if self.last is not None:
            coefficients = self.last.forward(coefficients, coefficients.shape[0])
        return coefficients, kept

    def backward(self, gradient: Tensor, pulled: PulledBack) -> list[Tensor]:
        """From the gradient of the coefficients to those of the steps' matrices."""
        gradient = gradient.to(pulled.coefficients.dtype).reshape(self.vectors.shape[0], -1)
        total: list[Tensor] = []
        start = 0
        for part, kept in zip(pulled.parts, pulled.kept, strict=True):
            own = gradient[start : start + part.shape[0]]
            start += part.shape[0]
            if not kept:
                _, kept = self._walk(part, pulled.matrices, True)
            found = self._walk_back(own, kept, pulled.matrices)
            total = found if not total else [a + b for a, b in zip(total, found, strict=True)]
        return total

    def _walk_back(self, gradient: Tensor, kept: list[Tensor], matrices: Sequence[Tensor]) -> list[Tensor]:
        if self.last is not None:
            gradient = self.last.backward(gradient, gradient.shape[0])
        found = []
        for place in range(len(self.steps) - 1, -1, -1):
            gradient, to_matrices = self.steps[place].backward(gradient, kept[place], matrices[place], place == 0)
            found.append(to_matrices)
        return found[::-1]


def _constant(step: ConeStep) -> Tensor | None:
    """The matrix of a constant block, cut to the letters that occur: (1, after, before)."""
    assert isinstance(step.piece, Block)
    if step.piece.constant is None:
        return None
    wide = step.piece.constant if len(step.axes) == 2 else np.kron(step.piece.constant, np.eye(4))
    return torch.from_numpy(wide.ravel()[entries(step) - 256 * step.piece.index])[None]


@dataclass
class PulledBack:
    """Coefficients of observables (cones, observables, elements), and what their gradient needs."""

    coefficients: Tensor
    parts: Sequence[Tensor]  # of the rows before the first step
    kept: list[list[Tensor]]  # for every part
    matrices: list[Tensor]
