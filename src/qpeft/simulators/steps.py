"""The steps of a program as tensor operations, each with its adjoint.

Data layout: a chunk of states is one real tensor ``(parts, 2**n, samples)``, samples last so that they fill SIMD
lanes; ``parts`` is 1 while the state is real, then 2 (real, imaginary). Every step is orthogonal on those numbers, so
the adjoint vector λ = ∂loss/∂state goes backward through transposes. Gradients use the generators and need only a
step's output ``y``::

    RY(θ):          ∂loss/∂θ    = ½ Σ (λ_1 y_0 - λ_0 y_1)        over all pairs of amplitudes of that wire
    exp(iφ(b)):     ∂loss/∂φ(b) = λ_im(b) y_re(b) - λ_re(b) y_im(b)

What the whole batch shares (rotation blocks, phases) is computed in float64 once per call; its gradients are summed
over chunks in float64 and turned into gradients of angles once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from qpeft.simulators.lowering import ControlledTurn, Expression, PauliMask, Permutation, Phase, Program, Turn

_BLOCK_WIRES = 4  # Kronecker blocks of 16 x 16: enough arithmetic per memory pass, few enough wasted multiplications


class Angles:
    """All angles of a program, in rows: first those with inputs (of turns, then of phases), then shared ones."""

    def __init__(self, program: Program, n_inputs: int, n_weights: int) -> None:
        turns: list[Expression] = list(program.initial)  # the product state is built per sample in any case
        phases: list[Expression] = []
        shared: list[Expression] = []
        for step in program.steps:
            match step:
                case Turn():
                    for expression in step.angles.values():
                        (turns if expression.inputs else shared).append(expression)
                case ControlledTurn():
                    (turns if step.angle.inputs else shared).append(step.angle)
                case Phase():
                    varies = any(e.inputs for e in step.terms.values())
                    (phases if varies else shared).extend(step.terms.values())
        rows = [*turns, *phases, *shared]
        self.n_turns = len(turns)
        self.n_samples = len(turns) + len(phases)
        self._row = {id(expression): row for row, expression in enumerate(rows)}
        self.constants, from_inputs, self.from_weights = linear_maps(rows, n_inputs, n_weights)
        self.from_inputs = from_inputs[: self.n_samples]

    def row(self, expression: Expression) -> int:
        return self._row[id(expression)]


def linear_maps(rows: Sequence[Expression], n_inputs: int, n_weights: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angles as ``constants + from_inputs @ x + from_weights @ w``: (rows,), (rows, n_inputs), (rows, n_weights)."""
    constants = torch.tensor([e.constant for e in rows], dtype=torch.float64, device="cpu")
    from_inputs = torch.zeros(len(rows), n_inputs, dtype=torch.float64, device="cpu")
    from_weights = torch.zeros(len(rows), n_weights, dtype=torch.float64, device="cpu")
    for row, expression in enumerate(rows):
        for index, coefficient in expression.inputs.items():
            from_inputs[row, index] = coefficient
        for index, coefficient in expression.weights.items():
            from_weights[row, index] = coefficient
    return constants, from_inputs, from_weights


@dataclass
class Chunk:
    """What belongs to the samples of one chunk: their angles, and the gradients collected for them."""

    cos: Tensor  # (n_turns, samples) of half angles
    sin: Tensor
    phases: Tensor  # (n_phases, samples)
    gradient: Tensor = field(init=False)  # (n_turns + n_phases, samples), filled by the adjoints

    def __post_init__(self) -> None:
        rows = self.cos.shape[0] + self.phases.shape[0]
        self.gradient = self.cos.new_zeros(rows, self.cos.shape[1])


@dataclass
class Shared:
    """What a step shares with the whole batch: tensors to multiply with, and their gradients summed over chunks."""

    tensors: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)

    def accumulate(self, place: int, gradient: Tensor) -> None:
        while len(self.gradients) <= place:
            self.gradients.append(torch.zeros((), dtype=torch.float64, device=gradient.device))
        self.gradients[place] = self.gradients[place] + gradient.double()


def _pairs(state: Tensor, wire: int) -> tuple[Tensor, Tensor]:
    """Views of the amplitudes where the wire is 0 and where it is 1."""
    parts, dimension, samples = state.shape
    halves = state.view(parts << wire, 2, dimension >> (wire + 1), samples)
    return halves[:, 0], halves[:, 1]


