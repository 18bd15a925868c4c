"""Connected sets and graphs that look alike, against brute force."""

import itertools
import random

import pytest

from qpeft.chips.shapes import components, connected_sets, shape_of, vertices, ways_onto


def random_graph(n, edges, seed):
    draw = random.Random(seed)
    graph = dict.fromkeys(range(n), 0)
    for a, b in draw.sample(list(itertools.combinations(range(n), 2)), edges):
        graph[a] |= 1 << b
        graph[b] |= 1 << a
    return graph


def is_connected(members, graph):
    reached, border = set(), {members[0]}
    while border:
        reached |= border
        border = {v for u in border for v in members if graph[u] >> v & 1} - reached
    return reached == set(members)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("seed", range(3))
def test_connected_sets_are_all_there_and_each_once(size, seed):
    graph = random_graph(9, 12, seed)
    expected = [s for s in itertools.combinations(range(9), size) if is_connected(s, graph)]
    found = [vertices(mask) for mask in connected_sets(graph, size, limit=1000)]
    assert sorted(found) == expected


def test_a_limit_leaves_no_corner_of_the_graph_out():
    side = 10
    graph = dict.fromkeys(range(side * side), 0)
    for q in graph:
        for other in ([q + 1] if (q + 1) % side else []) + ([q + side] if q + side < side * side else []):
            graph[q] |= 1 << other
            graph[other] |= 1 << q
    assert len(connected_sets(graph, 5, limit=100_000)) > 4000
    found = connected_sets(graph, 5, limit=600)
    assert 300 <= len(found) <= 700
    assert len(set(found)) == len(found)
    covered = 0
    for mask in found:
        assert is_connected(vertices(mask), graph)
        covered |= mask
    assert covered == (1 << side * side) - 1


def test_sets_nearly_as_large_as_the_graph_are_found_without_walking_into_every_dead_end():
    side = 5
    graph = dict.fromkeys(range(side * side), 0)
    for q in graph:
        for other in ([q + 1] if (q + 1) % side else []) + ([q + side] if q + side < side * side else []):
            graph[q] |= 1 << other
            graph[other] |= 1 << q
    everything = (1 << side * side) - 1
    assert connected_sets(graph, 25, limit=100) == [everything]
    assert sorted(connected_sets(graph, 24, limit=100)) == sorted(everything ^ (1 << q) for q in graph)
    assert connected_sets(graph, 26, limit=100) == []


def test_components_are_disjoint_and_whole():
    graph = random_graph(12, 8, seed=1)
    parts = components(graph)
    assert sorted(v for part in parts for v in vertices(part)) == list(range(12))
    for part in parts:
        assert is_connected(vertices(part), graph)
        assert all(not graph[v] & ~part for v in vertices(part))
    assert [p.bit_count() for p in parts] == sorted((p.bit_count() for p in parts), reverse=True)


@pytest.mark.parametrize("seed", range(5))
def test_ways_onto_are_the_isomorphisms(seed):
    draw = random.Random(seed)
    graph = random_graph(5, 5, seed)
    shape = shape_of(range(5), graph)
    shuffled = draw.sample(range(5), 5)
    other = shape_of(shuffled, graph)
    expected = [
        way
        for way in itertools.permutations(range(5))
        if all((shape[u] >> v & 1) == (other[way[u]] >> way[v] & 1) for u in range(5) for v in range(5))
    ]
    assert expected
    assert ways_onto(shape, other, most=200) == expected


def test_graphs_that_differ_are_not_laid_onto_each_other():
    path, star = (2, 5, 10, 4), (14, 1, 1, 1)
    assert ways_onto(path, star) == []
    assert len(ways_onto(star, star)) == 6


def test_a_complete_graph_has_too_many_ways_to_list_them_all():
    complete = tuple(255 ^ (1 << v) for v in range(8))
    assert len(ways_onto(complete, complete)) == 48
