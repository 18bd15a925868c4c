r"""What belongs to every sample: product states of the encoded inputs, their contraction with pulled-back observables,
and, where inputs enter again after a two-qubit gate, the evolution of whole Pauli vectors.

Data layout: samples come last, so that they fill SIMD lanes: features of product states ``(wires, letters, samples)``,
Pauli vectors ``(elements, samples)``. With the coefficients ``C`` of an observable and wires split into a left and a
right part, an expectation is ``<O> = Σ_l v_l (Σ_r C_lr v_r)``: one matrix product with the right product states, and
one sum over the left ones; the whole product state is never written down.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qpeft.simulators.pauli import turn_pairs
from qpeft.simulators.pauli_lowering import Block, Cone, ConeStep, HeadStep, Shuffle, Sizes, Spin, Turn
from qpeft.simulators.pauli_tail import NO_MATRIX, Layout, entries, trace

_KEPT_ELEMENTS = 1 << 25  # states of a chunk kept for its backward pass: 128 MiB in float32


@dataclass
class Samples:
    """The rotations by inputs of one chunk, and the gradients collected for their angles."""

    cos: Tensor  # (turns, samples)
    sin: Tensor
    gradient: Tensor  # (turns, samples)


class Angles:
    """Angles of all rotations by inputs."""

    def __init__(self, turns: Sequence[Turn], n_inputs: int) -> None:
        self.from_inputs = torch.zeros(len(turns), n_inputs, dtype=torch.float64, device="cpu")
        for row, turn in enumerate(turns):
            self.from_inputs[row, turn.index] = turn.scale

    def chunk(self, inputs: Tensor) -> Samples:
        """``(samples, n_inputs)`` -> their rotations."""
        angles = torch.mm(self.from_inputs.to(inputs), inputs.t())  # (turns, samples)
        return Samples(angles.cos(), angles.sin(), torch.zeros_like(angles))

    def backward(self, samples: Samples, out: Tensor) -> None:
        """Write gradients of inputs ``(samples, n_inputs)``."""
        torch.mm(samples.gradient.t(), self.from_inputs.to(samples.gradient), out=out)


def _index(numbers: Sequence[int]) -> slice | Tensor:
    """An index for these places: a slice where they follow each other, because it needs no copy."""
    if list(numbers) == list(range(numbers[0], numbers[0] + len(numbers))):
        return slice(numbers[0], numbers[0] + len(numbers))
    return torch.tensor(numbers, device="cpu")


Letters = dict[int, Tensor]  # views of an array, one for each letter (or pair of letters) that its axes hold


def _turn(source: Letters, target: Letters, pairs: Sequence[tuple[int, int]], cos: Tensor, sin: Tensor) -> None:
    """Rotate pairs of letters and copy the others; letters that an axis does not hold are zero."""
    turned = set()
    for p, q in pairs:
        for one, other, sign in ((p, q, -1), (q, p, 1)):
            turned.add(one)
            if one not in target:
                continue
            if one in source:
                torch.mul(source[one], cos, out=target[one])
                if other in source:
                    target[one].addcmul_(source[other], sin, value=sign)
            elif other in source:
                torch.mul(source[other], sin * sign, out=target[one])
            else:
                target[one].zero_()
    for letter in target.keys() - turned:
        if letter in source:
            target[letter].copy_(source[letter])
        else:
            target[letter].zero_()


def _turn_gradient(
    source: Letters, adjoint: Letters, pairs: Sequence[tuple[int, int]], cos: Tensor, sin: Tensor
) -> Tensor | None:
    """``∂loss/∂θ`` before summation over the views, from the inputs of the rotation."""
    along: Tensor | None = None  # Σ λ_p s_p
    across: Tensor | None = None  # Σ λ_q s_p - λ_p s_q
    for p, q in pairs:
        for one in (p, q):
            if one in source and one in adjoint:
                along = source[one] * adjoint[one] if along is None else along.addcmul_(source[one], adjoint[one])
        for one, other, sign in ((p, q, 1), (q, p, -1)):
            if one in source and other in adjoint:
                if across is None:
                    across = source[one] * adjoint[other] * sign
                else:
                    across.addcmul_(source[one], adjoint[other], value=sign)
    if along is None:
        return None if across is None else across.mul_(cos)
    along = along.mul_(sin).neg_()
    return along if across is None else along.addcmul_(across, cos)


class Head:
    """Product states of all wires: from |0> through the rotations and matrices of each wire."""

    def __init__(self, heads: Sequence[tuple[HeadStep, ...]], sizes: Sizes) -> None:
        self.n_wires = len(heads)
        self.size = max(sizes)
        groups: dict[tuple[tuple[str, int], ...], list[int]] = {}
        for wire, steps in enumerate(heads):
            groups.setdefault(tuple((step.letter, step.size) for step in steps), []).append(wire)
        self.groups = [
            (
                _index(wires),
                len(wires),
                [_HeadStep([heads[w][place] for w in wires]) for place in range(len(signature))],
            )
            for signature, wires in groups.items()
        ]

    def forward(self, samples: Samples, runs: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Features ``(wires, letters, samples)``, and what their gradient needs."""
        kept = []
        for _, count, steps in self.groups:
            states = [samples.cos.new_ones(count, 2, samples.cos.shape[1])]
            for step in steps:
                states.append(step.forward(states[-1], samples, runs))
            kept.append(states)
        if len(self.groups) == 1:
            return kept[0][-1], kept
        features = samples.cos.new_zeros(self.n_wires, self.size, samples.cos.shape[1])
        for (wires, _, _), states in zip(self.groups, kept, strict=True):
            features[wires, : states[-1].shape[1]] = states[-1]
        return features, kept

    def backward(
        self, gradient: Tensor, kept: list[list[Tensor]], samples: Samples, runs: Tensor, to_runs: Tensor
    ) -> None:
        """From the gradient of the features to those of angles and runs."""
        for (wires, _, steps), states in zip(self.groups, kept, strict=True):
            own = gradient if len(self.groups) == 1 else gradient[wires, : states[-1].shape[1]]
            for step, state in zip(steps[::-1], states[-2::-1], strict=True):
                own = step.backward(own, state, samples, runs, to_runs)


