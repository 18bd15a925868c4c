"""How many small circuits fit on a chip side by side, how well, and how long choosing takes.

    python benchmarks/packing.py                        # blocks, about 1 minute
    python benchmarks/packing.py --seeds 10 --exact
    python benchmarks/packing.py --blocks               # QTHA's ring against chains and squares on the preset chip
    python benchmarks/packing.py --crosstalk            # packed against alone on the virtual chip

Chains of k qubits (simplified two-design, one layer) on a grid of 12 x 6, all of it or 66 qubits of it, where a random
part of the couplers works; buffer 0 and 1. "greedy" is the default, "exact" proves how many there can be within its
time limit (a star marks averages over seeds of which some ran out of it). Figures are means over seeds; time is wall
time of ``plan_layout`` with a warm interpreter, compilation included.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

import torch

from qpeft.chips import ChipSnapshot, Coupler, Layout, Qubit, load_chip, metrics, plan_layout
from qpeft.chips.regions import find_regions
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import qtha_block, simplified_two_design
from qpeft.qpu.protocol import Block

MISSING = (18, 23, 42, 43, 49, 68)  # qubits that the published state of the 72-qubit chip lacks
CHIPS = [
    ("ideal 72", (), 1.0),
    ("66, all couplers", MISSING, 1.0),
    ("66, 70 % of couplers", MISSING, 0.7),
    ("66, 55 % of couplers", MISSING, 0.55),
]
SIZES = (2, 3, 4, 6)


def chip(missing: tuple[int, ...], live_share: float, seed: int) -> ChipSnapshot:
    """A 12 x 6 grid with numbers drawn around the published ones."""
    draw = random.Random(seed)

    def around(mean: float, spread: float, low: float, high: float) -> float:
        return min(max(draw.gauss(mean, spread), low), high)

    qubits = [
        Qubit(q, around(0.996, 0.001, 0.99, 0.999), around(0.03, 0.01, 0.005, 0.1), around(0.07, 0.02, 0.01, 0.15),
              around(13, 3, 5, 20), around(1.5, 0.3, 0.8, 2.5), available=q not in missing)
        for q in range(72)
    ]  # fmt: skip
    pairs = [(q, q + 1) for q in range(72) if (q + 1) % 6] + [(q, q + 6) for q in range(66)]
    dead = set(draw.sample(pairs, round((1 - live_share) * len(pairs))))
    couplers = [Coupler(p, 0.0 if p in dead else around(0.964, 0.01, 0.93, 0.985)) for p in pairs]
    return ChipSnapshot(f"grid {seed}", tuple(qubits), tuple(couplers))


def table(seeds: int, exact: bool) -> None:
    solvers = ("greedy", "exact") if exact else ("greedy",)
    print("| chip | solver | " + " | ".join(f"k={k}" for k in SIZES) + " | slowest, s |")
    print("|" + "---|" * (len(SIZES) + 3))
    for name, missing, share in CHIPS:
        snapshots = [chip(missing, share, seed) for seed in range(seeds if share < 1 else 1)]
        for solver in solvers:
            cells, slowest = [], 0.0
            for k in SIZES:
                parts = []
                for buffer in (0, 1):
                    counts, proven = [], True
                    for snapshot in snapshots:
                        start = time.perf_counter()
                        layout = plan_layout(simplified_two_design(k, 1), snapshot, buffer=buffer, solver=solver)
                        slowest = max(slowest, time.perf_counter() - start)
                        counts.append(layout.n_blocks)
                        proven &= layout.proven
                    star = "*" if solver == "exact" and not proven else ""
                    parts.append(f"{statistics.fmean(counts):.3g}{star}")
                cells.append(" / ".join(parts))
            print(f"| {name} | {solver} | " + " | ".join(cells) + f" | {slowest:.2f} |", flush=True)


def blocks(name: str) -> None:
    """Places and blocks of a ring and of a chain of four on one chip, by the shape that they stand on."""
    snapshot = load_chip(name)
    live = {coupler.qubits for coupler in snapshot.live_couplers}

    def shape(qubits: tuple[int, ...]) -> str:
        inside = [pair for pair in live if set(pair) <= set(qubits)]
        if len(inside) == 4:
            return "square"
        return "star" if any(sum(qubit in pair for pair in inside) == 3 for qubit in qubits) else "path"

    print("| circuit | shape | places | CZ | ns | median fidelity | blocks, buffer 0 | buffer 1 |")
    print("|---|---|---|---|---|---|---|---|")
    for label, circuit in (("ring (QTHA)", qtha_block(4, 1)), ("chain", simplified_two_design(4, 1))):
        layouts = [plan_layout(circuit, snapshot, buffer=buffer) for buffer in (0, 1)]
        standing = [[shape(template.qubits) for template in layout.templates] for layout in layouts]
        regions = find_regions(circuit, snapshot)
        for kind in ("square", "path", "star"):
            here = [region for region in regions if shape(region.template.qubits) == kind]
            cost = [metrics(region.template, snapshot) for region in here]
            print(f"| {label} | {kind} | {len(here)} | {statistics.mode(c.n_cz for c in cost)} | "
                  f"{statistics.median(c.duration_ns for c in cost):.0f} | "
                  f"{statistics.median(c.expected_fidelity for c in cost):.2f} | "
                  f"{' | '.join(str(kinds.count(kind)) for kinds in standing)} |")  # fmt: skip
        for layout in layouts:
            low, middle, high = min(layout.scores), statistics.median(layout.scores), max(layout.scores)
            print(f"{label}, buffer {layout.buffer}: {layout.n_blocks} blocks, fidelity {low:.2f} to {high:.2f}, "
                  f"median {middle:.2f}; 1,000 samples in {layout.n_circuits(1000)} circuits")  # fmt: skip


def crosstalk(name: str, rows: int, shots: int) -> None:
    """Packed against alone on the virtual chip: every sample both ways on the same block, with other shots.

    What shots do by themselves is shown beside it: alone against alone.
    """
    snapshot = load_chip(name)
    circuit = simplified_two_design(4, 1)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(rows, circuit.n_inputs, generator=generator, dtype=torch.float64) * 3
    weights = torch.rand(circuit.n_weights, generator=generator, dtype=torch.float64) * 3
    print("| buffer | blocks | crosstalk | total variation | alone, other shots | <Z> off by | alone, other shots |")
    print("|---|---|---|---|---|---|---|")
    k = circuit.n_qubits
    signs = torch.tensor([[1.0 - 2 * (i >> (k - 1 - w) & 1) for w in range(k)] for i in range(2**k)])
    for buffer in (0, 1):
        layout = plan_layout(circuit, snapshot, buffer=buffer)
        angles = [t.angles(inputs, weights).tolist() for t in layout.templates]
        packed = [[Block(b, tuple(angles[b][row])) for row, b in pairs] for pairs in layout.assign(rows)]
        alone = [[block] for pairs in packed for block in pairs]
        for strength in (0.0, 0.01, 0.03):
            virtual = VirtualChip(snapshot, crosstalk=strength)

            def frequencies(circuits: list[list[Block]], seed: int, virtual: VirtualChip = virtual,
                            layout: Layout = layout) -> torch.Tensor:  # fmt: skip
                counts = virtual.run(layout.templates, circuits, shots, seed=seed)
                return torch.stack([c for blocks in counts for c in blocks]) / shots  # (rows, 2**k)

            reference = frequencies(alone, 1)
            cells = []
            for circuits in (packed, alone):
                difference = frequencies(circuits, 2) - reference
                cells.append((difference.abs().sum(1).mean().item() / 2, (difference @ signs).abs().mean().item()))
            (tv, z), (tv_floor, z_floor) = cells
            figures = " | ".join(f"{figure:.4f}" for figure in (tv, tv_floor, z, z_floor))
            print(f"| {buffer} | {layout.n_blocks} | {strength:g} | {figures} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="chips per row of the table")
    parser.add_argument("--exact", action="store_true", help="the exact solver too (needs scipy; minutes)")
    parser.add_argument("--blocks", action="store_true", help="rings and chains on the preset chip")
    parser.add_argument("--crosstalk", action="store_true", help="packed against alone on the virtual chip")
    parser.add_argument("--chip", default="wukong-72")
    parser.add_argument("--rows", type=int, default=600, help="samples of --crosstalk")
    parser.add_argument("--shots", type=int, default=1000)
    options = parser.parse_args()
    if options.blocks:
        blocks(options.chip)
    elif options.crosstalk:
        crosstalk(options.chip, options.rows, options.shots)
    else:
        table(options.seeds, options.exact)


if __name__ == "__main__":
    main()
