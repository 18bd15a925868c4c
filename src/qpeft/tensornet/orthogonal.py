r"""Orthogonal matrices from circuits of real gates, applied to activations without ever building the matrix.

A circuit of ``q`` wires whose gates are real (RY, CRY, H, X, Z, CNOT, CZ, SWAP) and whose angles are weights is an
orthogonal matrix ``U(w)`` of size ``2**q``: with ``q = log2(width)`` a few dozen angles turn a whole layer's
activations. The functions here apply ``U`` or ``Uᵀ`` to vectors and give its first columns, differentiable for vectors
and weights. This is the parametrisation of Quantum-PEFT (Koike-Akino et al., arXiv 2503.05431), whose update of a
weight matrix is ``U[:, :K] diag(s) V[:, :K]ᵀ``.

The work is done by two operators registered with torch, opaque to the compiler and to autograd, so compiled graphs,
autocast and checkpointing just call them. They keep the output and the weights for the backward pass and nothing per
gate: the steps are orthogonal, so each one's input is recomputed from its output. How a circuit becomes a few matrix
products is told in :mod:`qpeft.tensornet.orthogonal_plan`.

A NaN or infinite number in a vector spoils that vector's result and the gradient of the weights; in the weights it
spoils everything. There is no check, which would make the host wait for a GPU.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from qpeft.circuits import Circuit, Input, simplified_two_design
from qpeft.errors import InputError
from qpeft.simulators.angles import check_weights
from qpeft.tensornet.orthogonal_engine import OrthogonalEngine
from qpeft.tensornet.orthogonal_plan import make_plan

MAX_QUBITS = 20  # vectors of a million numbers


def pauli_circuit(width: int, n_layers: int) -> Circuit:
    """The circuit of Quantum-PEFT's Pauli parametrisation for vectors of a given length.

    It is :func:`~qpeft.circuits.simplified_two_design` on ``q = ceil(log2 width)`` wires without its inputs: RY on
    every wire, then ``n_layers`` times CZ and RY on all even and on all odd pairs of neighbours. It has
    ``(2 n_layers + 1) q - 2 n_layers`` weights, the paper's count. At zero angles the CZ gates remain: ``U`` is the
    identity if ``n_layers`` is even, else diagonal with signs.

    Args:
        width: Length of the vectors, at least 2; the matrix has the next power of two.
        n_layers: Number of layers, at least 1.

    Raises:
        InputError: A size out of range.

    Example:
        >>> pauli_circuit(width=4096, n_layers=2).n_weights
        56
        >>> print(pauli_circuit(width=8, n_layers=1).draw())
        q0: ─RY(w0)─●─RY(w3)────────── <Z0>
                    │
        q1: ─RY(w1)─Z─RY(w4)─●─RY(w5)─ <Z1>
                             │
        q2: ─RY(w2)──────────Z─RY(w6)─ <Z2>
    """
    if isinstance(width, bool) or not isinstance(width, int) or not 2 <= width <= 1 << MAX_QUBITS:
        raise InputError(f"width must be a whole number from 2 to {1 << MAX_QUBITS} (got {width!r}); choose another.")
    circuit = simplified_two_design((width - 1).bit_length(), n_layers)
    return replace(circuit, gates=tuple(gate for gate in circuit.gates if not isinstance(gate.angle, Input)))


def apply(circuit: Circuit, weights: Tensor, x: Tensor, transpose: bool = False) -> Tensor:
    """Apply the circuit's matrix to vectors: ``y = U x`` for each, in rows ``Y = X Uᵀ``; or ``y = Uᵀ x``.

    Args:
        circuit: Real gates with weights alone, at most 20 wires; observables are of no concern.
        weights: ``(n_weights,)``, radians before the circuit's scales.
        x: ``(..., 2**q)``, any floating dtype.
        transpose: Whether to apply ``Uᵀ``, the inverse.

    Returns:
        ``(..., 2**q)`` in the dtype of ``x``; computed in float64 if ``x`` is float64, else in float32. Differentiable
        once for ``x`` and ``weights``.

    Raises:
        InputError: A shape, dtype or device that does not fit, a gate that is not real, or inputs in the circuit.

    Example:
        >>> circuit = pauli_circuit(width=16, n_layers=2)
        >>> weights, x = torch.randn(circuit.n_weights), torch.randn(5, 16)
        >>> y = apply(circuit, weights, x)
        >>> torch.allclose(y.norm(dim=1), x.norm(dim=1))
        True
        >>> torch.allclose(apply(circuit, weights, y, transpose=True), x, atol=1e-6)
        True
    """
    width = _check(circuit, weights)
    if x.dim() < 1 or x.shape[-1] != width:
        raise InputError(
            f"x must have the shape (..., {width}) (got {tuple(x.shape)}), 2 to the number of wires; use a circuit of "
            f"another size, or apply_padded for widths that are not a power of two."
        )
    if not x.is_floating_point():
        raise InputError(f"x must be real floating point (got {x.dtype}); cast it.")
    if x.device != weights.device:
        raise InputError(f"x is on {x.device}, weights on {weights.device}; move them to one device.")
    return torch.ops.qpeft.orthogonal(x.reshape(-1, width), weights, circuit.key, transpose).view(x.shape)


def apply_padded(
    circuit: Circuit, weights: Tensor, x: Tensor, out_features: int | None = None, transpose: bool = False
) -> Tensor:
    """Apply a corner of the circuit's matrix: ``y = U[:out_features, :in_features] x`` (or the same of ``Uᵀ``).

    For widths that are not a power of two: ``x`` is continued by zeros to ``2**q`` numbers, and the first
    ``out_features`` numbers of the result are kept. A corner of an orthogonal matrix is not orthogonal unless it is
    all of it: its singular values are at most 1, so vectors never get longer, and the transpose is not the inverse.

    Args:
        circuit: As in :func:`apply`, with ``2**q`` at least the larger of both widths.
        weights: ``(n_weights,)``, radians before the circuit's scales.
        x: ``(..., in_features)``, any floating dtype.
        out_features: Length of the results; by default that of ``x``.
        transpose: Whether to apply the corner of ``Uᵀ``; it is ``U[:in_features, :out_features]ᵀ``.

    Returns:
        ``(..., out_features)`` in the dtype of ``x``.

    Raises:
        InputError: As in :func:`apply`, or a width above ``2**q``.

    Example:
        >>> circuit = pauli_circuit(width=576, n_layers=1)
        >>> apply_padded(circuit, torch.zeros(circuit.n_weights), torch.ones(3, 576), out_features=192).shape
        torch.Size([3, 192])
    """
    width = _check(circuit, weights)
    in_features = x.shape[-1] if x.dim() else 0
    out_features = in_features if out_features is None else out_features
    _check_range("the length of x", in_features, width)
    _check_range("out_features", out_features, width)
    padded = nn.functional.pad(x, (0, width - in_features)) if in_features < width else x
    return apply(circuit, weights, padded, transpose)[..., :out_features]


def columns(circuit: Circuit, weights: Tensor, k: int, n_rows: int | None = None) -> Tensor:
    """The first columns ``U[:n_rows, :k]`` of the circuit's matrix; only ``k`` vectors are sent through the circuit.

    Args:
        circuit: As in :func:`apply`.
        weights: ``(n_weights,)``, radians before the circuit's scales.
        k: Number of columns, 1 to ``2**q``.
        n_rows: Number of rows, by default all; with fewer the columns are no longer orthonormal.

    Returns:
        ``(n_rows, k)`` in the dtype of the weights, as a transposed view: each column lies contiguously in memory, as
        the rows of LoRA's A do. Differentiable once for the weights.

    Raises:
        InputError: As in :func:`apply`, or a number of columns or rows out of range.

    Example:
        >>> circuit = pauli_circuit(width=64, n_layers=2)
        >>> u = columns(circuit, torch.randn(circuit.n_weights), k=3)
        >>> u.shape, torch.allclose(u.T @ u, torch.eye(3), atol=1e-6)
        (torch.Size([64, 3]), True)
    """
    width = _check(circuit, weights)
    _check_range("k", k, width)
    n_rows = width if n_rows is None else n_rows
    _check_range("n_rows", n_rows, width)
    start = torch.eye(k, width, dtype=weights.dtype, device=weights.device)
    return apply(circuit, weights, start)[:, :n_rows].T


def _check(circuit: Circuit, weights: Tensor) -> int:
    """Length of the vectors that a circuit acts on."""
    if circuit.n_qubits > MAX_QUBITS:
        raise InputError(
            f"an orthogonal matrix may have at most {MAX_QUBITS} wires (got {circuit.n_qubits}); use fewer wires."
        )
    if circuit.n_inputs:
        raise InputError(
            f"the circuit takes {circuit.n_inputs} inputs, but an orthogonal matrix has none; leave their gates out "
            f"(see pauli_circuit) or fix them with Circuit.bind(inputs=...)."
        )
    check_weights(circuit, weights)
    if not weights.is_floating_point():
        raise InputError(f"weights must be real floating point (got {weights.dtype}); cast them.")
    return 1 << circuit.n_qubits


def _check_range(name: str, value: int, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise InputError(
            f"{name} must be a whole number from 1 to {limit}, the size of the circuit's matrix (got {value!r}); "
            f"choose another value or a circuit of more wires."
        )


@lru_cache(maxsize=256)
def _engine(key: str, device: torch.device, dtype: torch.dtype) -> OrthogonalEngine:
    """What applies a circuit's matrix on a device; the place for kernels of other kinds."""
    return OrthogonalEngine(make_plan(Circuit.from_key(key)), device, dtype)


