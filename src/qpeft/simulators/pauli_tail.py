r"""Observables pulled back through what all samples share: ``c -> c R`` for every block, once per call.

Data layout: the coefficients of a group of cones with equal structure are one matrix ``(cones, elements)``. Its axes
are the observables and the wires, in an order that every step knows. A step contracts its wires in front and puts them
back at the end, so that a layer on all wires in order needs no copy::

    (cones, after, rest) -> (cones, rest, before)           after, before: letters of the step's wires
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

_OBSERVABLES = -1  # name of the observables' axis among those of the wires
_PRECISE_ELEMENTS = 1 << 16  # up to here float64 costs nothing worth saving


@dataclass
class Layout:
    """Order and sizes of the axes of coefficients."""

    order: list[int]
    sizes: dict[int, int]

    def bring(self, front: Sequence[int]) -> Permutation | None:
        """Put these axes first; ``None`` where they are."""
        if self.order[: len(front)] == list(front):
            return None
        order = [*front, *(axis for axis in self.order if axis not in front)]
        permutation = Permutation(
            tuple(self.sizes[axis] for axis in self.order), tuple(self.order.index(axis) for axis in order)
        )
        self.order = order
        return permutation


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


def cut(blocks: Tensor, after: Sizes, before: Sizes) -> Tensor:
    """The part of ``(blocks, 4, 4, 4, 4)`` with the letters that occur; on one wire the second has only I."""
    (a, b), (c, d) = ((*sizes, 1)[:2] for sizes in (after, before))
    return blocks[:, :a, :b, :c, :d]


class _Pull:
    """One block, with one matrix for each cone."""

    def __init__(self, step: ConeStep, layout: Layout) -> None:
        assert isinstance(step.piece, Block)
        axes = [axis for axis in step.axes if axis is not None]
        self.permutation = layout.bring(axes)
        self.before, self.after = step.before, step.after
        self.numbers = torch.tensor([step.piece.index], device="cpu")
        for axis, size in zip(step.axes, step.before, strict=True):
            if axis is not None:
                layout.sizes[axis] = size
        layout.order = layout.order[len(axes) :] + axes
        self.signature: tuple[object, ...] = (step.axes, step.before, step.after)

    def share(self, blocks: Tensor) -> Tensor:
        """The matrices of all cones: (cones, after, before)."""
        if len(self.numbers) == 1:  # a view
            number = int(self.numbers[0])
            chosen = blocks[number : number + 1]
        else:
            chosen = blocks[self.numbers.to(blocks.device)]
        return cut(chosen, self.after, self.before).reshape(len(chosen), math.prod(self.after), -1)

    def forward(self, coefficients: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        """Pulled-back coefficients, and what the gradient of the matrices needs."""
        if self.permutation is not None:
            coefficients = self.permutation.forward(coefficients, len(coefficients))
        split = coefficients.view(len(coefficients), shared.shape[1], -1)  # (cones, after, rest)
        pulled = torch.bmm(split.transpose(1, 2), shared)  # (cones, rest, before)
        return pulled.view(len(coefficients), -1), split

    def backward(self, gradient: Tensor, split: Tensor, shared: Tensor, to_blocks: Tensor) -> Tensor:
        gradient = gradient.view(len(gradient), split.shape[2], -1)  # (cones, rest, before)
        target = cut(to_blocks, self.after, self.before)
        to_shared = torch.bmm(split, gradient).view(-1, *target.shape[1:])
        target.index_add_(0, self.numbers.to(target.device), to_shared.to(target.dtype))
        back = torch.bmm(shared, gradient.transpose(1, 2)).view(len(gradient), -1)
        return back if self.permutation is None else self.permutation.backward(back, len(back))

    def join(self, others: Sequence[_Pull]) -> None:
        """Take over the matrices of the same step of other cones."""
        self.numbers = torch.cat([self.numbers, *(other.numbers for other in others)])


class _Gather:
    """A run of shuffles: every coefficient comes from one other, times a number."""

    def __init__(self, steps: Sequence[ConeStep], layout: Layout) -> None:
        self.permutation = layout.bring([_OBSERVABLES])
        wires = layout.order[1:]
        self.n_observables = layout.sizes[_OBSERVABLES]
        route = trace(steps, tuple(layout.sizes[wire] for wire in range(len(wires))))
        image = route.images(wires)
        origin, found = route.origins(image)
        self.image, self.origin = torch.from_numpy(image), torch.from_numpy(origin)
        self.factor, self.found = torch.from_numpy(route.factor)[None], torch.from_numpy(found)  # (cones, elements)
        self.signature: tuple[object, ...] = (image.tobytes(), found.tobytes())
        layout.sizes.update(enumerate(route.before))
        layout.order = [_OBSERVABLES, *range(len(wires))]

    def share(self, blocks: Tensor) -> Tensor:
        """The numbers: (cones, 1, elements)."""
        return self.factor[:, None].to(blocks.device)

    def forward(self, coefficients: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        if self.permutation is not None:
            coefficients = self.permutation.forward(coefficients, len(coefficients))
        split = coefficients.view(len(coefficients), self.n_observables, -1)
        pulled = split.index_select(2, self.image.to(split.device)) * shared
        return pulled.view(len(coefficients), -1), coefficients

    def backward(self, gradient: Tensor, split: Tensor, shared: Tensor, to_blocks: Tensor) -> Tensor:
        scaled = gradient.view(len(gradient), self.n_observables, -1) * shared
        back = scaled.index_select(2, self.origin.to(scaled.device)) * self.found.to(scaled)
        back = back.view(len(gradient), -1)
        return back if self.permutation is None else self.permutation.backward(back, len(back))

    def join(self, others: Sequence[_Gather]) -> None:
        self.factor = torch.cat([self.factor, *(other.factor for other in others)])


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
        k = len(cone.wires)
        layout = Layout([_OBSERVABLES, *range(k)], {_OBSERVABLES: len(cone.places), **dict(enumerate(cone.sizes))})
        self.cones = [cone]
        self.vectors = torch.from_numpy(cone.vectors).reshape(1, -1)  # (cones, elements)
        self.steps: list[_Pull | _Gather] = []
        left = list(cone.tail)
        while left:
            shuffles: list[ConeStep] = []
            while left and isinstance(left[-1].piece, Shuffle):
                shuffles.insert(0, left.pop())
            if shuffles:
                gather = _Gather(shuffles, layout)
                self._add(gather, gather.factor[:, None])
                continue
            pull = _Pull(left[-1], layout)
            piece = left.pop().piece
            assert isinstance(piece, Block)
            constant = None
            if piece.constant is not None:
                wide = torch.zeros(1, 4, 4, 4, 4, dtype=torch.float64, device="cpu")
                whole = cut(wide, (4,) * len(piece.wires), (4,) * len(piece.wires))
                whole.copy_(torch.from_numpy(piece.constant).view(whole.shape))
                constant = cut(wide, pull.after, pull.before).reshape(1, math.prod(pull.after), -1)
            self._add(pull, constant)
        self.last = layout.bring([_OBSERVABLES, *range(k)])
        self.signature: tuple[object, ...] = (len(cone.places), cone.cut_sizes, self.vectors.shape[1])
        self.signature += tuple(step.signature for step in self.steps)

    def _add(self, step: _Pull | _Gather, constant: Tensor | None) -> None:
        if constant is None or self.steps:
            self.steps.append(step)
        else:
            self.vectors = step.forward(self.vectors, constant)[0]

    @property
    def n_observables(self) -> int:
        return len(self.cones[0].places)

    def join(self, others: Sequence[Tail]) -> None:
        """Take in tails with the same signature."""
        self.cones = [cone for tail in (self, *others) for cone in tail.cones]
        self.vectors = torch.cat([self.vectors, *(tail.vectors for tail in others)])
        for place, step in enumerate(self.steps):
            step.join([tail.steps[place] for tail in others])  # type: ignore[misc, arg-type]  # steps of one kind

    def forward(self, blocks: Tensor, dtype: torch.dtype) -> PulledBack:
        """``(blocks, 4, 4, 4, 4) -> `` coefficients where the tail begins."""
        elements = len(self.cones) * self.n_observables * self.cones[0].elements
        dtype = torch.float64 if elements <= _PRECISE_ELEMENTS else dtype
        coefficients = self.vectors.to(device=blocks.device, dtype=dtype)
        kept, shares = [], []
        for step in self.steps:
            shares.append(step.share(blocks).to(dtype))
            coefficients, inner = step.forward(coefficients, shares[-1])
            kept.append(inner)
        if self.last is not None:
            coefficients = self.last.forward(coefficients, len(coefficients))
        return PulledBack(coefficients.view(len(self.cones), self.n_observables, -1), kept, shares)

    def backward(self, gradient: Tensor, pulled: PulledBack, to_blocks: Tensor) -> None:
        """From the gradient of the coefficients to those of the blocks."""
        gradient = gradient.to(pulled.coefficients.dtype).reshape(len(self.cones), -1)
        if self.last is not None:
            gradient = self.last.backward(gradient, len(gradient))
        for step, inner, shared in zip(self.steps[::-1], pulled.kept[::-1], pulled.shares[::-1], strict=True):
            gradient = step.backward(gradient, inner, shared, to_blocks)


@dataclass
class PulledBack:
    """Coefficients of observables (cones, observables, elements), and what their gradient needs."""

    coefficients: Tensor
    kept: list[Tensor]
    shares: list[Tensor]
