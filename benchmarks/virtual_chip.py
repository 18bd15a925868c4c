"""The virtual chip against Qiskit Aer on the same job, and the time of packed jobs.

    python benchmarks/virtual_chip.py                      # about a minute on 2 cores
    python benchmarks/virtual_chip.py --threads 1 --repeats 3

The job: ``qtha_block`` with 4 qubits and 1 layer, compiled to pulses, RZ and CZ for one place of wukong-72-ideal;
every circuit has native angles of its own; 1,000 shots each. Ours is ``VirtualChip.run`` from blocks to counts. Aer
has the same noise model (density matrix method; before anything is measured, expectations of both are compared), one
circuit per row, made before the clock starts and never transpiled: "list" hands over a list of circuits, "binds" one
circuit with arrays of parameters. Contenders take turns repeat by repeat; figures are medians of wall time
and of processor time, ratios medians over repeats against the better of Aer's two ways.

Packed: a job of 200 circuits, each as many blocks as fit on wukong-72 (66 usable qubits, live couplers alone), through
``VirtualProvider``: submit, fetch, parse.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "chips"))

from aer_reference import aer_circuit
from qiskit_aer import AerSimulator

from qpeft.chips import NativeTemplate, load_chip
from qpeft.chips.compiler import compile_circuit
from qpeft.chips.packing import plan_layout
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import qtha_block
from qpeft.qpu.protocol import Block, Submission
from qpeft.qpu.providers.virtual import MAX_CIRCUITS, VirtualProvider

SHOTS = 1000
PLACE = (0, 1, 7, 6)  # a square of the grid: the ring of the ansatz needs no routing


def random_blocks(template: NativeTemplate, number: int, count: int, seed: int) -> list[Block]:
    generator = torch.Generator().manual_seed(seed)
    original = qtha_block(4, 1)
    inputs = torch.randn(count, original.n_inputs, generator=generator, dtype=torch.float64)
    weights = torch.randn(original.n_weights, generator=generator, dtype=torch.float64)
    return [Block(number, tuple(row)) for row in template.angles(inputs, weights).tolist()]


def seconds(call: Callable[[], object]) -> np.ndarray:
    """Wall time and processor time of a call."""
    start = time.perf_counter(), time.process_time()
    call()
    return np.array([time.perf_counter() - start[0], time.process_time() - start[1]])


class Aer:
    """The same job in Aer."""

    def __init__(self, chip: VirtualChip, template: NativeTemplate, threads: int) -> None:
        self.circuit, model = aer_circuit(chip.snapshot, template)
        self.simulator = AerSimulator(
            method="density_matrix",
            noise_model=model,
            max_parallel_threads=threads,
            max_parallel_experiments=threads,
        )
        self.measured = self.circuit.copy()
        self.measured.measure_all()

    def check(self, chip: VirtualChip, template: NativeTemplate, rows: np.ndarray) -> float:
        """Largest difference of an expectation of a string of Z, without readout errors."""
        exact = self.circuit.copy()
        exact.save_probabilities()
        result = self.simulator.run([exact.assign_parameters(row) for row in rows]).result()
        n = template.circuit.n_qubits
        masks = [" ".join(f"Z{w}" for w in range(n) if mask >> w & 1) for mask in range(1, 1 << n)]
        wires = replace(template, readout=tuple(range(n)))
        ours = chip.expectations(wires, torch.from_numpy(rows), masks, readout_errors=False).numpy()
        signs = 1 - 2 * np.array([[(b & m).bit_count() & 1 for m in range(1, 1 << n)] for b in range(1 << n)])
        theirs = np.array([result.data(i)["probabilities"] for i in range(len(rows))]) @ signs
        return float(np.abs(ours - theirs).max())

    def as_list(self, rows: np.ndarray) -> Callable[[], object]:
        circuits = [self.measured.assign_parameters(row) for row in rows]
        return lambda: self.simulator.run(circuits, shots=SHOTS, seed_simulator=1).result().get_counts()

    def as_binds(self, rows: np.ndarray) -> Callable[[], object]:
        binds = {parameter: rows[:, i].tolist() for i, parameter in enumerate(self.measured.parameters)}
        run = self.simulator.run
        return lambda: run(self.measured, shots=SHOTS, seed_simulator=1, parameter_binds=[binds]).result().get_counts()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--circuits", type=int, default=4000, help="circuits of a measurement")
    parser.add_argument("--aer-circuits", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    python = platform.python_version()
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {platform.machine()}, Python {python}")

    chip = VirtualChip(load_chip("wukong-72-ideal"))
    template = compile_circuit(qtha_block(4, 1), chip.snapshot, PLACE)
    kinds = [gate.name for gate in template.circuit.gates]
    print(f"one circuit: {', '.join(f'{kinds.count(name)} {name}' for name in ('RX', 'CZ', 'RZ'))}")
    ours = random_blocks(template, 0, arguments.circuits, seed=0)
    theirs = np.array([block.angles for block in ours[: arguments.aer_circuits]])
    aer = Aer(chip, template, arguments.threads)
    print(f"largest difference of an expectation from Aer's: {aer.check(chip, template, theirs[:5]):.1e}")

    ways = {"list": aer.as_list(theirs), "binds": aer.as_binds(theirs)}
    print(f"first call, with the engine built: {seconds(lambda: chip.run([template], [(ours[0],)], SHOTS))[0]:.2f} s")
    spent: dict[str, list[np.ndarray]] = {"virtual chip": [], **{f"Aer, {way}": [] for way in ways}}
    for repeat in range(arguments.repeats + 1):
        circuits = [(block,) for block in ours]
        times = {"virtual chip": seconds(lambda c=circuits, s=repeat: chip.run([template], c, SHOTS, s)) / len(ours)}
        times |= {f"Aer, {way}": seconds(call) / len(theirs) for way, call in ways.items()}
        if repeat:  # the first turn warms up
            for name, pair in times.items():
                spent[name].append(pair)
    print(f"{'circuits per second of':24} {'wall time':>10} {'processor':>10}")
    for name, pairs in spent.items():
        wall, processor = 1 / np.median(pairs, axis=0)
        print(f"{name:24} {wall:10,.0f} {processor:10,.0f}")
    mine, *others = map(np.array, spent.values())
    ratios = np.min(others, axis=0) / mine  # (repeats, 2)
    middle, lowest = np.median(ratios, axis=0), ratios.min(axis=0)
    print(f"{'times faster than Aer':24} {middle[0]:10.0f} {middle[1]:10.0f}")
    print(f"{'in the worst repeat':24} {lowest[0]:10.0f} {lowest[1]:10.0f}")

    provider = VirtualProvider("wukong-72")
    templates = plan_layout(qtha_block(4, 1), provider.snapshot()).templates
    columns = [random_blocks(t, number, MAX_CIRCUITS, seed=number) for number, t in enumerate(templates)]
    times_packed = []
    for repeat in range(arguments.repeats + 1):
        job = Submission(templates, tuple(zip(*columns, strict=True)), SHOTS, token=str(repeat), seed=repeat)
        times_packed.append(seconds(lambda j=job: provider.parse(provider.fetch(provider.submit(j)), j)))
    blocks = MAX_CIRCUITS * len(templates)
    wall, processor = np.median(times_packed[1:], axis=0)
    print(
        f"packed job of {MAX_CIRCUITS} circuits x {len(templates)} blocks: {wall:.2f} s, processor {processor:.2f} s"
    )
    print(f"{'blocks per second':24} {blocks / wall:10,.0f} {blocks / processor:10,.0f}")
    print(f"the first such job, with the engines of all blocks built: {times_packed[0][0]:.1f} s")


if __name__ == "__main__":
    main()