class _HeadStep:
    """The same step on several wires: a matrix of their runs, or a rotation."""

    def __init__(self, steps: Sequence[HeadStep]) -> None:
        self.size = steps[0].size
        self.pairs = turn_pairs(steps[0].letter) if steps[0].letter else None
        self.numbers = _index([step.row if step.run is None else step.run for step in steps])
        self.runs = torch.tensor([step.run or 0 for step in steps], device="cpu")

    def forward(self, state: Tensor, samples: Samples, runs: Tensor) -> Tensor:
        if self.pairs is None:
            return torch.bmm(self._matrices(runs, state), state)
        out = state.new_empty(len(state), self.size, state.shape[2])
        _turn(_letters(state), _letters(out), self.pairs, samples.cos[self.numbers], samples.sin[self.numbers])
        return out

    def backward(self, gradient: Tensor, state: Tensor, samples: Samples, runs: Tensor, to_runs: Tensor) -> Tensor:
        if self.pairs is None:
            size = state.shape[1]
            to_matrices = torch.bmm(gradient, state.transpose(1, 2)).to(to_runs.dtype)
            to_runs[:, : self.size, :size].index_add_(0, self.runs.to(to_runs.device), to_matrices)
            return torch.bmm(self._matrices(runs, state).transpose(1, 2), gradient)
        cos, sin = samples.cos[self.numbers], samples.sin[self.numbers]
        source, adjoint = _letters(state), _letters(gradient)
        slope = _turn_gradient(source, adjoint, self.pairs, cos, sin)
        if slope is not None:
            samples.gradient[self.numbers] = slope
        back = torch.empty_like(state)
        _turn(adjoint, _letters(back), self.pairs, cos, -sin)
        return back

    def _matrices(self, runs: Tensor, state: Tensor) -> Tensor:
        return runs[self.numbers, : self.size, : state.shape[1]].to(state.dtype)


def _letters(state: Tensor) -> Letters:
    return dict(enumerate(state.unbind(1)))


