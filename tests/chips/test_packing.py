"""Layouts: disjoint, apart, on live couplers, repeatable, as many as promised."""

import itertools
import math

import numpy
import pytest
from grid_chips import grid_chip

from qpeft.chips import load_chip, plan_layout
from qpeft.chips.chip_map import distances
from qpeft.chips.metrics import metrics
from qpeft.circuits import qtha_block, simplified_two_design
from qpeft.errors import InputError

CHAIN = simplified_two_design(4, 1)


def blocks_of(layout):
    return [set(template.qubits) for template in layout.templates]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("buffer", [0, 1, 2])
@pytest.mark.parametrize("circuit", [qtha_block(4, 1), simplified_two_design(3, 1)], ids=["ring", "chain"])
def test_blocks_are_disjoint_apart_and_alive(circuit, buffer, seed):
    snapshot = grid_chip(5, 6, live_share=0.7, missing=(7, 20), seed=seed)
    layout = plan_layout(circuit, snapshot, buffer=buffer, restarts=1)
    away = distances(snapshot)
    assert layout.n_blocks >= 1
    for one, other in itertools.combinations(blocks_of(layout), 2):
        assert away[numpy.ix_(sorted(one), sorted(other))].min() > buffer
    live = {coupler.qubits for coupler in snapshot.live_couplers}
    for template, score in zip(layout.templates, layout.scores, strict=True):
        assert set(template.qubits) <= set(snapshot.live_qubits)
        assert len(set(template.qubits)) == circuit.n_qubits
        wires = {gate.wires for gate in template.circuit.gates if len(gate.wires) == 2}
        assert {tuple(sorted(template.qubits[wire] for wire in pair)) for pair in wires} <= live
        assert score == pytest.approx(metrics(template, snapshot).expected_fidelity)
    assert list(layout.scores) == sorted(layout.scores, reverse=True)
    assert layout.snapshot == snapshot.id
    assert layout.buffer == buffer


def test_neighbours_are_the_couplers_between_blocks():
    snapshot = grid_chip(4, 4, live_share=0.8, seed=1)
    layout = plan_layout(CHAIN, snapshot, crosstalk_penalty=0.0)
    owner = {qubit: block for block, qubits in enumerate(blocks_of(layout)) for qubit in qubits}
    expected = {
        frozenset(c.qubits) for c in snapshot.couplers
        if set(c.qubits) <= set(owner) and owner[c.qubits[0]] != owner[c.qubits[1]]
    }  # fmt: skip
    assert expected
    assert {frozenset(n.qubits) for n in layout.neighbours} == expected
    assert all(owner[qubit] == block for n in layout.neighbours for block, qubit in zip(*n, strict=True))
    assert plan_layout(CHAIN, snapshot, buffer=1).neighbours == ()


def test_equal_arguments_give_equal_layouts():
    snapshot = grid_chip(5, 6, live_share=0.7, seed=4)
    one, other = (plan_layout(CHAIN, snapshot, restarts=1, seed=5) for _ in range(2))
    assert [t.qubits for t in one.templates] == [t.qubits for t in other.templates]
    assert one.scores == other.scores
    assert one.assign(30, 2) == other.assign(30, 2)


def test_fewer_blocks_are_better_blocks():
    snapshot = grid_chip(5, 6, live_share=0.8, seed=2)
    every = plan_layout(CHAIN, snapshot, crosstalk_penalty=0.0)
    two = plan_layout(CHAIN, snapshot, max_blocks=2, crosstalk_penalty=0.0)
    assert two.n_blocks == 2
    assert sum(map(math.log, two.scores)) >= sum(map(math.log, every.scores[:2]))


def test_min_fidelity_is_kept_and_too_high_a_limit_says_what_there_is():
    snapshot = grid_chip(5, 6, live_share=0.8, seed=2)
    every = plan_layout(CHAIN, snapshot)
    limit = sorted(every.scores)[2] + 1e-3
    layout = plan_layout(CHAIN, snapshot, min_fidelity=limit)
    assert min(layout.scores) >= limit
    best = plan_layout(CHAIN, snapshot, max_blocks=1).scores[0]
    with pytest.raises(InputError, match=r"no place of grid reaches the fidelity 0\.99: the best has 0"):
        plan_layout(CHAIN, snapshot, min_fidelity=0.99)
    assert plan_layout(CHAIN, snapshot, min_fidelity=best - 1e-6).n_blocks >= 1


def test_a_penalty_keeps_blocks_apart_where_there_is_room():
    snapshot = grid_chip(5, 6)
    close = plan_layout(CHAIN, snapshot, max_blocks=3, crosstalk_penalty=0.0)
    apart = plan_layout(CHAIN, snapshot, max_blocks=3, crosstalk_penalty=1.0)
    assert apart.n_blocks == close.n_blocks == 3
    assert len(apart.neighbours) <= len(close.neighbours)
    assert len(apart.neighbours) == 0


def test_exact_is_proven_and_no_worse():
    snapshot = grid_chip(4, 5, live_share=0.75, seed=6)
    greedy = plan_layout(CHAIN, snapshot, restarts=1)
    exact = plan_layout(CHAIN, snapshot, solver="exact")
    assert exact.proven
    assert not greedy.proven
    assert exact.n_blocks >= greedy.n_blocks


def test_a_66_qubit_chip_holds_twelve_chains_and_seven_with_a_buffer():
    snapshot = load_chip("wukong-72")
    plain = plan_layout(CHAIN, snapshot, restarts=2)
    assert plain.n_blocks >= 12
    assert 1000 / plain.n_circuits(1000) >= 8
    assert plan_layout(CHAIN, snapshot, buffer=1, restarts=2).n_blocks >= 7
    assert plan_layout(qtha_block(4, 1), snapshot, restarts=2).n_blocks >= 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buffer": -1}, "buffer must be a whole number of at least 0"),
        ({"buffer": 0.5}, "buffer"),
        ({"max_blocks": 0}, "max_blocks must be a whole number of at least 1"),
        ({"min_fidelity": 1.5}, "min_fidelity must lie between 0 and 1"),
        ({"min_fidelity": math.nan}, "min_fidelity"),
        ({"crosstalk_penalty": -0.1}, "crosstalk_penalty must be 0 or more"),
        ({"crosstalk_penalty": math.inf}, "crosstalk_penalty"),
        ({"restarts": 0}, "restarts must be a whole number of at least 1"),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"solver": "magic"}, "there is no solver 'magic'"),
    ],
)
def test_bad_arguments_are_named(settings, message):
    with pytest.raises(InputError, match=message):
        plan_layout(CHAIN, grid_chip(2, 2), **settings)
