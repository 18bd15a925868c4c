r"""Where the wires of a circuit stand on a small graph, and the swaps that bring its interactions onto edges.

Interactions are done as soon as their wires are neighbours; what is searched for is a first placement and a series of
swaps with as few CZ gates as possible. A swap costs

    1 CZ more    right after an interaction of the same pair (ZZ·SWAP takes 3 CZ, CZ·SWAP takes 2),
    2            into a place where no wire is (a qubit in |0>),
    3            else.

Interactions of a segment commute, so "right after" holds for any of them that is still open: none of its wires has
been swapped since, or has gone on to a later segment. Up to six wires the search is A* from all placements at once,
with the longest way still to go as its lower bound; beyond, or if that takes too long, a beam of promising states.

Paper (the look-ahead of the beam): Li, Ding and Xie, "Tackling the qubit mapping problem for NISQ-era quantum
devices", arXiv 1809.02573.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qpeft.chips.lowering import Interaction, Lowered

_EXPANSIONS = 4000
_SOLUTIONS = 6
_BEAM = 24
_PLACEMENTS = 50_000
_AHEAD = 8

State = tuple[tuple[int, ...], int, int]
"""Place of every wire, and as masks: interactions done, interactions open to a merged swap."""


@dataclass(frozen=True)
class Swap:
    """A swap of two places.

    Args:
        places: The pair.
        merged: Interaction that it is merged with, the last before it on this pair; else ``None``.
    """

    places: tuple[int, int]
    merged: int | None


@dataclass(frozen=True)
class Route:
    """A solution.

    Args:
        start: Place of every wire in the beginning.
        steps: Numbers of interactions and swaps, in order. One that is merged into a swap stands there alone.
        extra: CZ gates beyond those of the interactions.
    """

    start: tuple[int, ...]
    steps: tuple[int | Swap, ...]
    extra: int


class _Problem:
    def __init__(self, lowered: Lowered, n_places: int, edges: Iterable[tuple[int, int]]) -> None:
        self.interactions = lowered.interactions
        self.n_wires = len(lowered.runs)
        self.n_places = n_places
        self.edges = sorted({(min(edge), max(edge)) for edge in edges})
        self.distance = _distances(n_places, self.edges)
        self.all = (1 << len(self.interactions)) - 1
        touching = [0] * self.n_wires
        for number, interaction in enumerate(self.interactions):
            for wire in interaction.wires:
                touching[wire] |= 1 << number
        self.touching = touching
        self.needs = [self._earlier(interaction) for interaction in self.interactions]

    def _earlier(self, interaction: Interaction) -> int:
        """Interactions in earlier segments of its wires: they come first, and doing it closes them."""
        mask = 0
        for wire in interaction.wires:
            mine = interaction.segment_of(wire)
            for number, other in enumerate(self.interactions):
                if wire in other.wires and other.segment_of(wire) < mine:
                    mask |= 1 << number
        return mask

    def advance(self, places: tuple[int, ...], done: int, opened: int) -> tuple[int, int, list[int]]:
        """Do all that can be done without a swap."""
        steps: list[int] = []
        going = True
        while going:
            going = False
            for number, interaction in enumerate(self.interactions):
                bit = 1 << number
                a, b = interaction.wires
                if done & bit or self.needs[number] & ~done or self.distance[places[a]][places[b]] != 1:
                    continue
                done |= bit
                opened = (opened & ~self.needs[number]) | bit
                steps.append(number)
                going = True
        return done, opened, steps

    def swaps(self, state: State) -> Iterator[tuple[int, tuple[int, int], int | None, State]]:
        """Cost, places, merged interaction and next state (before advancing) of every useful swap."""
        places, done, opened = state
        wire_at = {place: wire for wire, place in enumerate(places)}
        front = {wire for number in self.front(done) for wire in self.interactions[number].wires}
        for p, q in self.edges:
            a, b = wire_at.get(p), wire_at.get(q)
            if a not in front and b not in front:
                continue
            moved = list(places)
            shut, merged = 0, None
            if a is not None:
                moved[a] = q
                shut |= self.touching[a]
            if b is not None:
                moved[b] = p
                shut |= self.touching[b]
            if a is not None and b is not None:
                common = opened & self.touching[a] & self.touching[b]
                merged = common.bit_length() - 1 if common else None
                cost = 3 if merged is None else 1
            else:
                cost = 2
            yield cost, (p, q), merged, (tuple(moved), done, opened & ~shut)

    def front(self, done: int) -> list[int]:
        """Interactions that wait for nothing but a swap."""
        return [number for number, needs in enumerate(self.needs) if not done >> number & 1 and not needs & ~done]

    def remaining(self, places: tuple[int, ...], done: int) -> int:
        """Lower bound of the swaps still needed: every swap shortens a way by one at most."""
        ways = (
            self.distance[places[i.wires[0]]][places[i.wires[1]]]
            for number, i in enumerate(self.interactions)
            if not done >> number & 1
        )
        return max(ways, default=1) - 1

    def outlook(self, places: tuple[int, ...], done: int) -> float:
        """How far the next interactions are from done, the front most of all."""
        left = [number for number in range(len(self.interactions)) if not done >> number & 1]
        front = set(self.front(done))
        near = sorted(left, key=lambda number: number not in front)[: len(front) + _AHEAD]
        total = 0.0
        for number in near:
            a, b = self.interactions[number].wires
            total += (self.distance[places[a]][places[b]] - 1) * (1.0 if number in front else 0.4)
        return total + 0.01 * len(left)

    def begin(self, start: tuple[int, ...]) -> tuple[State, list[int]]:
        """The state after all that can be done at once from a placement, and what was done."""
        done, opened, steps = self.advance(start, 0, 0)
        return (start, done, opened), steps


def _distances(n: int, edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    far = n * n
    distance = np.full((n, n), far)
    np.fill_diagonal(distance, 0)
    for a, b in edges:
        distance[a, b] = distance[b, a] = 1
    for via in range(n):
        distance = np.minimum(distance, distance[:, via : via + 1] + distance[via : via + 1, :])
    return [[int(value) for value in row] for row in distance]


Trace = tuple["Trace | None", tuple[int | Swap, ...]]


def _unfold(trace: Trace | None) -> list[int | Swap]:
    parts: list[tuple[int | Swap, ...]] = []
    while trace is not None:
        trace, steps = trace
        parts.append(steps)
    return [step for part in reversed(parts) for step in part]


def _route(start: tuple[int, ...], trace: Trace, extra: int) -> Route:
    steps = _unfold(trace)
    merged = {step.merged for step in steps if isinstance(step, Swap)}
    return Route(start, tuple(step for step in steps if step not in merged), extra)


def routes(lowered: Lowered, n_places: int, edges: Iterable[tuple[int, int]]) -> list[Route]:
    """Good routes of a circuit on a connected graph, all with the fewest extra CZ gates that were found.

    Args:
        lowered: The circuit; at most ``n_places`` wires.
        n_places: Vertices of the graph.
        edges: Its edges.
    """
    problem = _Problem(lowered, n_places, edges)
    starts = _placements(problem)
    found = _exact(problem, starts) if problem.n_wires <= 6 else []
    return found or _beam(problem, starts)


def _placements(problem: _Problem) -> list[tuple[int, ...]]:
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
    return [tuple(int(place) for place in table[row]) for row in order[:_EXPANSIONS]]


def _exact(problem: _Problem, starts: Sequence[tuple[int, ...]]) -> list[Route]:
    """A* for the fewest CZ gates; empty where it takes too long."""
    count = itertools.count()
    heap: list[tuple[int, int, int, int, State, tuple[int, ...], Trace]] = []
    for start in starts:
        state, steps = problem.begin(start)
        bound = problem.remaining(start, state[1])
        heapq.heappush(heap, (bound, 0, next(count), 0, state, start, (None, tuple(steps))))
    best: dict[State, int] = {}
    found: list[Route] = []
    expansions = 0
    while heap and len(found) < _SOLUTIONS:
        bound, swaps, _, cost, state, start, trace = heapq.heappop(heap)
        if found and bound > found[0].extra:
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
        for price, pair, merged, (places, done, opened) in problem.swaps(state):
            done, opened, steps = problem.advance(places, done, opened)
            following = (places, done, opened)
            total = cost + price
            if best.get(following, total + 1) <= total:
                continue
            ahead = total + problem.remaining(places, done)
            step: tuple[int | Swap, ...] = (Swap(pair, merged), *steps)
            heapq.heappush(heap, (ahead, swaps + 1, next(count), total, following, start, (trace, step)))
    return found


def _beam(problem: _Problem, starts: Sequence[tuple[int, ...]]) -> list[Route]:
    """The most promising states, one swap after the other."""
    level: list[tuple[float, int, State, tuple[int, ...], Trace]] = []
    for start in starts:
        state, steps = problem.begin(start)
        level.append((problem.outlook(start, state[1]), 0, state, start, (None, tuple(steps))))
    level = sorted(level, key=lambda entry: entry[0])[:_BEAM]
    found: list[Route] = []
    seen: set[State] = set()
    stuck = 0
    while level:
        for _, cost, state, start, trace in level:
            if state[1] == problem.all:
                found.append(_route(start, trace, cost))
        if found:
            least = min(route.extra for route in found)
            return [route for route in found if route.extra == least][:_SOLUTIONS]
        following: dict[State, tuple[float, int, State, tuple[int, ...], Trace]] = {}
        progress = max(bin(entry[2][1]).count("1") for entry in level)
        for _, cost, state, start, trace in level:
            for price, pair, merged, (places, done, opened) in problem.swaps(state):
                done, opened, steps = problem.advance(places, done, opened)
                after = (places, done, opened)
                if after in seen:
                    continue
                total = cost + price
                score = total + 2.0 * problem.outlook(places, done)
                if after not in following or following[after][0] > score:
                    step: tuple[int | Swap, ...] = (Swap(pair, merged), *steps)
                    following[after] = (score, total, after, start, (trace, step))
        ranked = sorted(following.values(), key=lambda entry: entry[0])[:_BEAM]
        stuck = 0 if ranked and max(bin(entry[2][1]).count("1") for entry in ranked) > progress else stuck + 1
        if not ranked or stuck > 2 * problem.n_places:
            return [_walk(problem, level[0])]
        seen.update(entry[2] for entry in ranked)
        level = ranked
    return found


def _walk(problem: _Problem, entry: tuple[float, int, State, tuple[int, ...], Trace]) -> Route:
    """Finish from a state without looking ahead: bring the first waiting pair together, then the next."""
    _, cost, state, start, trace = entry
    while state[1] != problem.all:
        number = problem.front(state[1])[0]
        a, b = problem.interactions[number].wires
        way = problem.distance[state[0][a]][state[0][b]]
        for price, pair, merged, (places, done, opened) in problem.swaps(state):
            if problem.distance[places[a]][places[b]] < way:
                done, opened, steps = problem.advance(places, done, opened)
                state, cost, trace = (places, done, opened), cost + price, (trace, (Swap(pair, merged), *steps))
                break
    return _route(start, trace, cost)