def _engine_for(x: Tensor, circuit: str) -> OrthogonalEngine:
    return _engine(circuit, x.device, torch.float64 if x.dtype == torch.float64 else torch.float32)


# Inside the operators autocast is off: it would turn the matrix products into half precision.
@torch.library.custom_op("qpeft::orthogonal", mutates_args=())
def _orthogonal(x: Tensor, weights: Tensor, circuit: str, transpose: bool) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return _engine_for(x, circuit).apply(weights, x, transpose)


@torch.library.custom_op("qpeft::orthogonal_backward", mutates_args=())
def _orthogonal_backward(
    gradient: Tensor, output: Tensor, weights: Tensor, circuit: str, transpose: bool, needs_x: bool
) -> tuple[Tensor, Tensor]:
    with torch.autocast(gradient.device.type, enabled=False):
        to_x, to_weights = _engine_for(gradient, circuit).differentiate(gradient, output, weights, transpose, needs_x)
    return to_x, to_weights.to(weights.dtype)


@_orthogonal.register_fake
def _(x: Tensor, weights: Tensor, circuit: str, transpose: bool) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_orthogonal_backward.register_fake
def _(
    gradient: Tensor, output: Tensor, weights: Tensor, circuit: str, transpose: bool, needs_x: bool
) -> tuple[Tensor, Tensor]:
    to_x = torch.empty_like(gradient if needs_x else gradient[:0], memory_format=torch.contiguous_format)
    return to_x, torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, str, bool], output: Tensor) -> None:
    _, weights, ctx.circuit, ctx.transpose = inputs
    if ctx.needs_input_grad[1]:
        ctx.save_for_backward(weights, output)
    else:
        ctx.save_for_backward(weights)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    needs_x, needs_weights = ctx.needs_input_grad[:2]
    if not needs_weights:
        (weights,) = ctx.saved_tensors
        return torch.ops.qpeft.orthogonal(gradient, weights, ctx.circuit, not ctx.transpose), None, None, None
    weights, output = ctx.saved_tensors
    to_x, to_weights = torch.ops.qpeft.orthogonal_backward(
        gradient, output, weights, ctx.circuit, ctx.transpose, needs_x
    )
    return to_x if needs_x else None, to_weights, None, None


_orthogonal.register_autograd(_differentiate, setup_context=_keep)
