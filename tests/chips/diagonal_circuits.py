"""Random circuits of all gates whose observables consist of Z, as chips measure them."""

import math

import numpy as np
import torch
from torch import Tensor

from qpeft.circuits import Circuit, Gate, Input, Weight
from qpeft.circuits.circuit import GATES


def random_circuit(rng: np.random.Generator, n: int, n_gates: int, names: tuple[str, ...] = tuple(GATES)) -> Circuit:
    counts = {Input: 0, Weight: 0}
    gates = []
    names = tuple(name for name in names if GATES[name].n_wires <= n)
    for _ in range(n_gates):
        name = str(rng.choice(names))
        wires = tuple(int(wire) for wire in rng.permutation(n)[: GATES[name].n_wires])
        gates.append(Gate(name, wires, _angle(rng, counts) if GATES[name].has_angle else None))
    observables = []
    for _ in range(rng.integers(1, n + 2)):
        observables.append(" ".join(f"Z{wire}" for wire in rng.permutation(n)[: rng.integers(1, n + 1)]))
    return Circuit(n, tuple(gates), tuple(observables))


def _angle(rng: np.random.Generator, counts: dict[type, int]) -> Input | Weight | float:
    kind = (Input, Weight, float)[rng.integers(3)]
    if kind is float:
        return float(rng.normal() * 3) if rng.random() < 0.4 else math.pi / 4 * int(rng.integers(-8, 9))
    known = counts[kind]
    index = int(rng.integers(known)) if known and rng.random() < 0.4 else known  # again, or a new one
    counts[kind] = max(known, index + 1)
    return kind(index, float(rng.choice([1.0, -0.5, 2.0])))


def numbers(circuit: Circuit, batch: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and weights, some of them special."""
    generator = torch.Generator().manual_seed(seed)
    inputs = 2 * torch.randn(batch, circuit.n_inputs, dtype=torch.float64, generator=generator)
    inputs[0] = 0.0
    return inputs, 2 * torch.randn(circuit.n_weights, dtype=torch.float64, generator=generator)
