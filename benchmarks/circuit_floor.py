r"""The least time a circuit can take on this machine: operations of the cheapest known formulation over measured
peak.

    floor = max(operations / multiply-add peak, bytes / memory bandwidth)       per sample

Operations are real additions and multiplications of one sample, d = 2^n. Work shared by the batch (sums over
weights' gates, matrices built from weights) is left out. Bytes: inputs, outputs, their gradients, read or written
once: 8 n forward, 16 n forward and backward. Four formulations compete, and the cheapest counts:

**State vector.** A product of halves costs 6 d for a complex product state, 1 d for a real one; a shared diagonal
6 d (2 d on a real state); RY on one qubit, divided by its cosine, one multiply-add for each real number, so 4 n d
for all qubits; all <Z_i> 5 d (3 for the squares, 2 for the sums). The backward keeps the state after every layer,
so it walks only the adjoint vector back: 4 n d for the turns, 4 n d for their gradients, 6 d for the diagonal, 4 d
for its gradients. CNOT rings renumber amplitudes and cost nothing. sin and cos: 30 n.

``rotation_cnot_ring``: encoding and first layer make one product state, RZ angles one diagonal for each layer:

    forward   d [11 + (L-1)(4n + 6)] + 30 n
    both      that + d [26 + (L-1)(8n + 10)]

``qtha_block``: RY(x), ring D1, RY(w), ring D2, RY(w) in each layer. The last RY(w) of a layer and RY(x) of the
next are one turn of every qubit, so 2L - 1 pairs (turn, diagonal) follow the first diagonal. The very last RY(w)
is not applied: <cos w Z_i - sin w X_i> is read instead, with 2 d for each <X_i>, which also gives its gradient:

    forward   d [8 + 2n + (2L-1)(4n + 6)] + 30 n + 6 n (L-1)
    both      that + d [15 + 4n + (2L-1)(8n + 10)]

(15 + 4n: weighting Z 4, weighting X 4n, first diagonal 7, product state 4.)

**Multilinear form.** Where inputs enter once, <Z_i> is a polynomial with a constant, a cosine and a sine for every
qubit it depends on: 2·3^k for k qubits, three times as much with the backward. Inputs enter once in
``rotation_cnot_ring`` (k = n) and in ``qtha_block`` with L = 1, where <Z_i> depends on at most five neighbours. Of
those 243 coefficients of the block 44 differ from zero, whatever the angles (from five qubits on): 88 n forward,
three times as much with the backward.

**Light cones.** In ``qtha_block`` <Z_i> depends on k = 4L + 1 neighbouring qubits, of which the pairs turn 4L - 1,
4L - 3, ..., 3, in all t = 4L² - 1. Where k < n, n states of 2^k amplitudes may take less than one of 2^n. For each:

    forward   2^k [9 + 4t + 6(2L-1)]
    both      that + 2^k [15 + 8t + 10(2L-1)]

**Product form.** ``rotation_cnot_ring`` with L = 1 measures strings of Z on a product state: 35 n forward, 50 n
both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch

from qpeft.simulators import native


class Operations(NamedTuple):
    """Operations of one sample and the formulation they belong to."""

    number: float
    formulation: str


def state_vector(ansatz: str, n: int, layers: int, both: bool) -> float:
    """Operations of one sample in the state-vector form, whatever else is cheaper."""
    d, more = 2**n, layers - 1
    if ansatz == "rotation_cnot_ring":
        forward = d * (11 + more * (4 * n + 6)) + 30 * n
        return forward + d * (26 + more * (8 * n + 10)) * both
    pairs = 2 * layers - 1
    forward = d * (8 + 2 * n + pairs * (4 * n + 6)) + 30 * n + 6 * n * more
    return forward + d * (15 + 4 * n + pairs * (8 * n + 10)) * both


def operations(ansatz: str, n: int, layers: int, both: bool) -> Operations:
    """Operations of one sample in the cheapest known formulation.

    Args:
        ansatz: ``"rotation_cnot_ring"`` or ``"qtha_block"``.
        n: Number of qubits.
        layers: Number of layers.
        both: Forward and backward, not forward alone.

    Example:
        >>> operations("rotation_cnot_ring", 8, 2, True)
        Operations(number=38384, formulation='state vector')
    """
    known = [Operations(state_vector(ansatz, n, layers, both), "state vector")]
    reach = n if ansatz == "rotation_cnot_ring" else min(n, 5) if layers == 1 else 0
    if reach:
        known.append(Operations((3 if both else 1) * 2 * n * 3**reach + 30 * n, "multilinear"))
    if ansatz == "qtha_block" and layers == 1 and n >= 5:
        known.append(Operations((3 if both else 1) * 88 * n + 30 * n, "polynomials"))
    cone, turned = 4 * layers + 1, 4 * layers**2 - 1
    if ansatz == "qtha_block" and cone < n:
        pairs = 2 * layers - 1
        one = 9 + 4 * turned + 6 * pairs + (15 + 8 * turned + 10 * pairs) * both
        known.append(Operations(n * 2**cone * one + 30 * n, "light cones"))
    if ansatz == "rotation_cnot_ring" and layers == 1:
        known.append(Operations((50 if both else 35) * n, "product"))
    return min(known)


class Machine(NamedTuple):
    """Measured limits of so many threads.

    Args:
        flops: Operations per second, float32.
        source: How ``flops`` was measured.
        bandwidth: Bytes read and written per second, by size of the arrays in bytes.
    """

    flops: float
    source: str
    bandwidth: dict[int, float]

    def floor(self, ansatz: str, n: int, layers: int, batch: int, both: bool) -> float:
        """Least seconds of a call."""
        size = (16 if both else 8) * n * batch
        nearest = min(self.bandwidth, key=lambda known: abs(math.log(known / size)))
        return max(operations(ansatz, n, layers, both).number * batch / self.flops, size / self.bandwidth[nearest])


def measure(threads: int) -> Machine:
    """Measure this machine with so many threads; takes about two seconds."""
    torch.set_num_threads(threads)
    flops, source = native_peak(threads), "chains of multiply-adds in the native library"
    if flops is None:
        flops, source = _matrix_product(), "a matrix product of torch, for want of the native library"
    return Machine(flops, source, {size: _bandwidth(size) for size in (1 << 18, 1 << 20, 1 << 23, 1 << 26)})


def native_peak(threads: int, seconds: float = 0.05) -> float | None:
    """Operations per second of so many cores as the native kernel measures them; ``None`` without it."""
    if not native.available():
        return None
    with ThreadPoolExecutor(threads) as pool:  # the native call lets other threads run
        return max(sum(pool.map(native.peak_gflops, [seconds] * threads)) for _ in range(15)) * 1e9


def _matrix_product(size: int = 1024) -> float:
    a, b = torch.randn(size, size), torch.randn(size, size)
    c = a @ b
    best = min(_seconds(lambda: torch.mm(a, b, out=c)) for _ in range(20))
    return 2 * size**3 / best


def _bandwidth(size: int) -> float:
    source = torch.ones(size // 8)  # half is read, half written
    target = torch.empty_like(source)
    loops = max(1, (1 << 24) // size)

    def copy() -> None:
        for _ in range(loops):
            target.copy_(source)

    copy()
    return size * loops / min(_seconds(copy) for _ in range(7))


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
