"""The steps of a program as tensor operations, each with its adjoint.

Data layout: a chunk of states is one real tensor ``(parts, 2**n, samples)``, samples last so that they fill SIMD
lanes; ``parts`` is 1 while the state is real, then 2 (real, imaginary). Every step is orthogonal on those numbers, so
the adjoint vector λ = ∂loss/∂state goes backward through transposes. Gradients use the generators and need only a
step's output ``y``::

    RY(2h):         ∂loss/∂h    = Σ (λ_1 y_0 - λ_0 y_1)        over all pairs of amplitudes of that wire
    exp(iφ(b)):     ∂loss/∂φ(b) = λ_im(b) y_re(b) - λ_re(b) y_im(b)

What the whole batch shares is computed once per call (:mod:`qpeft.simulators.tables`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from qpeft.simulators.lowering import ControlledTurn, Expression, PauliMask, Permutation, Phase, Program, Turn
from qpeft.simulators.tables import Constant, Gradients, Shared, Tables, parities

_BLOCK_WIRES = 4  # Kronecker blocks of 16 x 16: enough arithmetic per memory pass, few enough wasted multiplications


class Angles:
    """All angles of a program, in rows: first those with inputs (of turns, then of phases), then shared ones, then 0.

    Rows of turns hold half the angle, which is what sines and cosines are taken of.
    """

    def __init__(self, program: Program, n_inputs: int, n_weights: int) -> None:
        turns: list[Expression] = list(program.initial)  # the product state is built per sample in any case
        phases: list[Expression] = []
        shared_turns: list[Expression] = []
        shared_phases: list[Expression] = []
        for step in program.steps:
            match step:
                case Turn():
                    for expression in step.angles.values():
                        (turns if expression.inputs else shared_turns).append(expression)
                case ControlledTurn():
                    (turns if step.angle.inputs else shared_turns).append(step.angle)
                case Phase():
                    varies = any(e.inputs for e in step.terms.values())
                    (phases if varies else shared_phases).extend(step.terms.values())
        rows = [*turns, *phases, *shared_turns, *shared_phases, Expression()]
        self.n_turns = len(turns)
        self.n_samples = len(turns) + len(phases)
        self._row = {id(expression): row for row, expression in enumerate(rows)}
        maps = linear_maps(rows, n_inputs, n_weights)
        for values in maps:
            values[: len(turns)] *= 0.5
            values[self.n_samples : self.n_samples + len(shared_turns)] *= 0.5
        self.constants, from_inputs, self.from_weights = map(Constant, maps)
        self.from_inputs = Constant(from_inputs.values[: self.n_samples].clone())

    @property
    def n_rows(self) -> int:
        return self.constants.values.shape[0]

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

    turns: Tensor  # (n_turns, samples), half angles
    phases: Tensor  # (n_phases, samples)
    leaves: Tensor = field(init=False)  # (n_turns, 2, samples): cos and sin
    gradient: Tensor = field(init=False)  # (n_turns + n_phases, samples), filled by the adjoints

    def __post_init__(self) -> None:
        self.leaves = torch.stack([self.turns.cos(), self.turns.sin()], 1)
        self.gradient = self.turns.new_empty(self.turns.shape[0] + self.phases.shape[0], self.turns.shape[1])


def _pairs(state: Tensor, wire: int) -> tuple[Tensor, ...]:
    """Views of the amplitudes where the wire is 0 and where it is 1."""
    parts, dimension, samples = state.shape
    return state.view(parts << wire, 2, dimension >> (wire + 1), samples).unbind(1)


def _add_turned(out: tuple[Tensor, ...], pairs: tuple[Tensor, ...], sin: Tensor, sign: int) -> None:
    """The part of a rotation that mixes the two halves."""
    out[0].addcmul_(pairs[1], sin, value=-sign)
    out[1].addcmul_(pairs[0], sin, value=sign)


def _rotation_gradient(adjoint: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> Tensor:
    product = (adjoint[1] * output[0]).addcmul_(adjoint[0], output[1], value=-1)
    return product.sum(tuple(range(product.dim() - 1)))  # (samples,)


class Step(Protocol):
    """What becomes of a state, ready to run."""

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor: ...

    def backward(
        self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, gradients: Gradients, before: Tensor
    ) -> Tensor:
        """Send the adjoint back to the state ``before`` the step, and collect the gradients of angles."""
        ...


class ProgramStep(Step, Protocol):
    """One step of a program.

    Attributes:
        reads_inputs: Whether every sample has angles of its own.
        work: What the step costs for each number of a state, in multiplications of a matrix product (measured).
    """

    reads_inputs: bool
    work: int


def make_steps(program: Program, angles: Angles) -> tuple[list[ProgramStep], Tables]:
    """The program's steps, ready to run, and what they share."""
    tables = Tables(program.n_qubits, angles.n_rows)
    steps: list[ProgramStep] = []
    for step in program.steps:
        match step:
            case Turn():
                steps.append(TurnStep(step, angles, tables))
            case ControlledTurn():
                steps.append(ControlledTurnStep(step, angles))
            case Phase():
                steps.append(PhaseStep(step, angles, tables))
            case Permutation():
                steps.append(PermutationStep(step, program.n_qubits))
    tables.freeze()
    return steps, tables


