"""Rows a second through the Qiskit provider: Aer without noise, and fake chips.

    python benchmarks/qiskit_rows.py                       # about ten seconds on one core

A row is ``qtha_block`` with 4 qubits and 1 layer at its own angles, 1,000 shots, compiled for the first chain of live
qubits; a job holds 300 of them. Timed is submit, wait, fetch and parse, from blocks to counts; translation and noise
model are made before, as they are once a layout. Figures are medians of wall time and of processor time.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "qpu"))

from circuit_set import answer, chain, submission

from qpeft.chips.compiler import compile_circuit
from qpeft.circuits import qtha_block
from qpeft.qpu.providers.qiskit import QiskitProvider

SHOTS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backends", nargs="+", default=["aer", "fake_manila", "fake_torino"])
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, Python {platform.python_version()}, qiskit {version('qiskit')}, "
          f"qiskit-aer {version('qiskit-aer')}")  # fmt: skip
    circuit = qtha_block(4, 1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(options.rows, circuit.n_inputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(circuit.n_weights, generator=generator, dtype=torch.float64)
    print(f"{'backend':<14} {'rows/s':>8} {'rows/s of processor time':>26}")
    for backend in options.backends:
        provider = QiskitProvider(backend)
        snapshot = provider.snapshot()
        template = compile_circuit(circuit, snapshot, chain(snapshot, 4))
        angles = template.angles(inputs, weights)
        answer(provider, submission([template], [angles[:1]], SHOTS))  # translation and noise model
        taken = []
        for repeat in range(options.repeats):
            job = submission([template], [angles], SHOTS, seed=repeat)
            start = time.perf_counter(), time.process_time()
            answer(provider, job)
            taken.append((time.perf_counter() - start[0], time.process_time() - start[1]))
        wall, processor = options.rows / np.median(taken, axis=0)
        print(f"{backend:<14} {wall:>8.0f} {processor:>26.0f}", flush=True)


if __name__ == "__main__":
    main()