def _rotate(pairs: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, out: tuple[Tensor, Tensor]) -> None:
    torch.mul(pairs[0], cos, out=out[0]).addcmul_(pairs[1], sin, value=-1)
    torch.mul(pairs[0], sin, out=out[1]).addcmul_(pairs[1], cos)


def _rotation_gradient(adjoint: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]) -> Tensor:
    product = (adjoint[1] * output[0]).addcmul_(adjoint[0], output[1], value=-1)
    return product.sum(tuple(range(product.dim() - 1))).mul_(0.5)  # (samples,)


class Step(Protocol):
    """One step of a program, ready to run."""

    def share(self, angles: Tensor, dtype: torch.dtype) -> Shared:
        """What the whole batch shares, from all angles ``(rows,)`` in float64."""
        ...

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor: ...

    def backward(self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, parts: int) -> Tensor:
        """Send the adjoint back to an input state of ``parts`` parts, and collect the gradients of angles."""
        ...

    def unshare(self, shared: Shared, gradient: Tensor) -> None:
        """Add the gradients of shared angles to ``gradient`` (rows,)."""
        ...


def make_steps(program: Program, angles: Angles) -> list[Step]:
    """The program's steps, ready to run."""
    steps: list[Step] = []
    for step in program.steps:
        match step:
            case Turn():
                steps.append(TurnStep(step, angles))
            case ControlledTurn():
                steps.append(ControlledTurnStep(step, angles))
            case Phase():
                steps.append(PhaseStep(step, angles, program.n_qubits))
            case Permutation():
                steps.append(PermutationStep(step, program.n_qubits))
    return steps


class TurnStep:
    """RY on many wires: shared angles as Kronecker blocks of neighbouring wires, per-sample angles pair by pair."""

    def __init__(self, step: Turn, angles: Angles) -> None:
        self.samples = [(wire, angles.row(e)) for wire, e in sorted(step.angles.items()) if e.inputs]
        self.blocks: list[tuple[int, list[int]]] = []  # first wire, rows of the angles
        for wire, expression in sorted(step.angles.items()):
            if expression.inputs:
                continue
            row = angles.row(expression)
            if self.blocks and len(self.blocks[-1][1]) < _BLOCK_WIRES:
                first, rows = self.blocks[-1]
                if wire == first + len(rows):
                    rows.append(row)
                    continue
            self.blocks.append((wire, [row]))

    def share(self, angles: Tensor, dtype: torch.dtype) -> Shared:
        tensors = []
        for _, rows in self.blocks:
            half = angles[rows] / 2
            cos, sin = half.cos(), half.sin()
            turns = torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
            block = turns[0]
            for turn in turns[1:]:
                block = torch.kron(block, turn)
            tensors.append(block.to(dtype))
        return Shared(tensors)

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        for (first, rows), block in zip(self.blocks, shared.tensors, strict=True):
            state = self._multiply(block, state, first, len(rows))
        for wire, row in self.samples:
            rotated = torch.empty_like(state)
            _rotate(_pairs(state, wire), chunk.cos[row], chunk.sin[row], _pairs(rotated, wire))
            state = rotated
        return state

    @staticmethod
    def _split(state: Tensor, first: int, wires: int) -> Tensor:
        return state.view(state.shape[0] << first, 1 << wires, -1)

    def _multiply(self, block: Tensor, state: Tensor, first: int, wires: int) -> Tensor:
        split = self._split(state, first, wires)
        return torch.bmm(block.expand(split.shape[0], -1, -1), split).view_as(state)

    def backward(self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, parts: int) -> Tensor:
        # Rotations of different wires commute, so all gradients can be read from the output of the whole step.
        for place, (first, rows) in enumerate(self.blocks):
            left, right = self._split(adjoint, first, len(rows)), self._split(output, first, len(rows))
            shared.accumulate(place, torch.bmm(left, right.transpose(1, 2)).sum(0))
        for wire, row in self.samples:
            chunk.gradient[row] = _rotation_gradient(_pairs(adjoint, wire), _pairs(output, wire))
        for wire, row in self.samples:
            rotated = torch.empty_like(adjoint)
            _rotate(_pairs(adjoint, wire), chunk.cos[row], -chunk.sin[row], _pairs(rotated, wire))
            adjoint = rotated
        for (first, rows), block in zip(self.blocks, shared.tensors, strict=True):
            adjoint = self._multiply(block.t(), adjoint, first, len(rows))
        return adjoint

    def unshare(self, shared: Shared, gradient: Tensor) -> None:
        for (_, rows), product in zip(self.blocks, shared.gradients, strict=True):  # Σ λ yᵀ
            for place, row in enumerate(rows):
                inner = 1 << (len(rows) - 1 - place)
                square = product.view(1 << place, 2, inner, 1 << place, 2, inner)
                down = torch.einsum("aiai->", square[:, 1, :, :, 0, :])
                up = torch.einsum("aiai->", square[:, 0, :, :, 1, :])
                gradient[row] += (down - up) / 2


