r"""Where the wires of a circuit stand on a small graph, and the swaps that bring its interactions onto edges.

What is searched for is a first placement and an order of interactions and swaps with as few CZ gates as possible:

    interaction    its own CZ gates; with the one before it on the same pair, if both wires do nothing else between
                   them but one-qubit gates, 2 CZ for both
    swap           1 CZ more right after an interaction of the same pair (ZZ·SWAP takes 3 CZ, CZ·SWAP takes 2),
                   2 into a place where no wire is (a qubit in |0>), 3 else

Interactions of a segment commute, so "before it" and "right after" hold for any of them that is still *open*: none of
its wires has been swapped since, or has gone on to a later segment. What closes nothing is done at once; what does is
a move of the search. Up to six wires that is A* from all placements at once, with a lower bound from the longest way
still to go and from how often two interactions can still be joined; beyond, or if that takes too long, a beam of
promising states.

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

State = tuple[tuple[int, ...], int, int, int]
"""Place of every wire, and as masks: interactions done; of these the open ones; of these the joined ones."""


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
        cost: CZ gates.
    """

    start: tuple[int, ...]
    steps: tuple[int | Swap, ...]
    cost: int


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
        # An interaction can be joined with one of the same pair in the segments just before its own.
        self.joins = [
            next(
                (
                    number
                    for number, other in enumerate(self.interactions)
                    if other.wires == mine.wires and other.segments == (mine.segments[0] - 1, mine.segments[1] - 1)
                ),
                None,
            )
            for mine in self.interactions
        ]
        self.boundaries = [
            (wire, segment) for wire, runs in enumerate(lowered.runs) for segment in range(1, len(runs))
        ]
        self.passed = [
            sum(
                1 << number
                for number, interaction in enumerate(self.interactions)
                if wire in interaction.wires and interaction.segment_of(wire) >= segment
            )
            for wire, segment in self.boundaries
        ]

    def _earlier(self, interaction: Interaction) -> int:
        """Interactions in earlier segments of its wires: they come first, and doing it closes them."""
        mask = 0
        for wire in interaction.wires:
            mine = interaction.segment_of(wire)
            for number, other in enumerate(self.interactions):
                if wire in other.wires and other.segment_of(wire) < mine:
                    mask |= 1 << number
        return mask

    def can(self, state: State) -> Iterator[int]:
        """Interactions that can be done where the wires are."""
        places, done = state[:2]
        for number, interaction in enumerate(self.interactions):
            if not done >> number & 1 and not self.needs[number] & ~done:
                a, b = interaction.wires
                if self.distance[places[a]][places[b]] == 1:
                    yield number

    def do(self, state: State, number: int) -> tuple[int, State]:
        """Cost and next state of an interaction."""
        places, done, opened, joined = state
        bit, cost = 1 << number, self.interactions[number].n_cz
        before = self.joins[number]
        if before is not None and opened >> before & 1 and not joined >> before & 1:
            cost -= max(0, cost + self.interactions[before].n_cz - 2)
            joined |= bit
        opened = (opened & ~self.needs[number]) | bit
        return cost, (places, done | bit, opened, joined & opened)

    def advance(self, state: State) -> tuple[int, State, list[int]]:
        """Do all that closes nothing: cost, next state, interactions."""
        steps: list[int] = []
        total = 0
        going = True
        while going:
            going = False
            for number in self.can(state):
                if not self.needs[number] & state[2]:
                    cost, state = self.do(state, number)
                    total += cost
                    steps.append(number)
                    going = True
                    break
        return total, state, steps

    def moves(self, state: State) -> Iterator[tuple[int, State, tuple[int | Swap, ...]]]:
        """Cost, next state and steps of everything that can be chosen, with what follows by itself."""
        for number in self.can(state):
            cost, after = self.do(state, number)
            more, after, steps = self.advance(after)
            yield cost + more, after, (number, *steps)
        for cost, swap, after in self.swaps(state):
            more, after, steps = self.advance(after)
            yield cost + more, after, (swap, *steps)

    def swaps(self, state: State) -> Iterator[tuple[int, Swap, State]]:
        """Cost, swap and next state of every useful swap."""
        places, done, opened, joined = state
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
            cost = 2
            if a is not None and b is not None:
                common = opened & self.touching[a] & self.touching[b]
                merged = common.bit_length() - 1 if common else None
                cost = 3 if merged is None else 1
            yield cost, Swap((p, q), merged), (tuple(moved), done, opened & ~shut, joined & ~shut)

    def front(self, done: int) -> list[int]:
        """Interactions that wait for nothing but a swap."""
        return [number for number, needs in enumerate(self.needs) if not done >> number & 1 and not needs & ~done]

    def remaining(self, state: State) -> int:
        """Lower bound of the CZ gates still needed.

        Every swap shortens a way by one at most. Every two interactions that are joined use up the boundaries between
        two segments on both of their wires.
        """
        places, done = state[:2]
        least, longest, pairs = 0, 1, 0
        for number, interaction in enumerate(self.interactions):
            if not done >> number & 1:
                a, b = interaction.wires
                least += interaction.n_cz
                longest = max(longest, self.distance[places[a]][places[b]])
                pairs += self.joins[number] is not None
        free = sum(not done & passed for passed in self.passed)
        return least - 2 * min(pairs, free // 2) + longest - 1

    def outlook(self, state: State) -> float:
        """How far the next interactions are from done, the front most of all."""
        places, done = state[:2]
        left = [number for number in range(len(self.interactions)) if not done >> number & 1]
        front = set(self.front(done))
        near = sorted(left, key=lambda number: number not in front)[: len(front) + _AHEAD]
        total = 0.0
        for number in near:
            a, b = self.interactions[number].wires
            total += (self.distance[places[a]][places[b]] - 1) * (1.0 if number in front else 0.4)
        return total + 0.01 * len(left)

    def begin(self, start: tuple[int, ...]) -> tuple[int, State, tuple[int | Swap, ...]]:
        """Cost, state and steps after all that follows by itself from a placement."""
        cost, state, steps = self.advance((start, 0, 0, 0))
        return cost, state, tuple(steps)


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


def _beam(problem: _Problem, starts: Sequence[tuple[int, ...]]) -> list[Route]:
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


def _walk(problem: _Problem, entry: Entry) -> Route:
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
