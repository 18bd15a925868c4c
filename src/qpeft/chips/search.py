r"""The placement and the order of interactions and swaps that take the fewest CZ gates.

Up to six wires the search is A* from all placements at once, with a lower bound from the longest way still to go and
from how often two interactions can still be joined. Beyond, or where that takes too long, it is a beam of promising
states, which looks some interactions ahead.

Paper (looking ahead): Li, Ding and Xie, "Tackling the qubit mapping problem for NISQ-era quantum devices", arXiv
1809.02573.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from qpeft.chips.lowering import Lowered
from qpeft.chips.routing import Problem, Route, State, Swap

_EXPANSIONS = 2500
_SOLUTIONS = 4
_STARTS = 2000
_BEAM = 24
_PLACEMENTS = 50_000

Trace = tuple["Trace | None", tuple[int | Swap, ...]]


def _unfold(trace: Trace | None) -> list[int | Swap]:
    parts: list[tuple[int | Swap, ...]] = []
    while trace is not None:
        trace, steps = trace
        parts.append(steps)
    return [step for part in reversed(parts) for step in part]


def _route(start: tuple[int, ...], trace: Trace, cost: int) -> Route:
    steps = _unfold(trace)
    merged = {step.merged for step in steps if isinstance(step, Swap)}
    return Route(start, tuple(step for step in steps if step not in merged), cost)


def routes(lowered: Lowered, n_places: int, edges: Iterable[tuple[int, int]]) -> list[Route]:
    """Good routes of a circuit on a connected graph, all with the fewest CZ gates that were found.

    Args:
        lowered: The circuit; at most ``n_places`` wires.
        n_places: Vertices of the graph.
        edges: Its edges.
    """
    problem = Problem(lowered, n_places, edges)
    starts = _placements(problem)
    found = _exact(problem, starts) if problem.n_wires <= 6 else []
    return found or _beam(problem, starts)


def _placements(problem: Problem) -> list[tuple[int, ...]]:
    """First placements, those with short ways first."""
    n, k = problem.n_wires, problem.n_places
    count = 1
    for factor in range(k, k - n, -1):
        count *= factor
    every: Iterable[tuple[int, ...]] = itertools.permutations(range(k), n)
    if count > _PLACEMENTS:
        random = np.random.default_rng(0)
        every = [tuple(int(p) for p in random.permutation(k)[:n]) for _ in range(_PLACEMENTS // 5)]
    table = np.array(list(every))  # (placements, wires)
    distance = np.array(problem.distance)
    ways = np.zeros(len(table))
    for number, interaction in enumerate(problem.interactions):
        a, b = interaction.wires
        ways += (distance[table[:, a], table[:, b]] - 1) / (1 + number / 8)  # the first matter most
    order = np.argsort(ways, kind="stable")
    return [tuple(int(place) for place in table[row]) for row in order[:_STARTS]]


def _exact(problem: Problem, starts: Sequence[tuple[int, ...]]) -> list[Route]:
    """A* for the fewest CZ gates; empty where it takes too long."""
    count = itertools.count()
    heap: list[tuple[int, int, int, int, State, tuple[int, ...], Trace]] = []
    for start in starts:
        cost, state, steps = problem.begin(start)
        bound = cost + problem.remaining(state)
        heapq.heappush(heap, (bound, -state[1].bit_count(), next(count), cost, state, start, (None, steps)))
    best: dict[State, int] = {}
    found: list[Route] = []
    expansions = 0
    while heap and len(found) < _SOLUTIONS:
        bound, _, _, cost, state, start, trace = heapq.heappop(heap)
        if found and bound > found[0].cost:
            break
        if state[1] == problem.all:
            found.append(_route(start, trace, cost))
            continue
        if best.get(state, cost + 1) <= cost:
            continue
        best[state] = cost
        expansions += 1
        if expansions > _EXPANSIONS:
            break
        for price, after, steps in problem.moves(state):
            total = cost + price
            if best.get(after, total + 1) > total:
                ahead = total + problem.remaining(after)
                entry = (ahead, -after[1].bit_count(), next(count), total, after, start, (trace, steps))
                heapq.heappush(heap, entry)
    return found


Entry = tuple[float, int, State, tuple[int, ...], Trace]


def _beam(problem: Problem, starts: Sequence[tuple[int, ...]]) -> list[Route]:
    """The most promising states, one move after the other."""
    level: list[Entry] = []
    for start in starts:
        cost, state, steps = problem.begin(start)
        level.append(
            (cost + problem.remaining(state) + 2.0 * problem.outlook(state), cost, state, start, (None, steps))
        )
    level = sorted(level, key=lambda entry: entry[0])[:_BEAM]
    found: list[Route] = []
    seen: set[State] = set()
    stuck = 0
    while not found:
        found = [_route(start, trace, cost) for _, cost, state, start, trace in level if state[1] == problem.all]
        following: dict[State, Entry] = {}
        for _, cost, state, start, trace in level:
            for price, after, steps in problem.moves(state):
                if after in seen:
                    continue
                total = cost + price
                score = total + problem.remaining(after) + 2.0 * problem.outlook(after)
                if after not in following or following[after][0] > score:
                    following[after] = (score, total, after, start, (trace, steps))
        ranked = sorted(following.values(), key=lambda entry: entry[0])[:_BEAM]
        stuck = 0 if _progress(ranked) > _progress(level) else stuck + 1
        if not found and (not ranked or stuck > 2 * problem.n_places):
            return [_walk(problem, level[0])]
        seen.update(entry[2] for entry in ranked)
        level = ranked
    least = min(route.cost for route in found)
    return [route for route in found if route.cost == least][:_SOLUTIONS]


def _progress(level: Sequence[Entry]) -> int:
    return max((entry[2][1].bit_count() for entry in level), default=0)


def _walk(problem: Problem, entry: Entry) -> Route:
    """Finish from a state without looking ahead: bring the first waiting pair together, do it, then the next."""
    _, cost, state, start, trace = entry
    while state[1] != problem.all:
        number = problem.front(state[1])[0]
        a, b = problem.interactions[number].wires
        way = problem.distance[state[0][a]][state[0][b]]
        for price, after, steps in problem.moves(state):
            if after[1] >> number & 1 or problem.distance[after[0][a]][after[0][b]] < way:
                state, cost, trace = after, cost + price, (trace, steps)
                break
    return _route(start, trace, cost)
