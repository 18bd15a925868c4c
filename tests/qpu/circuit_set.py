"""One fixed set of circuits for all ways to run them: random ones over every gate, and the circuit of QTHA."""

import itertools
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block
from qpeft.circuits.circuit import GATES
from qpeft.qpu.protocol import Block, JobState, Submission
from qpeft.simulators import run

ROWS = 3
_TOKENS = itertools.count()


@dataclass(frozen=True)
class Case:
    """A circuit, angles to run it with, and what it is called."""

    name: str
    circuit: Circuit
    inputs: Tensor  # (ROWS, n_inputs), float64
    weights: Tensor  # (n_weights,), float64

    def exact(self) -> Tensor:
        """Expectations without noise, ``(ROWS, n_observables)``."""
        return run(self.circuit, self.inputs, self.weights)


def cases() -> list[Case]:
    """The set: random circuits on 1 to 4 qubits, and QTHA with one layer on 2 to 4; observables consist of Z."""
    circuits = [(f"random-{seed}", _random(seed)) for seed in range(5)]
    circuits += [(f"qtha-{n}", qtha_block(n_qubits=n, n_layers=1)) for n in (2, 3, 4)]
    made = []
    for seed, (name, circuit) in enumerate(circuits):
        rng = np.random.default_rng(100 + seed)
        inputs = torch.from_numpy(rng.uniform(-np.pi, np.pi, (ROWS, circuit.n_inputs)))
        weights = torch.from_numpy(rng.uniform(-np.pi, np.pi, circuit.n_weights))
        made.append(Case(name, circuit, inputs, weights))
    return made


def _random(seed: int) -> Circuit:
    rng = np.random.default_rng(seed)
    n = 1 + seed % 4
    names = [name for name, kind in GATES.items() if kind.n_wires <= n]
    gates = [Gate("RY", wire, Input(wire)) for wire in range(n)]
    n_weights = 0
    for _ in range(5 * n):
        name = str(rng.choice(names))
        wires = tuple(int(wire) for wire in rng.permutation(n)[: GATES[name].n_wires])
        angle = None
        if GATES[name].has_angle:
            angle = [Weight(n_weights), Input(int(rng.integers(n)), scale=-0.5), 0.7][rng.integers(3)]
            n_weights += isinstance(angle, Weight)
        gates.append(Gate(name, wires, angle))
    observables = [f"Z{wire}" for wire in range(n)] + ([f"Z0 Z{n - 1}"] if n > 1 else [])
    return Circuit(n, tuple(gates), tuple(observables))


def plain_template(circuit: Circuit, qubits: tuple[int, ...]) -> NativeTemplate:
    """A circuit as it is, not in native gates: for simulators that take any gate between any qubits."""

    def free(angle: Any) -> Any:
        return Input(circuit.n_inputs + angle.index, angle.scale) if isinstance(angle, Weight) else angle

    gates = tuple(Gate(gate.name, gate.wires, free(gate.angle)) for gate in circuit.gates)

    def bind(inputs: Tensor, weights: Tensor) -> Tensor:
        return torch.cat([inputs, weights.expand(len(inputs), -1)], dim=1)

    return NativeTemplate(Circuit(circuit.n_qubits, gates), qubits, tuple(range(circuit.n_qubits)), bind)


def submission(
    templates: list[NativeTemplate], angles: list[Tensor], shots: int, seed: int = 1, token: str | None = None
) -> Submission:
    """One circuit per row, with one block for every template; ``angles`` are ``(rows, n_angles)`` of each template."""
    circuits = tuple(
        tuple(Block(t, tuple(round(float(a), 8) for a in rows[i])) for t, rows in enumerate(angles))
        for i in range(len(angles[0]))
    )
    return Submission(tuple(templates), circuits, shots, token or f"token-{next(_TOKENS)}", seed)


def answer(provider: Any, job: Submission) -> list[list[Tensor]]:
    """Counts of a job that is awaited here."""
    handle = provider.submit(job)
    while (state := provider.poll(handle)) in (JobState.QUEUED, JobState.RUNNING):
        time.sleep(0.002)  # lets the job's thread work
    raw = provider.fetch(handle)  # says why where it failed
    assert state is JobState.DONE, state
    return provider.parse(raw, job)


def expectations(counts: Tensor, case: Case, readout: tuple[int, ...]) -> Tensor:
    """Expectations of a case, ``(rows, n_observables)``, from counts ``(rows, 2**k)``, wire 0 most significant."""
    k = counts.shape[1].bit_length() - 1
    outcome = torch.arange(2**k)
    values = []
    for observable in case.circuit.observables:
        bits = sum(outcome >> (k - 1 - readout[wire]) & 1 for _, wire in observable.paulis)
        values.append((counts * (1 - 2 * (bits % 2))).sum(1) / counts.sum(1))
    return torch.stack(values, dim=1).double()


def through(provider: Any, case: Case, template: NativeTemplate, shots: int, seed: int = 1) -> Tensor:
    """Expectations of a case by way of a provider."""
    job = submission([template], [template.angles(case.inputs, case.weights)], shots, seed)
    counts = torch.stack([blocks[0] for blocks in answer(provider, job)])
    return expectations(counts, case, template.readout)


def five_sigma(expected: Tensor, shots: int) -> Tensor:
    """Five standard errors of an expectation from shots, with the Poisson tail near +1 and -1."""
    return 5 * ((1 - expected**2) / shots).clamp(min=0).sqrt() + 10 / shots


def place(case: Case, chip: ChipSnapshot) -> NativeTemplate:
    """A case compiled for the first chain of live qubits that is long enough."""
    from qpeft.chips.compiler import compile_circuit

    return compile_circuit(case.circuit, chip, chain(chip, case.circuit.n_qubits))


def chain(chip: ChipSnapshot, n: int, taken: frozenset[int] = frozenset()) -> tuple[int, ...]:
    """The first path of ``n`` free live qubits, by depth-first search."""
    near: dict[int, list[int]] = {qubit: [] for qubit in chip.live_qubits}
    for coupler in chip.live_couplers:
        a, b = coupler.qubits
        near[a].append(b)
        near[b].append(a)

    def grow(path: tuple[int, ...]) -> tuple[int, ...] | None:
        if len(path) == n:
            return path
        for qubit in near[path[-1]]:
            if qubit not in path and qubit not in taken and (found := grow((*path, qubit))):
                return found
        return None

    for start in near:
        if start not in taken and (found := grow((start,))):
            return found
    raise AssertionError(f"no free chain of {n} qubits")
