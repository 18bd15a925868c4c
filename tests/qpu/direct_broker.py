"""A broker that samples templates at once, without ledger and provider, with noise of the test's choice."""

from collections import defaultdict
from types import SimpleNamespace

import torch

from qpeft.qpu.budget import Spend
from qpeft.qpu.protocol import Caps
from qpeft.simulators import sample

CAPS = Caps(max_circuits=200, min_shots=1, max_shots=10**6, packs=True, finds=False, paid=False, seeded=True)


class DirectBroker:
    """Stands in for a broker and its provider; ``asked`` holds ``(purpose, circuits, shots, seed)`` of every call."""

    def __init__(self, snapshot, noise=lambda template: None, caps=CAPS):
        self.snapshot = snapshot
        self.noise = noise
        self.asked = []
        self.packed = []
        self.provider = SimpleNamespace(
            name="direct:test", caps=lambda: caps, snapshot=lambda: self.snapshot, close=lambda: None
        )
        self.ledger = SimpleNamespace(spent=self._spent)

    def run(self, templates, circuits, shots, *, purpose, seed=0):
        self.asked.append((purpose, len(circuits), shots, seed))
        self.packed.append(circuits)
        homes = defaultdict(list)
        for number, blocks in enumerate(circuits):
            qubits = [qubit for block in blocks for qubit in templates[block.template].qubits]
            assert len(set(qubits)) == len(qubits), "blocks share a qubit"
            for place, block in enumerate(blocks):
                homes[block.template].append((number, place, block.angles))
        answer = [[None] * len(blocks) for blocks in circuits]
        for number, own in homes.items():
            template = templates[number]
            angles = torch.tensor([each[2] for each in own], dtype=torch.float64).view(len(own), -1)
            nothing = torch.zeros(0, dtype=torch.float64)
            counts = sample(template.circuit, angles, nothing, shots, (seed + number) % 2**62, self.noise(template))
            for (circuit, place, _), row in zip(own, counts, strict=True):
                answer[circuit][place] = row
        return answer

    def close(self):
        pass

    def _spent(self, name):
        circuits = sum(each[1] for each in self.asked)
        shots = sum(each[1] * each[2] for each in self.asked)
        return Spend(circuits, len(self.asked), shots, shots * 2e-4, 0.0)
