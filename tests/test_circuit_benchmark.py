"""The arithmetic behind benchmarks/circuit_kernel.py: reference, floor, sharing of batches, claims."""

import sys
from pathlib import Path

import numpy
import pytest
import torch

from qpeft.circuits import Circuit, qtha_block, rotation_cnot_ring
from qpeft.simulators import run

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import circuit_floor
import circuit_kernel
import circuit_report
from peers import reference
from peers.program import Program


@pytest.mark.parametrize("circuit", [qtha_block(3, 2), rotation_cnot_ring(3, 2)], ids=["qtha", "ring"])
def test_reference_agrees_with_the_simulator(circuit: Circuit):
    random = numpy.random.default_rng(0)
    inputs, cotangent = random.normal(size=(2, 5, 3))
    weights = random.normal(size=circuit.n_weights)
    x, w = torch.tensor(inputs, requires_grad=True), torch.tensor(weights, requires_grad=True)
    outputs = run(circuit, x, w)
    to_inputs, to_weights = torch.autograd.grad(outputs, (x, w), torch.tensor(cotangent))
    found = reference.evaluate(Program(circuit.key), inputs, weights, cotangent)
    numpy.testing.assert_allclose(found[0], outputs.detach(), atol=1e-12)
    numpy.testing.assert_allclose(found[1], to_inputs, atol=1e-12)
    numpy.testing.assert_allclose(found[2].sum(0), to_weights, atol=1e-12)


def test_program_refuses_what_adapters_do_not_know():
    with pytest.raises(ValueError, match="no H"):
        Program('{"n":1,"g":[["H",[0]]],"o":["Z0"]}')
    with pytest.raises(ValueError, match="every qubit"):
        Program('{"n":2,"g":[],"o":["Z0"]}')


def test_floor_takes_the_cheapest_formulation():
    assert circuit_floor.operations("rotation_cnot_ring", 8, 2, True) == (38384, "state vector")
    assert circuit_floor.operations("rotation_cnot_ring", 8, 1, True).formulation == "product"
    assert circuit_floor.operations("rotation_cnot_ring", 4, 4, True).formulation == "multilinear"
    assert circuit_floor.operations("qtha_block", 8, 1, True) == (3 * 88 * 8 + 30 * 8, "polynomials")
    assert circuit_floor.operations("qtha_block", 14, 2, True).formulation == "light cones"
    machine = circuit_floor.Machine(1e9, "", {1024: 1e9, 1 << 30: 1e3})
    assert machine.floor("qtha_block", 4, 2, 10, False) == pytest.approx(1456 * 10 / 1e9)
    assert machine.floor("rotation_cnot_ring", 4, 1, 1 << 24, False) == pytest.approx(8 * 4 * (1 << 24) / 1e3)


def test_batches_of_peers_are_bounded():
    small = circuit_kernel.Point("qtha_block", 4, 1, 16384, 1)
    large = circuit_kernel.Point("qtha_block", 12, 4, 16384, 1)
    assert small.part() == 16384
    assert large.part() == 256


def record(point: circuit_kernel.Point, **seconds: float) -> dict:
    contenders = {
        name: {"note": None, "samples": point.batch, "errors": {}, "rounds": [{"forward": s / 3, "both": s}] * 3}
        for name, s in seconds.items()
    }
    return {**point._asdict(), "commit": "0", "contenders": {**contenders, "vqnet": {"reason": "does not install"}}}


def test_report_names_the_fastest_peer_and_who_did_not_run(tmp_path: Path):
    point = circuit_kernel.Point("qtha_block", 8, 2, 1024, 1)
    results = {
        "points": {point.key: record(point, qpeft=1e-3, tensorcircuit=0.03, pennylane=0.5, fallback=0.02)},
        "limits": {"1": {"flops": 1e12, "source": "-", "bandwidth": {"1024": 1e9}}},
        "machine": {"processor": "-", "cores": 2, "system": "-", "python": "-", "date": "-"},
        "versions": {},
        "absent": {"vqnet": "does not install"},
    }
    (speed, torch_only, *_) = circuit_report.claims(results)
    assert "at least 40 times" in speed[0]
    assert speed[1].startswith("least 30.0")
    assert not speed[2]
    assert torch_only[1].startswith("least 1.5")
    text = circuit_report.write_report(tmp_path, results).read_text(encoding="utf-8")
    assert "**30 (30)** | 500 (500) | 20 (20)" in text
    assert "VQNet (torch), 1 of 1 points: does not install" in text
    assert (tmp_path / "ratios-1.png").exists()
