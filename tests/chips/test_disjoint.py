"""Choosing places: against every possible choice on small problems."""

import itertools
import sys

import numpy
import pytest
from grid_chips import grid_chip

from qpeft.chips.chip_map import distances
from qpeft.chips.disjoint import Places, choose_exactly, choose_greedily
from qpeft.chips.regions import live_graph
from qpeft.chips.shapes import connected_sets, vertices
from qpeft.errors import MissingDependencyError


def small_problem(seed, buffer=0, penalty=0.0, most=99, size=2, rows=3, columns=3):
    snapshot = grid_chip(rows, columns, live_share=0.8, seed=seed)
    sets = [vertices(mask) for mask in connected_sets(live_graph(snapshot), size, 1000)]
    members = numpy.zeros((len(sets), rows * columns), dtype=numpy.float32)
    for place, qubits in enumerate(sets):
        members[place, list(qubits)] = 1
    values = -numpy.random.default_rng(seed).uniform(0.1, 1.0, len(sets))
    couplers = numpy.array([coupler.qubits for coupler in snapshot.couplers])
    return Places(members, values, distances(snapshot), couplers, buffer, penalty, most)


def fits(places, chosen):
    qubits = [numpy.flatnonzero(places.members[place]) for place in chosen]
    return all(places.distance[numpy.ix_(a, b)].min() > places.buffer for a, b in itertools.combinations(qubits, 2))


def brute_force(places):
    """Merit of the best choice, by trying them all."""
    best = (0, 0.0)

    def extend(chosen, first):
        nonlocal best
        best = max(best, places.merit(chosen))
        if len(chosen) < places.most:
            for place in range(first, len(places.values)):
                if fits(places, [*chosen, place]):
                    extend([*chosen, place], place + 1)

    extend([], 0)
    return best


CASES = [
    {"seed": 0},
    {"seed": 1, "size": 3, "rows": 3, "columns": 4},
    {"seed": 2, "buffer": 1, "columns": 4},
    {"seed": 3, "buffer": 2, "columns": 5},
    {"seed": 4, "penalty": 0.3},
    {"seed": 5, "penalty": 2.0, "most": 2},
    {"seed": 6, "most": 2},
    {"seed": 7, "size": 1, "penalty": 0.5},
    {"seed": 8, "size": 1, "buffer": 1},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_both_solvers_find_the_best_choice_of_small_problems(case):
    places = small_problem(**case)
    count, value = brute_force(places)
    assert count > 0
    greedy = choose_greedily(places, restarts=2, seed=0)
    exact, proven = choose_exactly(places, at_least=len(greedy), seconds=20)
    assert proven
    for chosen in (exact, greedy):
        assert fits(places, chosen)
        assert places.merit(chosen) == (count, pytest.approx(value))


def test_merit_counts_couplers_between_different_places_alone():
    snapshot = grid_chip(2, 2)
    members = numpy.array([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=numpy.float32)
    couplers = numpy.array([coupler.qubits for coupler in snapshot.couplers])
    places = Places(members, numpy.array([-1.0, -2.0]), distances(snapshot), couplers, 0, 0.25, 9)
    assert places.merit([0]) == (1, -1.0)
    assert places.merit([0, 1]) == (2, -3.0 - 2 * 0.25)
    assert places.merit([]) == (0, 0.0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("buffer", [0, 1])
def test_exact_is_at_least_as_good_as_greedy(seed, buffer):
    places = small_problem(seed, buffer=buffer, size=4, rows=5, columns=5, penalty=0.01)
    greedy = choose_greedily(places, restarts=1, seed=seed)
    exact, proven = choose_exactly(places, at_least=len(greedy), seconds=20)
    assert proven
    assert fits(places, greedy)
    assert fits(places, exact)
    assert places.merit(exact) >= (len(greedy), places.merit(greedy)[1] - 1e-9)


def test_greedy_repeats_itself():
    places = small_problem(0, size=3, rows=5, columns=5)
    assert choose_greedily(places, 2, seed=3) == choose_greedily(places, 2, seed=3)


def test_without_scipy_the_exact_solver_says_how_to_get_it(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(MissingDependencyError, match=r"qpeft\[packing\]"):
        choose_exactly(small_problem(0), at_least=0, seconds=1)