class ControlledTurnStep:
    """RY on the target, in the half of the state where the control is 1."""

    def __init__(self, step: ControlledTurn, angles: Angles) -> None:
        self.control, self.target = step.control, step.target
        self.row = angles.row(step.angle)
        self.per_sample = bool(step.angle.inputs)

    def share(self, angles: Tensor, dtype: torch.dtype) -> Shared:
        if self.per_sample:
            return Shared()
        half = angles[self.row] / 2
        return Shared([half.cos().to(dtype), half.sin().to(dtype)])

    def _controlled_pairs(self, state: Tensor) -> tuple[Tensor, Tensor]:
        parts, dimension, samples = state.shape
        low, high = sorted((self.control, self.target))
        view = state.view(parts << low, 2, 1 << (high - low - 1), 2, dimension >> (high + 1), samples)
        if self.control < self.target:
            return view[:, 1, :, 0], view[:, 1, :, 1]
        return view[:, 0, :, 1], view[:, 1, :, 1]

    def _turn(self, state: Tensor, shared: Shared, chunk: Chunk, sign: int) -> Tensor:
        cos, sin = (chunk.cos[self.row], chunk.sin[self.row]) if self.per_sample else shared.tensors
        out = state.clone()
        _rotate(self._controlled_pairs(state), cos, sign * sin, self._controlled_pairs(out))
        return out

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        return self._turn(state, shared, chunk, 1)

    def backward(self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, parts: int) -> Tensor:
        gradient = _rotation_gradient(self._controlled_pairs(adjoint), self._controlled_pairs(output))
        if self.per_sample:
            chunk.gradient[self.row] = gradient
        else:
            shared.accumulate(0, gradient.sum(dtype=torch.float64))
        return self._turn(adjoint, shared, chunk, -1)

    def unshare(self, shared: Shared, gradient: Tensor) -> None:
        if not self.per_sample:
            gradient[self.row] += shared.gradients[0]


