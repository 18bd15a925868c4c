"""Random circuits for comparing engines, evenly spread over everything a circuit can hold.

A search that draws every choice by itself spends most examples on tiny circuits without inputs, so it draws a seed
here, and the seed decides evenly.
"""

import math

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from qpeft.circuits import Circuit, Gate, Input, Weight
from qpeft.circuits.circuit import GATES

SCALES = [1.0, 1.0, -0.5, 2.0, 0.3]
MAX_QUBITS, MAX_GATES, MAX_BATCH = 6, 48, 40


def cases(reads_once: bool = False) -> st.SearchStrategy[tuple[Circuit, tuple[Tensor, Tensor, Tensor]]]:
    """Circuits with inputs, weights and a cotangent for 1 to 40 samples.

    Args:
        reads_once: Inputs are RY angles on |0>, and no later gate reads them.
    """
    return st.integers(0, 2**32 - 1).map(lambda seed: _case(seed, reads_once))


def _case(seed: int, reads_once: bool) -> tuple[Circuit, tuple[Tensor, Tensor, Tensor]]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, MAX_QUBITS + 1))
    batch = int(rng.integers(1, MAX_BATCH + 1))
    circuit = random_circuit(rng, n, int(rng.integers(MAX_GATES + 1)), reads_once)
    return circuit, samples(circuit, batch, seed)


def random_circuit(rng: np.random.Generator, n: int, n_gates: int, reads_once: bool = False) -> Circuit:
    """A circuit on ``n`` qubits of ``n_gates`` gates (and those that read the inputs, with ``reads_once``)."""
    observables = _observables(rng, n)
    counts = {Input: 0, Weight: 0}
    gates = []
    if reads_once:
        gates += [Gate("RY", wire, Input(wire)) for wire in range(n)]
        counts[Input] = n
    names = [name for name, kind in GATES.items() if kind.n_wires <= n]
    names += [name for name in names if GATES[name].has_angle]  # twice as often as others
    for _ in range(n_gates):
        name = str(rng.choice(names))
        wires = tuple(int(wire) for wire in rng.permutation(n)[: GATES[name].n_wires])
        kinds = (Weight, Weight, float) if reads_once else (Weight, Input, float)
        angle = _angle(rng, kinds[rng.integers(3)], counts) if GATES[name].has_angle else None
        gates.append(Gate(name, wires, angle))
    return Circuit(n, tuple(gates), observables)


def _angle(rng: np.random.Generator, kind: type, counts: dict[type, int]) -> Input | Weight | float:
    if kind is float:
        return float(rng.normal() * 3) if rng.random() < 0.6 else math.pi / 2 * int(rng.integers(-4, 5))
    known = counts[kind]
    index = int(rng.integers(known)) if known and rng.random() < 0.4 else known  # again, or a new one
    counts[kind] = max(known, index + 1)
    return kind(index, float(rng.choice(SCALES)))


def _observables(rng: np.random.Generator, n: int) -> tuple[str, ...]:
    letters = "Z" if rng.random() < 0.5 else "XYZ"
    texts = []
    for _ in range(rng.integers(1, n + 2)):
        wires = rng.permutation(n)[: rng.integers(1, n + 1)]
        texts.append(" ".join(f"{letters[rng.integers(len(letters))]}{wire}" for wire in wires))
    return tuple(texts)


def samples(circuit: Circuit, batch: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    """Inputs, weights and a cotangent: float32 numbers whatever the dtype, so that both precisions see the same."""
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, circuit.n_inputs), (circuit.n_weights,), (batch, circuit.n_observables)
    inputs, weights, cotangent = (torch.randn(shape, generator=generator) for shape in shapes)
    return (2 * inputs).to(dtype), (2 * weights).to(dtype), cotangent.to(dtype)