def _product(leaves: list[Tensor]) -> list[list[Tensor]]:
    """Outer products of features ``(cones, letters, samples)`` as a binary tree; all levels, the last with one."""
    levels = [leaves]
    while len(levels[-1]) > 1:
        level = levels[-1]
        joined = [
            (left[:, :, None] * right[:, None]).flatten(1, 2)
            for left, right in zip(level[0::2], level[1::2], strict=False)
        ]
        levels.append(joined + level[len(level) // 2 * 2 :])
    return levels


def _product_backward(adjoint: Tensor, levels: list[list[Tensor]]) -> list[Tensor]:
    """From the adjoint of the product to those of the leaves."""
    adjoints = [adjoint]
    for level in levels[-2::-1]:
        below = []
        for left, right, joined in zip(level[0::2], level[1::2], adjoints, strict=False):
            grid = joined.view(len(left), left.shape[1], right.shape[1], -1)
            below += [(grid * right[:, None]).sum(2), (grid * left[:, :, None]).sum(1)]
        adjoints = below + adjoints[len(level) // 2 :]
    return adjoints


class _Leaves:
    """Features of the wires of several cones."""

    def __init__(self, wires: Sequence[Sequence[int]], sizes: Sizes) -> None:
        self.sizes = sizes
        self.wires = [_index([cone[axis] for cone in wires]) for axis in range(len(sizes))]

    def read(self, features: Tensor) -> list[Tensor]:
        """``(wires, letters, samples) -> `` for each axis ``(cones, size, samples)``."""
        return [features[wires, :size] for wires, size in zip(self.wires, self.sizes, strict=True)]

    def add(self, gradients: list[Tensor], to_features: Tensor) -> None:
        for wires, size, gradient in zip(self.wires, self.sizes, gradients, strict=True):
            if isinstance(wires, slice):
                to_features[wires, :size] += gradient
            else:
                to_features[:, :size].index_add_(0, wires.to(gradient.device), gradient)


class Contraction:
    """Expectations from coefficients and product states, for cones with axes of equal sizes."""

    def __init__(self, cones: Sequence[Cone]) -> None:
        sizes = cones[0].cut_sizes
        self.n_observables = len(cones[0].places)
        self.places = _index([place for cone in cones for place in cone.places])  # cone by cone
        splits = range(len(sizes))
        self.split = min(splits, key=lambda at: self.n_observables * math.prod(sizes[:at]) + math.prod(sizes[at:]))
        self.leaves = _Leaves([cone.wires for cone in cones], sizes)
        self.right_elements = math.prod(sizes[self.split :])
        # Numbers of one sample that are alive at once
        self.elements = len(cones) * 2 * (self.n_observables * math.prod(sizes[: self.split]) + self.right_elements)

    def split_coefficients(self, coefficients: Tensor) -> Tensor:
        """``(cones, observables, elements) -> (cones, observables * left, right)``."""
        return coefficients.reshape(len(coefficients), -1, self.right_elements)

    def forward(self, features: Tensor, coefficients: Tensor, out: Tensor) -> None:
        """Write expectations to their places in ``(samples, observables)``."""
        leaves = self.leaves.read(features)
        right = _product(leaves[self.split :])[-1][0]  # (cones, right, samples)
        inner = torch.bmm(coefficients, right)  # (cones, observables * left, samples)
        if self.split:
            left = _product(leaves[: self.split])[-1][0]  # (cones, left, samples)
            grid = inner.view(len(inner), self.n_observables, -1, inner.shape[2])
            inner = grid.mul_(left[:, None]).sum(2)
        out[:, self.places] = inner.flatten(0, 1).t()

    def backward(
        self, gradient: Tensor, features: Tensor, coefficients: Tensor, to_features: Tensor, to_coefficients: Tensor
    ) -> None:
        """From gradients of expectations ``(samples, observables)``; adds to its last two arguments."""
        leaves = self.leaves.read(features)
        right = _product(leaves[self.split :])
        towards = gradient[:, self.places].t().reshape(len(coefficients), self.n_observables, -1)
        if self.split:
            left = _product(leaves[: self.split])
            inner = torch.bmm(coefficients, right[-1][0])
            grid = inner.view(*towards.shape[:2], -1, inner.shape[2])  # (cones, observables, left, samples)
            to_left = grid.mul_(towards[:, :, None]).sum(1)
            to_inner = (towards[:, :, None] * left[-1][0][:, None]).flatten(1, 2)
            slopes = _product_backward(to_left, left)
        else:
            to_inner, slopes = towards.contiguous(), []
        to_coefficients += torch.bmm(to_inner, right[-1][0].transpose(1, 2))
        to_right = torch.bmm(coefficients.transpose(1, 2), to_inner)
        self.leaves.add(slopes + _product_backward(to_right, right), to_features)


class _Apply:
    """A shared block on Pauli vectors."""

    def __init__(self, step: ConeStep, layout: Layout) -> None:
        axes = [axis for axis in step.axes if axis is not None]
        places = sorted(layout.order.index(axis) for axis in axes)
        self.permutation = None
        if len(places) == 2 and places[1] != places[0] + 1:
            self.permutation = layout.bring(axes)
            places = [0, 1]
        own = entries(step)  # (after, before)
        if len(places) == 2 and layout.order[places[0]] == axes[1]:
            own = own.reshape(*step.after, *step.before).transpose(1, 0, 3, 2).reshape(own.shape)
        self.entries = torch.from_numpy(np.ascontiguousarray(own))[None]
        self.left = math.prod(layout.sizes[axis] for axis in layout.order[: places[0]])
        layout.resize(step.axes, step.after)

    def forward(self, state: Tensor, matrix: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        """The next state, and this one as the gradient needs it."""
        if self.permutation is not None:
            state = self.permutation.forward(state, 1)
        moved = torch.bmm(matrix.expand(self.left, -1, -1), state.view(self.left, matrix.shape[1], -1))
        return moved.view(-1, state.shape[1]), state

    def backward(self, adjoint: Tensor, state: Tensor, matrix: Tensor, samples: Samples, to_matrix: Tensor) -> Tensor:
        """The adjoint of the state before; adds to the gradient of the matrix."""
        source = state.view(self.left, matrix.shape[1], -1)
        towards = adjoint.view(self.left, matrix.shape[0], -1)
        to_matrix += torch.bmm(towards, source.transpose(1, 2)).sum(0)
        back = torch.bmm(matrix.t().expand(self.left, -1, -1), towards).view(state.shape)
        return back if self.permutation is None else self.permutation.backward(back, 1)


class _Rearrange:
    """A run of shuffles on Pauli vectors."""

    entries = NO_MATRIX

    def __init__(self, steps: Sequence[ConeStep], layout: Layout) -> None:
        for step in steps:
            layout.resize(step.axes, step.after)
        route = trace(steps, tuple(layout.sizes[axis] for axis in range(len(layout.order))))
        image = route.images(layout.order)
        origin, found = route.origins(image)
        # The strings of a route stand in the order of the wires, those of the state in the order of its axes.
        order = _flat_order(route.before, layout.order)
        self.image, self.factor = torch.from_numpy(image)[order], torch.from_numpy(route.factor)[order][:, None]
        self.origin = torch.argsort(order)[torch.from_numpy(origin)]
        self.origin_factor = self.factor[self.origin] * torch.from_numpy(found)[:, None]

    def forward(self, state: Tensor, matrix: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        return state.index_select(0, self.origin.to(state.device)).mul_(self.origin_factor.to(state)), state

    def backward(self, adjoint: Tensor, state: Tensor, matrix: Tensor, samples: Samples, to_matrix: Tensor) -> Tensor:
        return adjoint.index_select(0, self.image.to(adjoint.device)).mul_(self.factor.to(adjoint))


def _flat_order(sizes: Sizes, order: Sequence[int]) -> Tensor:
    """Places in an array of these sizes, read with its axes in another order."""
    return torch.arange(math.prod(sizes), device="cpu").view(sizes).permute(*order).flatten()


class _Rotate:
    """A rotation by an input on Pauli vectors."""

    entries = NO_MATRIX

    def __init__(self, step: ConeStep, layout: Layout) -> None:
        assert isinstance(step.piece, Spin)
        self.row = step.piece.row
        self.pairs = turn_pairs(step.piece.letters)
        self.axes = [layout.order.index(axis) if axis is not None else None for axis in step.axes]
        self.before = [layout.sizes[axis] for axis in layout.order]
        for axis, size in zip(step.axes, step.after, strict=True):
            if axis is not None:
                layout.sizes[axis] = size
        self.after = [layout.sizes[axis] for axis in layout.order]

    def _views(self, state: Tensor, sizes: Sequence[int]) -> Letters:
        grid = state.view(*sizes, -1)
        views: Letters = {}
        for letter in range(4 ** len(self.axes)):
            view: Tensor | None = grid
            # From the last axis of the grid to the first, so that the places of the others stay what they are.
            digits = [(axis, letter // 4 ** (len(self.axes) - 1 - i) % 4) for i, axis in enumerate(self.axes)]
            for axis, digit in sorted(digits, key=lambda pair: -1 if pair[0] is None else pair[0], reverse=True):
                if digit >= (1 if axis is None else sizes[axis]):
                    view = None
                    break
                if axis is not None and view is not None:
                    view = view.select(axis, digit)
            if view is not None:
                views[letter] = view
        return views

    def forward(self, state: Tensor, matrix: Tensor, samples: Samples) -> tuple[Tensor, Tensor]:
        out = state.new_empty(math.prod(self.after), state.shape[1])
        cos, sin = samples.cos[self.row], samples.sin[self.row]
        _turn(self._views(state, self.before), self._views(out, self.after), self.pairs, cos, sin)
        return out, state

    def backward(self, adjoint: Tensor, state: Tensor, matrix: Tensor, samples: Samples, to_matrix: Tensor) -> Tensor:
        cos, sin = samples.cos[self.row], samples.sin[self.row]
        source, towards = self._views(state, self.before), self._views(adjoint, self.after)
        slope = _turn_gradient(source, towards, self.pairs, cos, sin)
        if slope is not None:
            samples.gradient[self.row] += slope.reshape(-1, slope.shape[-1]).sum(0)
        back = torch.empty_like(state)
        _turn(towards, self._views(back, self.before), self.pairs, cos, -sin)
        return back


_Step = _Apply | _Rearrange | _Rotate


class Evolution:
    """Pauli vectors of the samples of one cone, taken through the middle of the program."""

    def __init__(self, cone: Cone) -> None:
        layout = Layout(list(range(len(cone.wires))), dict(enumerate(cone.head_sizes)))
        self.places = _index(cone.places)
        self.leaves = _Leaves([cone.wires], cone.head_sizes)
        self.steps: list[_Step] = []
        left = list(cone.middle)
        while left:
            shuffles: list[ConeStep] = []
            while left and isinstance(left[0].piece, Shuffle):
                shuffles.append(left.pop(0))
            if shuffles:
                self.steps.append(_Rearrange(shuffles, layout))
                continue
            step = left.pop(0)
            self.steps.append(_Apply(step, layout) if isinstance(step.piece, Block) else _Rotate(step, layout))
        self.elements = cone.state_elements
        order = _flat_order(cone.cut_sizes, layout.order)
        self.to_state, self.from_state = order, torch.argsort(order)

    @property
    def entries(self) -> list[Tensor]:
        """For every step the places of its numbers among those of the blocks: (1, after, before)."""
        return [step.entries for step in self.steps]

    def split_coefficients(self, coefficients: Tensor) -> Tensor:
        """``(1, observables, elements) -> (observables, elements)``, in the order of the final states."""
        return coefficients[0].index_select(1, self.to_state.to(coefficients.device))

    def join_coefficients(self, gradient: Tensor) -> Tensor:
        """The reverse of :meth:`split_coefficients`."""
        return gradient.index_select(1, self.from_state.to(gradient.device))[None]

    def forward(
        self, features: Tensor, samples: Samples, matrices: Sequence[Tensor], coefficients: Tensor, out: Tensor
    ) -> None:
        """Write expectations to their places in ``(samples, observables)``."""
        state = _product(self.leaves.read(features))[-1][0][0]  # (elements, samples)
        for step, matrix in zip(self.steps, matrices, strict=True):
            state, _ = step.forward(state, matrix, samples)
        out[:, self.places] = torch.mm(coefficients, state).t()

    def _walk(
        self, state: Tensor, samples: Samples, matrices: Sequence[Tensor], stretch: range
    ) -> tuple[Tensor, list[Tensor]]:
        """The state after some steps, and what their gradients need."""
        kept = []
        for place in stretch:
            state, inner = self.steps[place].forward(state, matrices[place], samples)
            kept.append(inner)
        return state, kept

    def backward(
        self,
        gradient: Tensor,
        features: Tensor,
        samples: Samples,
        matrices: Sequence[Tensor],
        coefficients: Tensor,
        to_features: Tensor,
        to_matrices: Sequence[Tensor],
        to_coefficients: Tensor,
    ) -> None:
        """From gradients of expectations ``(samples, observables)``; adds to its last three arguments."""
        tree = _product(self.leaves.read(features))
        state = tree[-1][0][0]
        # Where not all states fit, those at the beginning of stretches are kept, and each stretch is run again.
        count = len(self.steps)
        fits = count * self.elements * state.shape[1] <= _KEPT_ELEMENTS
        length = max(1, count if fits else math.isqrt(count))
        stretches = [range(start, min(start + length, count)) for start in range(0, count, length)]
        begun: list[Tensor] = []
        kept: list[Tensor] = []
        for stretch in stretches:
            begun.append(state)
            state, kept = self._walk(state, samples, matrices, stretch)
        towards = gradient[:, self.places].t()  # (observables, samples)
        to_coefficients += torch.mm(towards, state.t())
        adjoint = torch.mm(coefficients.t(), towards)
        for stretch, first in zip(reversed(stretches), reversed(begun), strict=True):
            if stretch is not stretches[-1]:
                _, kept = self._walk(first, samples, matrices, stretch)
            for place in reversed(stretch):
                adjoint = self.steps[place].backward(adjoint, kept.pop(), matrices[place], samples, to_matrices[place])
        self.leaves.add(_product_backward(adjoint[None], tree), to_features)