class PhaseStep:
    """Multiplication with ``exp(iφ(b))``; makes a real state complex unless all phases are signs."""

    def __init__(self, step: Phase, angles: Angles, n_qubits: int) -> None:
        self.rows = [angles.row(e) for e in step.terms.values()]
        self.n_qubits = n_qubits
        self.masks = torch.tensor(list(step.terms), dtype=torch.int64, device="cpu")
        self.is_sign = step.is_sign
        self.per_sample = any(e.inputs for e in step.terms.values())
        self.first_phase = self.rows[0] - angles.n_turns  # rows of one step are neighbours
        # Parities factor into those of the high and of the low half of the bits: two small tables instead of 2**n
        # rows.
        self.low_bits = n_qubits // 2
        self.high = parities(torch.arange(1 << (n_qubits - self.low_bits), device="cpu"), self.masks >> self.low_bits)
        self.low = parities(torch.arange(1 << self.low_bits, device="cpu"), self.masks & ((1 << self.low_bits) - 1))
        self.all: Tensor | None = None
        if self.per_sample:
            self.all = (self.high[:, None] * self.low[None]).view(1 << n_qubits, -1)  # (2**n, terms)

    def share(self, angles: Tensor, dtype: torch.dtype) -> Shared:
        if self.per_sample:
            assert self.all is not None
            return Shared([self.all.to(device=angles.device, dtype=dtype)])
        high, low = self.high.to(angles), self.low.to(angles)
        phase = ((high * angles[self.rows]) @ low.t()).reshape(-1, 1)  # (2**n, 1)
        if self.is_sign:
            return Shared([phase.cos().round().to(dtype)])
        return Shared([phase.cos().to(dtype), phase.sin().to(dtype)])

    def _factors(self, shared: Shared, chunk: Chunk) -> tuple[Tensor, Tensor]:
        if not self.per_sample:
            return shared.tensors[0], shared.tensors[1]
        rows = slice(self.first_phase, self.first_phase + len(self.rows))
        phase = shared.tensors[0] @ chunk.phases[rows]  # (2**n, samples)
        return phase.cos(), phase.sin()

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        if self.is_sign:
            return state * shared.tensors[0]
        cos, sin = self._factors(shared, chunk)
        turned = state.new_empty(2, *state.shape[1:])
        torch.mul(state[0], cos, out=turned[0])
        torch.mul(state[0], sin, out=turned[1])
        if state.shape[0] == 2:
            turned[0].addcmul_(state[1], sin, value=-1)
            turned[1].addcmul_(state[1], cos)
        return turned

    def backward(self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, parts: int) -> Tensor:
        if self.is_sign:
            return adjoint * shared.tensors[0]
        cos, sin = self._factors(shared, chunk)
        product = (adjoint[1] * output[0]).addcmul_(adjoint[0], output[1], value=-1)  # (2**n, samples)
        if self.per_sample:
            rows = torch.mm(shared.tensors[0].t(), product)
            first = self.first_phase + chunk.cos.shape[0]
            chunk.gradient[first : first + len(self.rows)] = rows
        else:
            shared.accumulate(0, product.sum(1))
        back = adjoint.new_empty(parts, *adjoint.shape[1:])
        torch.mul(adjoint[0], cos, out=back[0]).addcmul_(adjoint[1], sin)
        if parts == 2:
            torch.mul(adjoint[1], cos, out=back[1]).addcmul_(adjoint[0], sin, value=-1)
        return back

    def unshare(self, shared: Shared, gradient: Tensor) -> None:
        if self.per_sample or self.is_sign:
            return
        phase = shared.gradients[0].view(self.high.shape[0], self.low.shape[0])
        gradient[self.rows] += ((phase @ self.low.to(phase)) * self.high.to(phase)).sum(0)


class PermutationStep:
    """Basis states change places."""

    def __init__(self, step: Permutation, n_qubits: int) -> None:
        states = torch.arange(1 << n_qubits, device="cpu")
        target = torch.full_like(states, step.offset)
        for bit, column in enumerate(step.columns):
            target ^= (states >> bit & 1) * column
        self.target = target  # new[target[b]] = old[b]
        self.source = torch.argsort(target)

    def share(self, angles: Tensor, dtype: torch.dtype) -> Shared:
        return Shared([self.source.to(angles.device), self.target.to(angles.device)])

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        return state.index_select(1, shared.tensors[0])

    def backward(self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, parts: int) -> Tensor:
        return adjoint.index_select(1, shared.tensors[1])

    def unshare(self, shared: Shared, gradient: Tensor) -> None:
        """No angles."""


