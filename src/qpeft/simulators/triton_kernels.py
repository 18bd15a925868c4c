"""The two kernels of :mod:`qpeft.simulators.triton_engine`, in Triton: a program of steps on a block of samples.

Data layout: the states of a block are two tensors ``(BLOCK, 2**n)`` of registers, real and imaginary part (one while
everything is real); nothing of them is written to memory. A step is a row of four whole numbers, read in a loop, so
that one compiled kernel serves all circuits of a width. What rotates or permutes amplitudes fetches them from each
other with ``tl.gather`` along the amplitudes.

The way back needs no stored states: every step is undone on the state ψ and on the adjoint vector λ = ∂loss/∂ψ, which
is sent back through the same inverse. Gradients are those of :mod:`qpeft.simulators.steps`. What concerns angles that
all samples share is summed over the block, and written to a place of the block's own, so that sums do not depend on
which block came first.

This module imports Triton; only the engine imports it, when it is asked for.
"""

# mypy: disable-error-code="no-untyped-def"
# (Triton's compiler gives the arguments their types.)
from __future__ import annotations

import triton
import triton.language as tl

TURN: tl.constexpr = tl.constexpr(0)  # bit, control (or 0), row of the half-angle
PHASES: tl.constexpr = tl.constexpr(1)  # place of the table exp(iφ(b))
TERM: tl.constexpr = tl.constexpr(2)  # exp(±ia), a of every sample: mask of the sign's parity, row of a
PERMUTE: tl.constexpr = tl.constexpr(3)  # place of the table


@triton.jit
def _sign(bits):
    """-1 where an odd number of the (at most eight) bits are set, else 1."""
    bits = bits ^ (bits >> 4)
    bits = bits ^ (bits >> 2)
    bits = bits ^ (bits >> 1)
    return 1 - 2 * (bits & 1)


@triton.jit
def _fetch(values, places, BLOCK: tl.constexpr, D: tl.constexpr):
    """``values[:, places]``."""
    return tl.gather(values, tl.broadcast_to(places[None, :], (BLOCK, D)), 1)


@triton.jit
def _angle(row, x, offsets, from_inputs, n_inputs, I: tl.constexpr):
    """The angle of a row that reads inputs: (BLOCK,)."""
    columns = tl.arange(0, I)
    factors = tl.load(from_inputs + row * n_inputs + columns, mask=columns < n_inputs, other=0.0)
    return tl.load(offsets + row) + tl.sum(x * factors[None, :], 1)


@triton.jit
def _sines(row, x, offsets, turns, from_inputs, n_inputs, n_sampled, n_rows, BLOCK: tl.constexpr, I: tl.constexpr):
    """Cosine and sine of a row: (BLOCK, 1) each."""
    cos = tl.zeros((BLOCK,), x.dtype)
    sin = tl.zeros((BLOCK,), x.dtype)
    if row < n_sampled:
        angle = _angle(row, x, offsets, from_inputs, n_inputs, I)
        cos = tl.cos(angle)
        sin = tl.sin(angle)
    else:
        cos += tl.load(turns + row)
        sin += tl.load(turns + n_rows + row)
    return cos[:, None], sin[:, None]


@triton.jit
def _generator(bit, control, s, x):
    """``J`` of a rotation on the amplitudes ``s``: 1 where the bit is set, -1 where not, 0 where the control is 0."""
    sign = tl.where((s & bit) != 0, 1, -1)
    return tl.where((s & control) == control, sign, 0).to(x.dtype)[None, :]


@triton.jit
def _turned(values, cos, sin, generator, places, BLOCK: tl.constexpr, D: tl.constexpr):
    """A rotation, or nothing where the generator is 0."""
    return tl.where(generator != 0, cos * values, values) + sin * generator * _fetch(values, places, BLOCK, D)


@triton.jit
def _multiplied(re, im, cos, sin):
    return re * cos - im * sin, re * sin + im * cos


