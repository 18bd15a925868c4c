"""What orthogonal matrices from circuits cost, forward + backward, against LoRA and against building the matrix.

    python benchmarks/orthogonal.py                         # the default cases, one thread
    python benchmarks/orthogonal.py --case 14 4 --rows 256 --threads 2

Two claims, on T activations of width 2**q and the circuit of Quantum-PEFT with L layers:

* With K columns, ``x V[:, :K] diag(s) U[:, :K]ᵀ`` takes at most 1.3 times as long as LoRA of rank K, ``x Aᵀ Bᵀ``, with
  A and B stored as peft stores them. For comparison the same products with given columns, stored as the circuits leave
  them: what remains above that is what the circuits cost.
* Without truncation, ``x Uᵀ`` through the circuit is at least 3 times as fast as building ``U`` and one product with
  it, where ``U`` is built by the same kernel (all columns), not gate by gate.

Results and gradients are compared first. All variants alternate repeat by repeat, and a ratio is the median over the
repeats. Time is CPU time of the process, because neighbours on a shared machine disturb it least; --wall switches to
wall time.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from qpeft.tensornet import orthogonal

CASES = [(11, 1), (11, 4), (12, 4)]
COLUMNS_LIMIT, MATRIX_LIMIT = 1.3, 3.0


class Case:
    """One size: the variants, and what they are differentiated for."""

    def __init__(self, n_qubits: int, n_layers: int, rows: int, rank: int) -> None:
        width = 1 << n_qubits
        self.circuit = orthogonal.pauli_circuit(width, n_layers)
        generator = torch.Generator().manual_seed(0)

        def leaf(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator).requires_grad_()

        self.x, self.gradient = leaf(rows, width), leaf(rows, width).detach()
        self.u, self.v = leaf(self.circuit.n_weights), leaf(self.circuit.n_weights)
        self.scale = leaf(rank)
        self.a, self.b = leaf(rank, width), leaf(width, rank)
        self.given_u, self.given_v = leaf(rank, width), leaf(rank, width)

    def columns(self) -> Tensor:
        rank = len(self.scale)
        v, u = (orthogonal.columns(self.circuit, weights, rank) for weights in (self.v, self.u))
        return (self.x @ v * self.scale) @ u.T

    def given_columns(self) -> Tensor:
        return (self.x @ self.given_v.T * self.scale) @ self.given_u

    def lora(self) -> Tensor:
        return self.x @ self.a.T @ self.b.T

    def circuit_on_activations(self) -> Tensor:
        return orthogonal.apply(self.circuit, self.u, self.x)

    def matrix(self) -> Tensor:
        return self.x @ orthogonal.columns(self.circuit, self.u, self.x.shape[1]).T

    def run(self, variant: Callable[[], Tensor], leaves: list[Tensor], clock: Callable[[], float]) -> float:
        """Milliseconds of forward and backward."""
        start = clock()
        torch.autograd.grad(variant(), leaves, self.gradient)
        return (clock() - start) * 1e3

    def check(self) -> None:
        """The circuit on activations equals the product with the matrix, in results and gradients."""
        pair = []
        for variant in (self.circuit_on_activations, self.matrix):
            y = variant()
            pair.append((y.detach(), *torch.autograd.grad(y, (self.x, self.u), self.gradient)))
        difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(*pair, strict=True))
        if difference > 1e-4:
            raise SystemExit(f"circuit and matrix disagree by {difference:.1e}: no timing is shown")


def measure(case: Case, repeats: int, clock: Callable[[], float]) -> dict[str, float]:
    case.check()
    variants = {
        "columns": (case.columns, [case.x, case.u, case.v, case.scale]),
        "given": (case.given_columns, [case.x, case.given_u, case.given_v, case.scale]),
        "lora": (case.lora, [case.x, case.a, case.b]),
        "circuit": (case.circuit_on_activations, [case.x, case.u]),
        "matrix": (case.matrix, [case.x, case.u]),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(repeats + 1):
        for name, (variant, leaves) in variants.items():
            # the quick ones more often, for they are the ones that a neighbour disturbs
            often = 1 if name in ("circuit", "matrix") else 5
            milliseconds = statistics.median(case.run(variant, leaves, clock) for _ in range(often))
            if repeat:  # the first round warms up
                times[name].append(milliseconds)
    result = {name: statistics.median(values) for name, values in times.items()}
    for ratio, (above, below) in {
        "columns/lora": ("columns", "lora"),
        "matrix/circuit": ("matrix", "circuit"),
    }.items():
        result[ratio] = statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, type=int, action="append", metavar=("Q", "L"), help="wires and layers")
    parser.add_argument("--rows", type=int, default=1024, help="activations T (default: 1024)")
    parser.add_argument("--rank", type=int, default=8, help="columns K and LoRA's rank (default: 8)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=7, help="repeats, of which the median counts (default: 7)")
    parser.add_argument("--wall", action="store_true", help="measure wall time instead of CPU time")
    options = parser.parse_args()
    clock = time.perf_counter if options.wall else time.process_time
    torch.set_num_threads(options.threads)
    print(
        f"torch {torch.__version__}, {options.threads} thread(s), T={options.rows}, K={options.rank}, float32, "
        f"medians of {options.repeats}, {'wall' if options.wall else 'CPU'} ms of forward + backward"
    )
    print(
        f"{'q':>3}{'L':>4}{'K columns':>12}{'LoRA':>9}{'x LoRA':>9}{'given columns':>16}"
        f"{'circuit on all':>17}{'matrix + product':>19}{'times faster':>15}"
    )
    kept = True
    for n_qubits, n_layers in options.case or CASES:
        row = measure(Case(n_qubits, n_layers, options.rows, options.rank), options.repeats, clock)
        kept &= row["columns/lora"] <= COLUMNS_LIMIT and row["matrix/circuit"] >= MATRIX_LIMIT
        print(
            f"{n_qubits:>3}{n_layers:>4}{row['columns']:>12.1f}{row['lora']:>9.1f}{row['columns/lora']:>9.2f}"
            f"{row['given']:>16.1f}"
            f"{row['circuit']:>17.1f}{row['matrix']:>19.0f}{row['matrix/circuit']:>15.1f}",
            flush=True,
        )
    print(
        f"claims (columns <= {COLUMNS_LIMIT} x LoRA, circuit >= {MATRIX_LIMIT:g} times as fast as the matrix): "
        f"{'kept' if kept else 'NOT kept'}"
    )
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