def product_state(cos: Tensor, sin: Tensor) -> list[list[Tensor]]:
    """``⊗_i RY(θ_i) |0>`` built as a binary tree of outer products, so that only its last level has full size.

    Args:
        cos: ``(groups, wires, samples)`` of half angles; every group is a register of its own.
        sin: The same of the sines.

    Returns:
        All levels of the tree; the last holds the states ``(groups, 2**wires, samples)``.
    """
    level = list(torch.stack([cos, sin], 2).unbind(1))  # wires times (groups, 2, samples)
    levels = [level]
    while len(level) > 1:
        pairs = zip(level[0::2], level[1::2], strict=False)
        joined = [(left[:, :, None] * right[:, None]).flatten(1, 2) for left, right in pairs]
        level = joined + level[len(level) // 2 * 2 :]
        levels.append(level)
    return levels


def product_state_backward(adjoint: Tensor, levels: list[list[Tensor]]) -> Tensor:
    """From the adjoint of the states to the gradient of the angles ``(groups, wires, samples)``."""
    adjoints = [adjoint]
    for level in levels[-2::-1]:
        below = []
        for left, right, joined in zip(level[0::2], level[1::2], adjoints, strict=False):
            grid = joined.view(-1, left.shape[1], right.shape[1], joined.shape[-1])
            below += [(grid * right[:, None]).sum(2), (grid * left[:, :, None]).sum(1)]
        adjoints = below + adjoints[len(level) // 2 :]
    towards, leaves = torch.stack(adjoints, 1), torch.stack(levels[0], 1)  # (groups, wires, 2, samples)
    gradient = (towards[:, :, 1] * leaves[:, :, 0]).addcmul_(towards[:, :, 0], leaves[:, :, 1], value=-1)
    return gradient.mul_(0.5)


class Readout:
    """Expectations of Pauli strings: all strings of Z in one product with probabilities, others one by one."""

    def __init__(self, observables: tuple[PauliMask, ...], n_qubits: int) -> None:
        states = torch.arange(1 << n_qubits, device="cpu")
        self.n_observables = len(observables)
        self.diagonal = [place for place, o in enumerate(observables) if not o.flips]
        masks = torch.tensor([observables[i].signs for i in self.diagonal], dtype=torch.int64, device="cpu")
        signs = torch.tensor([observables[i].sign for i in self.diagonal], dtype=torch.float32, device="cpu")
        self.signs = parities(states, masks).t().float() * signs[:, None]  # (n_diagonal, 2**n)
        self.others: list[tuple[int, bool, Tensor, Tensor]] = []  # place, odd number of Y, source, signs
        for place, o in enumerate(observables):
            if o.flips:
                source = states ^ o.flips
                sign = parities(source, torch.tensor([o.signs], device="cpu"))[:, 0]
                self.others.append((place, o.n_y % 2 == 1, source, sign * (-1) ** (o.n_y // 2)))

    def share(self, device: torch.device, dtype: torch.dtype) -> Shared:
        tensors = [self.signs.to(device=device, dtype=dtype)]
        for _, _, source, sign in self.others:
            tensors += [source.to(device), sign.to(device=device, dtype=dtype)[:, None]]
        return Shared(tensors)

    def _applied(self, state: Tensor, place: int, odd: bool, shared: Shared) -> Tensor | None:
        """``P state``; ``None`` where its expectation in a real state is zero."""
        if odd and state.shape[0] == 1:
            return None
        moved = state.index_select(1, shared.tensors[2 * place + 1]) * shared.tensors[2 * place + 2]
        return torch.stack([-moved[1], moved[0]]) if odd else moved

    def apply_first(self, state: Tensor, shared: Shared) -> Tensor:
        """``P state`` for the first (or only) observable."""
        if self.diagonal and self.diagonal[0] == 0:
            return state * shared.tensors[0][0][:, None]
        moved = self._applied(state, 0, self.others[0][1], shared)
        return torch.zeros_like(state) if moved is None else moved

    def forward(self, state: Tensor, shared: Shared, out: Tensor) -> None:
        """Write expectations ``(n_observables, samples)`` to ``out``."""
        if self.diagonal:
            probabilities = state.square().sum(0) if state.shape[0] == 2 else state[0].square()
            values = shared.tensors[0] @ probabilities
            if not self.others:
                out.copy_(values)
                return
            out[self.diagonal] = values
        for place, (row, odd, _, _) in enumerate(self.others):
            moved = self._applied(state, place, odd, shared)
            out[row] = 0.0 if moved is None else (state * moved).sum((0, 1))

    def backward(self, gradient: Tensor, state: Tensor, shared: Shared) -> Tensor:
        """From ``(n_observables, samples)`` to the adjoint of the state."""
        if self.diagonal:
            rows = gradient if not self.others else gradient[self.diagonal]
            adjoint = state * torch.mm(shared.tensors[0].t(), 2 * rows)
        else:
            adjoint = torch.zeros_like(state)
        for place, (row, odd, _, _) in enumerate(self.others):
            moved = self._applied(state, place, odd, shared)
            if moved is not None:
                adjoint.addcmul_(moved, 2 * gradient[row])
        return adjoint


def parities(states: Tensor, masks: Tensor) -> Tensor:
    """``(-1)^{|b & m|}`` as float64: (states,), (masks,) -> (states, masks)."""
    bits = states[:, None] & masks[None]
    for shift in (32, 16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return 1.0 - 2.0 * (bits & 1).double()