class TurnStep:
    """RY on many wires: shared angles as Kronecker blocks of neighbouring wires, per-sample angles pair by pair."""

    def __init__(self, step: Turn, angles: Angles, tables: Tables) -> None:
        self.samples = [(wire, angles.row(e)) for wire, e in sorted(step.angles.items()) if e.inputs]
        shared = [(wire, angles.row(e)) for wire, e in sorted(step.angles.items()) if not e.inputs]
        runs: list[list[tuple[int, int]]] = []
        for wire, row in shared:
            if runs and runs[-1][-1][0] == wire - 1:
                runs[-1].append((wire, row))
            else:
                runs.append([(wire, row)])
        self.blocks: list[tuple[int, int, int]] = []  # first wire, width, place in the tables
        for run in runs:
            count = -(-len(run) // _BLOCK_WIRES)
            for part in range(count):  # of nearly equal widths
                block = run[len(run) * part // count : len(run) * (part + 1) // count]
                self.blocks.append((block[0][0], len(block), tables.add_block([row for _, row in block])))
        self.reads_inputs = bool(self.samples)
        self.work = sum(1 << width for _, width, _ in self.blocks) + 8 * len(self.samples)

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        for first, width, place in self.blocks:
            state = self._multiply(shared.blocks[width][place], state, first, width)
        for wire, row in self.samples:
            state = self._rotate(state, wire, chunk.leaves[row], 1)
        return state

    @staticmethod
    def _rotate(state: Tensor, wire: int, turn: Tensor, sign: int) -> Tensor:
        cos, sin = turn.unbind(0)
        rotated = state * cos
        _add_turned(_pairs(rotated, wire), _pairs(state, wire), sin, sign)
        return rotated

    @staticmethod
    def _split(state: Tensor, first: int, width: int) -> Tensor:
        return state.view(state.shape[0] << first, 1 << width, -1)

    def _multiply(self, block: Tensor, state: Tensor, first: int, width: int) -> Tensor:
        split = self._split(state, first, width)
        return torch.bmm(block.expand(split.shape[0], -1, -1), split).view_as(state)

    def backward(
        self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, gradients: Gradients, before: Tensor
    ) -> Tensor:
        # Rotations of different wires commute, so all gradients can be read from the output of the whole step.
        for first, width, place in self.blocks:
            left, right = self._split(adjoint, first, width), self._split(output, first, width)
            gradients.blocks[width][place] += torch.bmm(left, right.transpose(1, 2)).sum(0)
        for wire, row in self.samples:
            chunk.gradient[row] = _rotation_gradient(_pairs(adjoint, wire), _pairs(output, wire))
        for wire, row in self.samples:
            adjoint = self._rotate(adjoint, wire, chunk.leaves[row], -1)
        for first, width, place in self.blocks:
            adjoint = self._multiply(shared.blocks[width][place].t(), adjoint, first, width)
        return adjoint


class ControlledTurnStep:
    """RY on the target, in the half of the state where the control is 1."""

    work = 8

    def __init__(self, step: ControlledTurn, angles: Angles) -> None:
        self.control, self.target = step.control, step.target
        self.row = angles.row(step.angle)
        self.reads_inputs = bool(step.angle.inputs)

    def _controlled_pairs(self, state: Tensor) -> tuple[Tensor, Tensor]:
        parts, dimension, samples = state.shape
        low, high = sorted((self.control, self.target))
        view = state.view(parts << low, 2, 1 << (high - low - 1), 2, dimension >> (high + 1), samples)
        if self.control < self.target:
            return view[:, 1, :, 0], view[:, 1, :, 1]
        return view[:, 0, :, 1], view[:, 1, :, 1]

    def _turn(self, state: Tensor, shared: Shared, chunk: Chunk, sign: int) -> Tensor:
        cos, sin = chunk.leaves[self.row] if self.reads_inputs else shared.turns[:2, self.row]
        out, pairs = state.clone(), self._controlled_pairs(state)
        turned = self._controlled_pairs(out)
        for half in turned:
            half.mul_(cos)
        _add_turned(turned, pairs, sin, sign)
        return out

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        return self._turn(state, shared, chunk, 1)

    def backward(
        self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, gradients: Gradients, before: Tensor
    ) -> Tensor:
        gradient = _rotation_gradient(self._controlled_pairs(adjoint), self._controlled_pairs(output))
        if self.reads_inputs:
            chunk.gradient[self.row] = gradient
        else:
            gradients.rows[self.row] += gradient.sum(dtype=torch.float64)
        return self._turn(adjoint, shared, chunk, -1)


class PhaseStep:
    """Multiplication with ``exp(iφ(b))``; makes a real state complex unless all phases are signs."""

    def __init__(self, step: Phase, angles: Angles, tables: Tables) -> None:
        rows = [angles.row(e) for e in step.terms.values()]
        self.reads_inputs = any(e.inputs for e in step.terms.values())
        self.signs: Constant | None = None
        if self.reads_inputs or step.is_sign:
            states, masks = (
                torch.arange(1 << tables.n_qubits, device="cpu"),
                torch.tensor(list(step.terms), device="cpu"),
            )
            terms = parities(states, masks)  # (2**n, terms)
        if step.is_sign:
            constants = torch.tensor([[e.constant] for e in step.terms.values()], dtype=torch.float64, device="cpu")
            self.signs = Constant((terms @ constants).cos().round())  # (2**n, 1)
        elif self.reads_inputs:
            self.terms = Constant(terms)
            self.first = rows[0] - angles.n_turns  # rows of one step are neighbours
            self.last = self.first + len(rows)
        else:
            self.place = tables.add_phase(list(step.terms), rows)
        self.work = 12 if self.signs is None else 3

    def _factors(self, shared: Shared, chunk: Chunk) -> Tensor:
        """``(2, 2**n, 1 or samples)``: cos and sin."""
        if not self.reads_inputs:
            assert shared.phases is not None
            return shared.phases[self.place]
        phase = self.terms.like(chunk.phases) @ chunk.phases[self.first : self.last]  # (2**n, samples)
        return torch.stack([phase.cos(), phase.sin()])

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        if self.signs is not None:
            return state * self.signs.like(state)
        factors = self._factors(shared, chunk)
        if state.shape[0] == 1:
            return state * factors
        cos, sin = factors.unbind(0)
        turned = state * cos
        _add_turned(turned.unbind(0), state.unbind(0), sin, 1)
        return turned

    def backward(
        self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, gradients: Gradients, before: Tensor
    ) -> Tensor:
        if self.signs is not None:
            return adjoint * self.signs.like(adjoint)
        cos, sin = self._factors(shared, chunk).unbind(0)
        halves, real_and_imaginary = adjoint.unbind(0), output.unbind(0)
        product = (halves[1] * real_and_imaginary[0]).addcmul_(halves[0], real_and_imaginary[1], value=-1)
        if self.reads_inputs:  # (2**n, samples)
            first = chunk.turns.shape[0]
            torch.mm(self.terms.like(product).t(), product, out=chunk.gradient[first + self.first : first + self.last])
        else:
            gradients.phases[self.place] += product.sum(1)
        if before.shape[0] == 1:
            return (halves[0] * cos).addcmul_(halves[1], sin)[None]
        back = adjoint * cos
        _add_turned(back.unbind(0), halves, sin, -1)
        return back


class PermutationStep:
    """Basis states change places."""

    reads_inputs = False
    work = 3

    def __init__(self, step: Permutation, n_qubits: int) -> None:
        states = torch.arange(1 << n_qubits, device="cpu")
        target = torch.full_like(states, step.offset)
        for bit, column in enumerate(step.columns):
            target ^= (states >> bit & 1) * column
        self.target = Constant(target)  # new[target[b]] = old[b]
        self.source = Constant(torch.argsort(target))

    def forward(self, state: Tensor, shared: Shared, chunk: Chunk) -> Tensor:
        return state.index_select(1, self.source.on(state.device))

    def backward(
        self, adjoint: Tensor, output: Tensor, shared: Shared, chunk: Chunk, gradients: Gradients, before: Tensor
    ) -> Tensor:
        return adjoint.index_select(1, self.target.on(adjoint.device))


class ProductState:
    """``⊗_i RY(2h_i) |0>`` from outer products of halves of the register, so that only the last has full size.

    Args:
        leaves: ``(groups, wires, 2, samples)``, cos and sin of the half-angles; every group is a register of its own.
    """

    def __init__(self, leaves: Tensor) -> None:
        groups, self.wires, _, samples = leaves.shape
        self.leaves = leaves
        self.state = leaves[:, 0]  # (groups, 2**wires, samples)
        if self.wires == 1:
            return
        if self.wires % 2:
            self.below = ProductState(leaves[:, :-1])
            self.left, self.right = self.below.state, leaves[:, -1]
        else:
            self.below = ProductState(leaves.reshape(2 * groups, self.wires // 2, 2, samples))
            self.left, self.right = self.below.state.view(groups, 2, -1, samples).unbind(1)
        self.state = (self.left.unsqueeze(2) * self.right.unsqueeze(1)).flatten(1, 2)

    def backward(self, adjoint: Tensor) -> Tensor:
        """From the adjoint of the states to the gradient of the half-angles ``(groups, wires, samples)``."""
        towards, leaves = self._adjoint_of_leaves(adjoint).unbind(2), self.leaves.unbind(2)
        return (towards[1] * leaves[0]).addcmul_(towards[0], leaves[1], value=-1)

    def _adjoint_of_leaves(self, adjoint: Tensor) -> Tensor:
        if self.wires == 1:
            return adjoint[:, None]
        grid = adjoint.view(-1, self.left.shape[1], self.right.shape[1], adjoint.shape[-1])
        to_left, to_right = (grid * self.right.unsqueeze(1)).sum(2), (grid * self.left.unsqueeze(2)).sum(1)
        if self.wires % 2:
            return torch.cat([self.below._adjoint_of_leaves(to_left), to_right[:, None]], 1)
        below = self.below._adjoint_of_leaves(torch.stack([to_left, to_right], 1).flatten(0, 1))
        return below.view(self.leaves.shape)


class _Flipping(NamedTuple):
    """A Pauli string with X or Y."""

    place: int  # among the observables
    odd: bool  # number of Y
    source: Constant  # (2**n,)
    signs: Constant  # (2**n, 1)


class Readout:
    """Expectations of Pauli strings: all strings of Z in one product with probabilities, others one by one."""

    def __init__(self, observables: tuple[PauliMask, ...], n_qubits: int) -> None:
        states = torch.arange(1 << n_qubits, device="cpu")
        self.n_observables = len(observables)
        self.diagonal = [place for place, o in enumerate(observables) if not o.flips]
        masks = torch.tensor([observables[i].signs for i in self.diagonal], dtype=torch.int64, device="cpu")
        signs = torch.tensor([observables[i].sign for i in self.diagonal], dtype=torch.float32, device="cpu")
        self.signs = Constant(parities(states, masks).t().float() * signs[:, None])  # (n_diagonal, 2**n)
        self.others: list[_Flipping] = []
        for place, o in enumerate(observables):
            if o.flips:
                source = states ^ o.flips
                sign = parities(source, torch.tensor([o.signs], device="cpu")) * (-1) ** (o.n_y // 2)
                self.others.append(_Flipping(place, o.n_y % 2 == 1, Constant(source), Constant(sign)))

    def _applied(self, string: _Flipping, state: Tensor) -> Tensor | None:
        """``P state``; ``None`` where its expectation in a real state is zero."""
        if string.odd and state.shape[0] == 1:
            return None
        moved = state.index_select(1, string.source.on(state.device)) * string.signs.like(state)
        return torch.stack([-moved[1], moved[0]]) if string.odd else moved

    def apply_first(self, state: Tensor) -> Tensor:
        """``P state`` for the first (or only) observable."""
        if self.diagonal and self.diagonal[0] == 0:
            return state * self.signs.like(state)[0][:, None]
        moved = self._applied(self.others[0], state)
        return torch.zeros_like(state) if moved is None else moved

    def forward(self, state: Tensor, out: Tensor) -> None:
        """Write expectations ``(n_observables, samples)`` to ``out``."""
        if self.diagonal:
            probabilities = state.square().sum(0)
            values = self.signs.like(state) @ probabilities
            if not self.others:
                out.copy_(values)
                return
            out[self.diagonal] = values
        for string in self.others:
            moved = self._applied(string, state)
            out[string.place] = 0.0 if moved is None else (state * moved).sum((0, 1))

    def backward(self, gradient: Tensor, state: Tensor) -> Tensor:
        """From ``(n_observables, samples)`` to the adjoint of the state."""
        doubled = 2 * gradient
        if self.diagonal:
            rows = doubled if not self.others else doubled[self.diagonal]
            adjoint = state * torch.mm(self.signs.like(state).t(), rows)
        else:
            adjoint = torch.zeros_like(state)
        for string in self.others:
            moved = self._applied(string, state)
            if moved is not None:
                adjoint.addcmul_(moved, doubled[string.place])
        return adjoint
