"""A virtual cloud on this machine for tests, and small packed jobs for it."""

import json
import math
import urllib.error
import urllib.request
from contextlib import contextmanager

import torch

from qpeft.chips import ChipSnapshot, Coupler, NativeTemplate, Qubit
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit, Gate, Input
from qpeft.cloud import CloudServer, FaultScript, TaskBook, VirtualCloud
from qpeft.qpu.protocol import Block, Submission

KEY = "sk-0123456789abcdef-not-to-be-seen"
COLUMNS = 4


def grid_chip(rows=3, readout=(0.02, 0.06), fidelity=0.97):
    """A small grid; qubit 5 is not available, and the coupler (0, 1) is dead."""
    n = rows * COLUMNS
    qubits = [
        Qubit(i, fidelity=0.998, p10=readout[0], p01=readout[1], t1_us=12.0, t2_us=3.0, available=i != 5)
        for i in range(n)
    ]
    pairs = [(i, i + 1) for i in range(n) if (i + 1) % COLUMNS] + [(i, i + COLUMNS) for i in range(n - COLUMNS)]
    couplers = [Coupler(pair, 0.0 if pair == (0, 1) else fidelity) for pair in sorted(pairs)]
    return ChipSnapshot("grid", tuple(qubits), tuple(couplers))


@contextmanager
def loopback(faults=(), snapshot=None, folder=None, **settings):
    """A running server."""
    chip = VirtualChip(snapshot or grid_chip())
    cloud = VirtualCloud({"72": chip}, TaskBook(folder), tell=lambda line: None, **settings)
    with CloudServer(cloud, faults=FaultScript(faults)) as server:
        yield server


def ask(server, path, body=None, key=KEY):
    """One request; status and JSON."""
    headers = {"Authorization": f"oqcs_auth={key}"} if key is not None else {}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def chain(qubits):
    """A template with one free angle a wire: quarter turns around RZ, neighbours joined by CZ."""
    k = len(qubits)
    gates = []
    for wire in range(k):
        gates += [Gate("RX", wire, math.pi / 2), Gate("RZ", wire, Input(wire)), Gate("RX", wire, math.pi / 2)]
    gates += [Gate("CZ", (wire, wire + 1)) for wire in range(k - 1)]
    gates += [Gate("RX", wire, math.pi / 2) for wire in range(k)]
    return NativeTemplate(Circuit(k, tuple(gates)), tuple(qubits), tuple(range(k)), lambda inputs, weights: inputs)


def packed_job(n_circuits=3, shots=1000, seed=0, token="token-1"):
    """Two blocks side by side in every circuit, all angles different; the last circuit has one block alone."""
    templates = (chain((6, 2, 3)), chain((8, 9)))
    generator = torch.Generator().manual_seed(seed)
    angles = torch.rand(n_circuits, 5, generator=generator, dtype=torch.float64) * 6 - 3
    circuits = []
    for row in angles.tolist():
        row = [round(value, 8) for value in row]
        circuits.append((Block(0, tuple(row[:3])), Block(1, tuple(row[3:]))))
    circuits[-1] = circuits[-1][:1]
    return Submission(templates, tuple(circuits), shots, token, seed)


def agrees(counts, probabilities):
    """Whether counts are a likely draw: chi-squared, as a normal deviate (Wilson and Hilferty), below 5.5."""
    expected = probabilities * counts.sum()
    keep = expected > 1e-9
    if counts[~keep].any():
        return False
    chi = float(((counts[keep] - expected[keep]) ** 2 / expected[keep]).sum())
    freedom = max(int(keep.sum()) - 1, 1)
    spread = 2 / (9 * freedom)
    return ((chi / freedom) ** (1 / 3) - (1 - spread)) / math.sqrt(spread) < 5.5