@triton.jit
def _initial(
    x, s, offsets, turns, from_inputs, n_inputs, n_sampled, n_rows,
    N: tl.constexpr, D: tl.constexpr, I: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The product state."""
    re = tl.full((BLOCK, D), 1.0, x.dtype)
    for wire in tl.static_range(N):
        cos, sin = _sines(wire, x, offsets, turns, from_inputs, n_inputs, n_sampled, n_rows, BLOCK, I)
        is_one = ((s >> (N - 1 - wire)) & 1)[None, :] != 0
        re = re * tl.where(is_one, sin, cos)
    return re


@triton.jit
def _final(
    x, s, steps, n_steps, offsets, turns, from_inputs, phases, permutations, n_inputs, n_sampled, n_rows,
    N: tl.constexpr, D: tl.constexpr, I: tl.constexpr, BLOCK: tl.constexpr, COMPLEX: tl.constexpr,
):  # fmt: skip
    """The state after all steps."""
    re = _initial(x, s, offsets, turns, from_inputs, n_inputs, n_sampled, n_rows, N, D, I, BLOCK)
    im = tl.zeros((BLOCK, D), x.dtype)
    for step in range(n_steps):
        kind = tl.load(steps + 4 * step)
        first = tl.load(steps + 4 * step + 1)
        second = tl.load(steps + 4 * step + 2)
        row = tl.load(steps + 4 * step + 3)
        if kind == TURN:
            cos, sin = _sines(row, x, offsets, turns, from_inputs, n_inputs, n_sampled, n_rows, BLOCK, I)
            generator = _generator(first, second, s, x)
            re = _turned(re, cos, sin, generator, s ^ first, BLOCK, D)
            if COMPLEX:
                im = _turned(im, cos, sin, generator, s ^ first, BLOCK, D)
        elif kind == PHASES:
            cos = tl.load(phases + 2 * D * first + s)[None, :]
            if COMPLEX:
                sin = tl.load(phases + 2 * D * first + D + s)[None, :]
                re, im = _multiplied(re, im, cos, sin)
            else:
                re = re * cos
        elif kind == TERM:
            if COMPLEX:
                angle = _angle(row, x, offsets, from_inputs, n_inputs, I)[:, None]
                re, im = _multiplied(re, im, tl.cos(angle), tl.sin(angle) * _sign(s & first).to(x.dtype)[None, :])
        else:
            source = tl.load(permutations + 2 * D * first + s)
            re = _fetch(re, source, BLOCK, D)
            if COMPLEX:
                im = _fetch(im, source, BLOCK, D)
    return re, im


@triton.jit
def _applied(
    re, im, place, s, observables,
    D: tl.constexpr, BLOCK: tl.constexpr, COMPLEX: tl.constexpr, FLIPS: tl.constexpr,
):  # fmt: skip
    """``P ψ``; zero where its expectation in a real state is."""
    flips = tl.load(observables + 4 * place)
    signs = tl.load(observables + 4 * place + 1)
    is_odd = tl.load(observables + 4 * place + 2)  # in the number of Y
    sign = tl.load(observables + 4 * place + 3)
    factor = (sign * _sign((s ^ flips) & signs)).to(re.dtype)[None, :]
    if FLIPS:
        re = _fetch(re, s ^ flips, BLOCK, D)
        if COMPLEX:
            im = _fetch(im, s ^ flips, BLOCK, D)
        even_re = re
        re = tl.where(is_odd != 0, -im, re)
        im = tl.where(is_odd != 0, even_re, im)
    return factor * re, factor * im


@triton.jit(do_not_specialize=["batch", "n_steps", "n_observables", "n_inputs", "n_sampled", "n_rows"])
def forward_kernel(
    inputs, outputs, steps, observables, offsets, turns, from_inputs, phases, permutations,
    batch, n_steps, n_observables, n_inputs, n_sampled, n_rows,
    N: tl.constexpr, I: tl.constexpr, BLOCK: tl.constexpr, COMPLEX: tl.constexpr, FLIPS: tl.constexpr,
):  # fmt: skip
    """Expectations of one block of samples.

    Shapes: inputs (batch, n_inputs), outputs (batch, n_observables), steps (n_steps, 4), observables (n_observables,
    4), offsets (n_rows,), turns (2, n_rows), from_inputs (n_sampled, n_inputs), phases (count, 2, 2**N), permutations
    (count, 2, 2**N). I is n_inputs, rounded up to a power of two.
    """
    D: tl.constexpr = 1 << N
    s = tl.arange(0, D)
    columns = tl.arange(0, I)
    samples = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_input = (samples < batch)[:, None] & (columns < n_inputs)[None, :]
    x = tl.load(inputs + samples[:, None] * n_inputs + columns[None, :], mask=is_input, other=0.0)
    re, im = _final(
        x, s, steps, n_steps, offsets, turns, from_inputs, phases, permutations, n_inputs, n_sampled, n_rows,
        N, D, I, BLOCK, COMPLEX,
    )  # fmt: skip
    for place in range(n_observables):
        to_re, to_im = _applied(re, im, place, s, observables, D, BLOCK, COMPLEX, FLIPS)
        value = tl.sum(re * to_re + im * to_im, 1)
        tl.store(outputs + samples * n_observables + place, value, mask=samples < batch)


@triton.jit(do_not_specialize=["batch", "n_steps", "n_observables", "n_inputs", "n_sampled", "n_rows", "n_phases"])
def backward_kernel(
    gradient, inputs, to_inputs, to_rows, to_phases,
    steps, observables, offsets, turns, from_inputs, phases, permutations,
    batch, n_steps, n_observables, n_inputs, n_sampled, n_rows, n_phases,
    N: tl.constexpr, I: tl.constexpr, BLOCK: tl.constexpr, COMPLEX: tl.constexpr, FLIPS: tl.constexpr,
):  # fmt: skip
    """Gradients of one block of samples.

    Shapes: those of the forward kernel, gradient (batch, n_observables), to_inputs (batch, n_inputs), to_rows (blocks,
    n_rows), to_phases (blocks, n_phases, 2**N), zeros before.
    """
    D: tl.constexpr = 1 << N
    s = tl.arange(0, D)
    columns = tl.arange(0, I)
    block = tl.program_id(0)
    samples = block * BLOCK + tl.arange(0, BLOCK)
    is_input = (samples < batch)[:, None] & (columns < n_inputs)[None, :]
    x = tl.load(inputs + samples[:, None] * n_inputs + columns[None, :], mask=is_input, other=0.0)
    re, im = _final(
        x, s, steps, n_steps, offsets, turns, from_inputs, phases, permutations, n_inputs, n_sampled, n_rows,
        N, D, I, BLOCK, COMPLEX,
    )  # fmt: skip
    adjoint_re = tl.zeros((BLOCK, D), x.dtype)
    adjoint_im = tl.zeros((BLOCK, D), x.dtype)
    for place in range(n_observables):
        to_re, to_im = _applied(re, im, place, s, observables, D, BLOCK, COMPLEX, FLIPS)
        doubled = 2 * tl.load(gradient + samples * n_observables + place, mask=samples < batch, other=0.0)[:, None]
        adjoint_re += doubled * to_re
        adjoint_im += doubled * to_im
    to_x = tl.zeros((BLOCK, I), x.dtype)
    for back in range(n_steps):
        step = n_steps - 1 - back
        kind = tl.load(steps + 4 * step)
        first = tl.load(steps + 4 * step + 1)
        second = tl.load(steps + 4 * step + 2)
        row = tl.load(steps + 4 * step + 3)
        if kind == TURN:
            cos, sin = _sines(row, x, offsets, turns, from_inputs, n_inputs, n_sampled, n_rows, BLOCK, I)
            generator = _generator(first, second, s, x)
            product = adjoint_re * _fetch(re, s ^ first, BLOCK, D)
            if COMPLEX:
                product += adjoint_im * _fetch(im, s ^ first, BLOCK, D)
            to_angle = tl.sum(product * generator, 1)  # (BLOCK,)
            tl.store(to_rows + block * n_rows + row, tl.sum(to_angle, 0))
            if row < n_sampled:
                factors = tl.load(from_inputs + row * n_inputs + columns, mask=columns < n_inputs, other=0.0)
                to_x += to_angle[:, None] * factors[None, :]
            re = _turned(re, cos, -sin, generator, s ^ first, BLOCK, D)
            adjoint_re = _turned(adjoint_re, cos, -sin, generator, s ^ first, BLOCK, D)
            if COMPLEX:
                im = _turned(im, cos, -sin, generator, s ^ first, BLOCK, D)
                adjoint_im = _turned(adjoint_im, cos, -sin, generator, s ^ first, BLOCK, D)
        elif kind == PHASES:
            cos = tl.load(phases + 2 * D * first + s)[None, :]
            if COMPLEX:
                to_phase = tl.sum(adjoint_im * re - adjoint_re * im, 0)  # (D,)
                tl.store(to_phases + (block * n_phases + first) * D + s, to_phase)
                sin = tl.load(phases + 2 * D * first + D + s)[None, :]
                re, im = _multiplied(re, im, cos, -sin)
                adjoint_re, adjoint_im = _multiplied(adjoint_re, adjoint_im, cos, -sin)
            else:
                re = re * cos
                adjoint_re = adjoint_re * cos
        elif kind == TERM:
            if COMPLEX:
                sign = _sign(s & first).to(x.dtype)[None, :]
                to_angle = tl.sum((adjoint_im * re - adjoint_re * im) * sign, 1)
                tl.store(to_rows + block * n_rows + row, tl.sum(to_angle, 0))
                factors = tl.load(from_inputs + row * n_inputs + columns, mask=columns < n_inputs, other=0.0)
                to_x += to_angle[:, None] * factors[None, :]
                angle = _angle(row, x, offsets, from_inputs, n_inputs, I)[:, None]
                cos = tl.cos(angle)
                sin = -tl.sin(angle) * sign
                re, im = _multiplied(re, im, cos, sin)
                adjoint_re, adjoint_im = _multiplied(adjoint_re, adjoint_im, cos, sin)
        else:
            target = tl.load(permutations + 2 * D * first + D + s)
            re = _fetch(re, target, BLOCK, D)
            adjoint_re = _fetch(adjoint_re, target, BLOCK, D)
            if COMPLEX:
                im = _fetch(im, target, BLOCK, D)
                adjoint_im = _fetch(adjoint_im, target, BLOCK, D)
    # Rotations of different wires commute, so all gradients of the product state can be read from it. It is real.
    for wire in tl.static_range(N):
        bit = 1 << (N - 1 - wire)
        product = adjoint_re * _fetch(re, s ^ bit, BLOCK, D)
        if COMPLEX:
            product += adjoint_im * _fetch(im, s ^ bit, BLOCK, D)
        to_angle = tl.sum(product * _generator(bit, 0, s, x), 1)
        tl.store(to_rows + block * n_rows + wire, tl.sum(to_angle, 0))
        factors = tl.load(from_inputs + wire * n_inputs + columns, mask=columns < n_inputs, other=0.0)
        to_x += to_angle[:, None] * factors[None, :]
    tl.store(to_inputs + samples[:, None] * n_inputs + columns[None, :], to_x, mask=is_input)
