"""Places for a circuit: all of them, each once, on working couplers, with the fidelity of the compiled circuit."""

import itertools
import math

import pytest
from grid_chips import grid_chip

from qpeft.chips import ChipSnapshot
from qpeft.chips.metrics import metrics
from qpeft.chips.regions import MAX_SHAPES, find_regions, live_graph, refined
from qpeft.chips.shapes import connected_sets
from qpeft.circuits import Circuit, Gate, Input, qtha_block, simplified_two_design
from qpeft.errors import InputError

CIRCUITS = [
    qtha_block(4, 1),
    qtha_block(2, 1),
    simplified_two_design(3, 1),
    Circuit(1, (Gate("RY", 0, Input(0)),)),
    Circuit(3, (Gate("RY", 0, Input(0)), Gate("CNOT", (2, 1)))),
    Circuit(4, (Gate("H", 0), Gate("CZ", (0, 2)), Gate("CZ", (1, 3)))),
]


def used_pairs(template):
    return {
        tuple(sorted(template.qubits[wire] for wire in gate.wires))
        for gate in template.circuit.gates
        if len(gate.wires) == 2
    }


@pytest.mark.parametrize("circuit", CIRCUITS, ids=range(len(CIRCUITS)))
def test_every_connected_set_has_one_region_on_live_couplers(circuit):
    snapshot = grid_chip(3, 4, live_share=0.7, missing=(5,), seed=1)
    regions = find_regions(circuit, snapshot)
    expected = connected_sets(live_graph(snapshot), circuit.n_qubits, 10_000)
    masks = [sum(1 << qubit for qubit in region.template.qubits) for region in regions]
    assert sorted(masks) == sorted(expected)
    live = {coupler.qubits for coupler in snapshot.live_couplers}
    for region in regions:
        assert used_pairs(region.template) <= live
        assert 5 not in region.template.qubits
    scores = [region.score for region in regions]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("circuit", CIRCUITS, ids=range(len(CIRCUITS)))
def test_scores_are_the_compiler_s_expected_fidelities(circuit):
    snapshot = grid_chip(3, 4, live_share=0.8, seed=2)
    for region in find_regions(circuit, snapshot):
        expected = metrics(region.template, snapshot).expected_fidelity
        assert region.score == pytest.approx(math.log(expected), abs=1e-9)


def test_a_circuit_is_laid_in_the_better_direction():
    snapshot = grid_chip(1, 3)
    [region] = find_regions(simplified_two_design(3, 1), snapshot)
    turned = [
        metrics(type(region.template)(
            region.template.circuit, order, region.template.readout, region.template.bind), snapshot
        ).expected_fidelity
        for order in (region.template.qubits, region.template.qubits[::-1])
    ]  # fmt: skip
    assert math.exp(region.score) == pytest.approx(max(turned))


def test_a_ring_costs_least_where_it_fits():
    """All other things equal, the square comes before paths and stars, which must move qubits."""
    square = ChipSnapshot.fully_connected(4, fidelity=0.999, two_qubit_fidelity=0.97, t1_us=10, t2_us=2)
    chip = grid_chip(2, 4)
    pairs = tuple(type(chip.couplers[0])(coupler.qubits, 0.97) for coupler in chip.couplers)
    even = ChipSnapshot("even", tuple(type(q)(q.index, *_numbers(square)) for q in chip.qubits), pairs)
    regions = find_regions(qtha_block(4, 1), even)
    shapes = [len({c.qubits for c in even.couplers if set(c.qubits) <= set(r.template.qubits)}) for r in regions]
    assert shapes == sorted(shapes, reverse=True)
    assert shapes[0] == 4
    assert shapes[-1] == 3


def _numbers(snapshot):
    qubit = snapshot.qubits[0]
    return qubit.fidelity, qubit.p10, qubit.p01, qubit.t1_us, qubit.t2_us


def test_refining_never_loses():
    circuit, snapshot = qtha_block(4, 1), grid_chip(3, 3, live_share=0.8, seed=3)
    for region in find_regions(circuit, snapshot)[:10]:
        better = refined(circuit, snapshot, region)
        assert set(better.template.qubits) == set(region.template.qubits)
        assert better.score >= region.score
        assert better.score == pytest.approx(math.log(metrics(better.template, snapshot).expected_fidelity))


def test_a_circuit_that_is_too_large_is_refused():
    snapshot = grid_chip(2, 3, missing=(1, 4))
    with pytest.raises(InputError, match="largest connected working part of grid has 2"):
        find_regions(simplified_two_design(3, 1), snapshot)
    nothing = grid_chip(1, 2, missing=(0, 1))
    with pytest.raises(InputError, match="has 0"):
        find_regions(simplified_two_design(1, 1), nothing)


def test_a_fully_connected_chip_is_no_trouble():
    snapshot = ChipSnapshot.fully_connected(8)
    regions = find_regions(simplified_two_design(4, 1), snapshot)
    assert len(regions) == math.comb(8, 4)
    assert MAX_SHAPES >= 1
    assert all(a.template.qubits != b.template.qubits for a, b in itertools.combinations(regions[:20], 2))
