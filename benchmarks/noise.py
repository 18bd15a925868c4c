"""Noisy expectations and shots: against the noiseless simulator in torch, a naive density matrix and TensorCircuit-NG.

    python benchmarks/peers/setup.py                    # once: the peers' environments (optional)
    python benchmarks/noise.py                          # one thread, about 3 minutes, much of it compilation
    python benchmarks/noise.py --repeats 3 --no-peer

Every sample is one token: ``(batch, n)`` inputs and shared weights give all <Z_i>. Noise acts after every gate on each
of its wires: "ours" depolarising with p = 0.02, "damped" with p = 0.01 and amplitude and phase damping of 0.01.
Forward, and forward and backward for inputs and weights. Contenders take turns repeat by repeat; calls shorter than
20 ms are repeated within a measurement, each with other weights. Figures are medians of milliseconds of processor time
per call, ratios medians over repeats. Outputs and both gradients are compared first (4e-5, weights relative to the
largest entry); who is off is named and not timed.

"torch" is this library's noiseless simulator without the native kernel, so that both sides of the ratio are plain
torch. "naive" is what one writes first: a density matrix (batch, 2, ..., 2), one operation per gate and channel,
autograd through everything. "TC-NG" is TensorCircuit-NG's DMCircuit on jax, ``vmap`` and ``jit``, compilation not
counted, as a process of its own.

Shots: all <Z_i> of a batch from 128 and 1024 shots per sample, forward only: joint counts, and marginals.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from peers.contenders import CONTENDERS, environments
from peers.pipes import WorkerError, WorkerProcess
from qpeft.circuits import Circuit, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.simulators import NoiseModel, native, run, run_noisy, run_shots
from qpeft.simulators.lightcone import LightConeEngine
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine

P = 0.02
SHORTEST = 0.02  # seconds of a measurement; shorter calls are repeated
DEPOLARISING = NoiseModel.uniform(depolarizing=P)
DAMPED = NoiseModel.uniform(depolarizing=P / 2, amplitude_damping=P / 2, phase_damping=P / 2)
TOLERANCE = 4e-5
POINTS = [
    (rotation_cnot_ring, 4, 2, 1024),
    (rotation_cnot_ring, 6, 2, 256),
    (rotation_cnot_ring, 8, 2, 1024),
    (simplified_two_design, 8, 2, 1024),
    (qtha_block, 4, 1, 1024),
    (qtha_block, 8, 1, 1024),
    (qtha_block, 4, 2, 1024),
]
LARGEST_NAIVE = 6  # qubits
LARGEST_PEER = 6

Function = Callable[[Tensor, Tensor], Tensor]


class _Torch(torch.autograd.Function):
    """The noiseless simulator without the native kernel."""

    @staticmethod
    def forward(inputs: Tensor, weights: Tensor, engine: LightConeEngine | StateVectorEngine) -> Tensor:
        return engine.evaluate(inputs, weights)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        *tensors, ctx.engine = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        to_inputs, to_weights = ctx.engine.differentiate(gradient, *ctx.saved_tensors)
        return to_inputs, to_weights.float(), None


def noiseless(circuit: Circuit) -> Function:
    cones = LightConeEngine.for_circuit(circuit)
    state = StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights)
    engine = cones if cones is not None and cones.pays else state
    return lambda inputs, weights: _Torch.apply(inputs, weights, engine)


def naive(circuit: Circuit) -> Function:
    """A density matrix gate by gate with depolarising noise, for the gates that the ansätze use."""
    n = circuit.n_qubits

    def turn(state: Tensor, matrices: Tensor, wires: list[int]) -> Tensor:
        """``(batch or 1, 2**k, 2**k)`` on some of the axes 1 to 2n."""
        k = len(wires)
        axes = [wire + 1 for wire in wires]
        moved = state.movedim(axes, list(range(1, k + 1)))
        turned = matrices @ moved.reshape(len(moved), 2**k, -1)
        return turned.view(moved.shape).movedim(list(range(1, k + 1)), axes)

    def unitary(name: str, angle: Tensor) -> Tensor:
        cos, sin = (angle / 2).cos() + 0j, (angle / 2).sin() + 0j
        if name == "RY":
            return torch.stack([cos, -sin, sin, cos], -1).view(-1, 2, 2)
        phase = torch.stack([cos - 1j * sin, cos + 1j * sin], -1)
        if name == "RZ":
            return torch.diag_embed(phase)
        if name == "CRZ":
            return torch.diag_embed(torch.cat([torch.ones_like(phase), phase], -1))
        if name == "CZ":
            return torch.diag(torch.tensor([1, 1, 1, -1], dtype=torch.complex64))[None]
        return torch.eye(4, dtype=torch.complex64)[[0, 1, 3, 2]][None]  # CNOT

    def evaluate(inputs: Tensor, weights: Tensor) -> Tensor:
        batch = len(inputs)
        state = torch.zeros(batch, *[2] * (2 * n), dtype=torch.complex64)
        state[(slice(None), *[0] * (2 * n))] = 1
        for gate in circuit.gates:
            angle = torch.zeros(1)
            if isinstance(gate.angle, Input):
                angle = inputs[:, gate.angle.index]
            elif isinstance(gate.angle, Weight):
                angle = weights[gate.angle.index, None]
            matrices = unitary(gate.name, angle)
            state = turn(state, matrices, list(gate.wires))
            state = turn(state, matrices.conj(), [n + wire for wire in gate.wires])
            for wire in gate.wires:
                rest = state.diagonal(dim1=wire + 1, dim2=n + wire + 1).sum(-1)[..., None, None] / 2
                mixed = (rest * torch.eye(2)).movedim((-2, -1), (wire + 1, n + wire + 1))
                state = (1 - P) * state + P * mixed
        diagonal = state.reshape(batch, 2**n, 2**n).diagonal(dim1=1, dim2=2).real
        bits = torch.arange(2**n)[:, None] >> torch.arange(n - 1, -1, -1) & 1
        return diagonal @ (1.0 - 2.0 * bits)

    return evaluate


class Angles(NamedTuple):
    inputs: Tensor
    weights: Tensor
    cotangent: Tensor


def angles_for(circuit: Circuit, batch: int) -> Angles:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, circuit.n_inputs, generator=generator).requires_grad_()
    weights = torch.randn(circuit.n_weights, generator=generator).requires_grad_()
    return Angles(inputs, weights, torch.randn(batch, circuit.n_observables, generator=generator))


def results(function: Function, angles: Angles) -> list[numpy.ndarray]:
    outputs = function(angles.inputs, angles.weights)
    gradients = torch.autograd.grad(outputs, (angles.inputs, angles.weights), angles.cotangent)
    return [tensor.detach().numpy() for tensor in (outputs, *gradients)]


def difference(found: list[numpy.ndarray], expected: list[numpy.ndarray]) -> float:
    return max(
        float(numpy.abs(a - b).max() / max(1.0, numpy.abs(b).max())) for a, b in zip(found, expected, strict=True)
    )


def timed(function: Function, angles: Angles) -> tuple[float, float]:
    """Milliseconds of processor time: forward, forward and backward. Every call has weights of its own."""

    def call(backward: bool) -> None:
        weights = (angles.weights + 1e-3 * torch.rand(())).detach().requires_grad_()
        outputs = function(angles.inputs, weights)
        if backward:
            torch.autograd.grad(outputs, (angles.inputs, weights), angles.cotangent)

    found = []
    for backward in (False, True):
        start, calls = time.process_time(), 0
        while calls == 0 or time.process_time() - start < SHORTEST:
            call(backward)
            calls += 1
        found.append((time.process_time() - start) / calls * 1e3)
    return found[0], found[1]


class Peer:
    """TensorCircuit-NG in its own environment, or why it is not there."""

    def __init__(self, wanted: bool) -> None:
        self.reason = "not asked for"
        self.process: WorkerProcess | None = None
        self.folder = tempfile.TemporaryDirectory()
        self.known: list[numpy.ndarray] = []
        if not wanted:
            return
        envs = environments()
        contender = next(contender for contender in CONTENDERS if contender.name == "tensorcircuit")
        if not contender.python(envs).exists():
            self.reason = "not installed: python benchmarks/peers/setup.py"
            return
        noisy = replace(
            contender,
            module="adapter_tensorcircuit_noise",
            variables=(*contender.variables, ("QPEFT_BENCH_DEPOLARIZING", str(P))),
        )
        try:
            self.process = WorkerProcess(noisy, envs, 1)
        except WorkerError as error:
            self.reason = str(error)

    def load(self, circuit: Circuit, angles: Angles) -> list[numpy.ndarray]:
        """Hand over a circuit; returns outputs and gradients."""
        assert self.process is not None
        arrays, answer = Path(self.folder.name, "arrays.npz"), Path(self.folder.name, "answer.npz")
        cotangent = angles.cotangent.numpy()
        numpy.savez(
            arrays,
            inputs=angles.inputs.detach().numpy(),
            weights=angles.weights.detach().numpy(),
            cotangent=cotangent,
            checking=cotangent,
        )
        self.process.ask(60, do="load", circuit=circuit.key, arrays=str(arrays), samples=len(cotangent))
        self.process.ask(300, do="check", to=str(answer))
        with numpy.load(answer) as found:
            return [found[name] for name in ("outputs", "to_inputs", "to_weights")]

    def timed(self) -> tuple[float, float]:
        assert self.process is not None
        answers = [self.process.ask(120, do="time", what=what, loops=0) for what in ("forward", "both")]
        forward, both = (answer["cpu"] / answer["loops"] * 1e3 for answer in answers)
        return forward, both

    def stop(self) -> None:
        if self.process is not None:
            self.process.stop()


def compare(circuit: Circuit, batch: int, repeats: int, peer: Peer) -> dict[str, list[tuple[float, float]] | str]:
    """Milliseconds of every repeat for each contender, or why it has none."""
    angles = angles_for(circuit, batch)
    functions: dict[str, Function] = {
        "torch": noiseless(circuit),
        "ours": lambda x, w: run_noisy(circuit, x, w, DEPOLARISING),
        "damped": lambda x, w: run_noisy(circuit, x, w, DAMPED),
    }
    found: dict[str, list[tuple[float, float]] | str] = {"naive": "too large", "TC-NG": peer.reason}
    expected = results(functions["ours"], angles)
    if circuit.n_qubits <= LARGEST_NAIVE:
        functions["naive"] = naive(circuit)
        off = difference(results(functions["naive"], angles), expected)
        if off > TOLERANCE:
            found["naive"] = f"off by {off:.0e}"
            del functions["naive"]
    timers: dict[str, Callable[[], tuple[float, float]]] = {
        name: lambda function=function: timed(function, angles) for name, function in functions.items()
    }
    if peer.process is not None and peer.process.alive:
        if circuit.n_qubits > LARGEST_PEER or not {gate.name for gate in circuit.gates} <= {"RY", "RZ", "CNOT", "CRZ"}:
            found["TC-NG"] = "too large"
        else:
            try:
                off = difference(peer.load(circuit, angles), expected)
                if off > TOLERANCE:
                    found["TC-NG"] = f"off by {off:.0e}"
                else:
                    timers["TC-NG"] = peer.timed
            except WorkerError as error:
                found["TC-NG"] = str(error)
    for name, timer in timers.items():
        timer()
        found[name] = []
    for _ in range(repeats):
        for name, timer in timers.items():
            rows = found[name]
            assert isinstance(rows, list)
            # The slow ones would take all the time.
            if len(rows) == 0 or rows[0][1] < 1000:
                rows.append(timer())
    return found


def median(rows: list[tuple[float, float]], which: int) -> float:
    return statistics.median(row[which] for row in rows)


def ratio(rows: list[tuple[float, float]], to: list[tuple[float, float]]) -> float:
    if len(rows) != len(to):  # of a slow contender there is one row
        return median(rows, 1) / median(to, 1)
    return statistics.median(a[1] / b[1] for a, b in zip(rows, to, strict=True))


def report_noise(repeats: int, peer: Peer) -> None:
    names = ["ours", "damped", "torch", "naive", "TC-NG"]
    print("noise: ms of processor time, forward / forward and backward")
    print(f"{'circuit':<22}{'n':>3}{'L':>3}{'batch':>7}" + "".join(f"{name:>18}" for name in names), end="")
    print(f"{'ours/torch':>12}{'damped/torch':>14}{'naive/ours':>12}{'TC-NG/ours':>12}")
    for ansatz, n, layers, batch in POINTS:
        found = compare(ansatz(n, layers), batch, repeats, peer)
        cells, reasons = [], []
        for name in names:
            rows = found[name]
            if isinstance(rows, str):
                cells.append("-")
                reasons.append(f"{name}: {rows}")
            else:
                cells.append(f"{median(rows, 0):.2f} / {median(rows, 1):.2f}")
        ratios = []
        for over, under in (("ours", "torch"), ("damped", "torch"), ("naive", "ours"), ("TC-NG", "ours")):
            a, b = found[over], found[under]
            ratios.append("-" if isinstance(a, str) or isinstance(b, str) else f"{ratio(a, b):.2f}")
        print(f"{ansatz.__name__:<22}{n:>3}{layers:>3}{batch:>7}" + "".join(f"{cell:>18}" for cell in cells), end="")
        print(
            "{:>12}{:>14}{:>12}{:>12}".format(*ratios) + (f"   ({'; '.join(reasons)})" if reasons else ""), flush=True
        )


def shot_calls(circuit: Circuit, batch: int) -> list[Callable[[], Tensor]]:
    """Exact as the library would do it, exact in torch, marginals and joint counts with 128 and with 1024 shots."""
    inputs, weights, _ = (tensor.detach() for tensor in angles_for(circuit, batch))
    plain = noiseless(circuit)

    def estimate(shots: int, marginals: bool) -> Callable[[], Tensor]:
        return lambda: run_shots(circuit, inputs, weights, shots, seed=0, marginals=marginals)

    calls = [lambda: run(circuit, inputs, weights), lambda: plain(inputs, weights)]
    return calls + [estimate(shots, marginals) for marginals in (True, False) for shots in (128, 1024)]


def report_shots(repeats: int) -> None:
    print("\nshots: ms of processor time, forward; 'exact' is what the library would use, 'torch' without the kernel")
    columns = ["exact", "torch", "marginals 128", "marginals 1024", "joint 128", "joint 1024"]
    print(f"{'circuit':<22}{'n':>3}{'batch':>7}" + "".join(f"{name:>18}" for name in columns), end="")
    print(f"{'marg./exact':>13}{'marg./torch':>13}")
    for n, batch in ((4, 4096), (8, 4096), (10, 512)):
        calls = shot_calls(rotation_cnot_ring(n, 2), batch)
        times: list[list[float]] = [[] for _ in calls]
        for repeat in range(repeats + 1):
            for row, call in zip(times, calls, strict=True):
                start = time.process_time()
                call()
                if repeat:
                    row.append((time.process_time() - start) * 1e3)
        cells = "".join(f"{statistics.median(row):>16.2f}" for row in times)
        ratios = [statistics.median(a / b for a, b in zip(times[3], times[under], strict=True)) for under in (0, 1)]
        print(f"{'rotation_cnot_ring':<22}{n:>3}{batch:>7}{cells}{ratios[0]:>13.2f}{ratios[1]:>13.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=9, help="repeats, of which the median counts (default: 9)")
    parser.add_argument("--no-peer", action="store_true", help="leave TensorCircuit-NG out")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    kernel = "with" if native.available() else "without"
    print(f"torch {torch.__version__}, {arguments.threads} thread(s), {kernel} native kernel, {platform.processor()}")
    peer = Peer(not arguments.no_peer)
    print(f"TensorCircuit-NG: {peer.reason if peer.process is None else 'in its environment'}")
    try:
        report_noise(arguments.repeats, peer)
    finally:
        peer.stop()
    report_shots(arguments.repeats)


if __name__ == "__main__":
    main()
