"""Time of the circuit layer per sample, forward and forward + backward, against a naive simulator in the same run.

    python benchmarks/circuit_layer.py                     # the default grid, one thread
    python benchmarks/circuit_layer.py --threads 2 --batch 4096 --qubits 8 --layers 1 4

The naive simulator is what one writes first: a complex state (batch, 2, ..., 2), one tensor operation per gate,
autograd through everything. Both alternate repeat by repeat, and the ratio is the median over repeats.
Outputs and gradients are compared first. Time is CPU time of the process (on a quiet machine with one thread the same
as wall time), because neighbours on a shared machine disturb it least; --wall switches to wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.simulators import run

Clock = Callable[[], float]

ANSAETZE = {f.__name__: f for f in (qtha_block, rotation_cnot_ring, simplified_two_design)}


def naive(circuit: Circuit, inputs: Tensor, weights: Tensor) -> Tensor:
    """Gate by gate on the whole batch, for the gates that the ansätze use: -> (batch, n_qubits)."""
    n, batch = circuit.n_qubits, inputs.shape[0]
    state = torch.zeros(batch, *[2] * n, dtype=torch.complex64)
    state[(slice(None), *[0] * n)] = 1
    for gate in circuit.gates:
        if isinstance(gate.angle, Input):
            angle = inputs[:, gate.angle.index]
        elif isinstance(gate.angle, Weight):
            angle = weights[gate.angle.index].expand(batch)
        else:
            angle = inputs.new_zeros(batch)
        shape = (-1, *[1] * (n - 1))
        cos, sin = (angle / 2).cos().view(shape), (angle / 2).sin().view(shape)
        turn = torch.polar(torch.ones_like(angle), angle / 2).view(shape)
        target = gate.wires[-1] + 1
        zero, one = state.unbind(target)
        if gate.name == "RY":
            state = torch.stack([cos * zero - sin * one, sin * zero + cos * one], target)
        elif gate.name == "RZ":
            state = torch.stack([turn.conj() * zero, turn * one], target)
        else:
            if gate.name == "CRZ":
                turned = torch.stack([turn.conj() * zero, turn * one], target)
            else:
                turned = torch.stack([one, zero] if gate.name == "CNOT" else [zero, -one], target)
            where = torch.tensor([0.0, 1.0]).view(2, *[1] * (n - 1 - gate.wires[0]))
            state = (1 - where) * state + where * turned
    probabilities = state.abs().square()
    return torch.stack(
        [
            probabilities.sum([d for d in range(1, n + 1) if d != wire + 1]) @ torch.tensor([1.0, -1.0])
            for wire in range(n)
        ],
        1,
    )


def timed(
    evaluate: Callable[[Circuit, Tensor, Tensor], Tensor],
    circuit: Circuit,
    inputs: Tensor,
    weights: Tensor,
    clock: Clock,
) -> tuple[float, float]:
    """Seconds of forward, and of forward and backward."""
    start = clock()
    outputs = evaluate(circuit, inputs, weights)
    middle = clock()
    torch.autograd.grad(outputs.sum(), (inputs, weights))
    return middle - start, clock() - start


def check(circuit: Circuit, inputs: Tensor, weights: Tensor) -> float:
    """Largest difference between the two simulators in outputs and (relative) gradients."""
    results = []
    for evaluate in (run, naive):
        outputs = evaluate(circuit, inputs, weights)
        gradients = torch.autograd.grad(outputs.square().sum(), (inputs, weights))
        results.append((outputs.detach(), *gradients))
    return max(float((a - b).abs().max() / max(1.0, float(b.abs().max()))) for a, b in zip(*results, strict=True))


def measure(circuit: Circuit, batch: int, repeats: int, clock: Clock) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, circuit.n_inputs, generator=generator).requires_grad_()
    weights = torch.randn(circuit.n_weights, generator=generator).requires_grad_()
    difference = check(circuit, inputs.detach()[:64].clone().requires_grad_(), weights)
    if difference > 1e-4:
        raise SystemExit(f"the two simulators disagree by {difference:.1e}: no timing is shown")
    for evaluate in (run, naive):
        timed(evaluate, circuit, inputs, weights, clock)
    ours, theirs, ratios = [], [], []
    for _ in range(repeats):
        ours.append(timed(run, circuit, inputs, weights, clock))
        theirs.append(timed(naive, circuit, inputs, weights, clock))
        ratios.append(theirs[-1][1] / ours[-1][1])
    scale = 1e6 / batch
    return {
        "forward": statistics.median(t[0] for t in ours) * scale,
        "both": statistics.median(t[1] for t in ours) * scale,
        "naive": statistics.median(t[1] for t in theirs) * scale,
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ansatz", nargs="+", choices=ANSAETZE, default=list(ANSAETZE), help="circuits to time")
    parser.add_argument("--qubits", nargs="+", type=int, default=[4, 8], help="numbers of qubits (default: 4 8)")
    parser.add_argument("--layers", nargs="+", type=int, default=[1, 4], help="numbers of layers (default: 1 4)")
    parser.add_argument("--batch", nargs="+", type=int, default=[1024], help="samples per call (default: 1024)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="repeats, of which the median counts (default: 5)")
    parser.add_argument("--wall", action="store_true", help="measure wall time instead of CPU time")
    arguments = parser.parse_args()
    clock = time.perf_counter if arguments.wall else time.process_time
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, {arguments.threads} thread(s), medians of {arguments.repeats}, "
        f"{'wall' if arguments.wall else 'CPU'} µs per sample"
    )
    print(f"{'circuit':<24}{'n':>3}{'L':>3}{'batch':>7}{'forward':>10}{'fwd+bwd':>10}{'naive':>10}{'naive/ours':>12}")
    for name in arguments.ansatz:
        for n_qubits in arguments.qubits:
            for n_layers in arguments.layers:
                for batch in arguments.batch:
                    row = measure(ANSAETZE[name](n_qubits, n_layers), batch, arguments.repeats, clock)
                    print(
                        f"{name:<24}{n_qubits:>3}{n_layers:>3}{batch:>7}{row['forward']:>10.2f}{row['both']:>10.2f}"
                        f"{row['naive']:>10.1f}{row['ratio']:>12.1f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
