r"""What can be done with the wires of a circuit on a small graph, and how many CZ gates it takes.

    interaction    its own CZ gates; with the one before it on the same pair, if both wires do nothing else between
                   them but one-qubit gates, 2 CZ for both
    swap           1 CZ more right after an interaction of the same pair (ZZ·SWAP takes 3 CZ, CZ·SWAP takes 2),
                   2 into a place where no wire is (a qubit in |0>), 3 else

Interactions of a segment commute, so "before it" and "right after" hold for any of them that is still *open*: none of
its wires has been swapped since, or has gone on to a later segment. What closes nothing is done at once; what does is
a choice. :mod:`qpeft.chips.search` makes the choices.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from qpeft.chips.lowering import Interaction, Lowered

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


class Problem:
    """A circuit and a graph.

    Args:
        lowered: The circuit; at most ``n_places`` wires.
        n_places: Vertices of the graph.
        edges: Its edges; the graph is connected.
    """

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
        self.joinable = sum(1 << number for number, before in enumerate(self.joins) if before is not None)
        self.doubles = sum(1 << number for number, one in enumerate(self.interactions) if one.n_cz == 2)
        pairs: dict[tuple[int, int], int] = {}
        passed: dict[tuple[int, int], int] = {}  # wire, boundary before a segment -> interactions that come after it
        for number, interaction in enumerate(self.interactions):
            pairs[interaction.wires] = pairs.get(interaction.wires, 0) | 1 << number
            for wire in interaction.wires:
                for segment in range(1, interaction.segment_of(wire) + 1):
                    passed[wire, segment] = passed.get((wire, segment), 0) | 1 << number
        self.pairs = list(pairs.items())
        self.passed = list(passed.values())

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
        left = self.all & ~done
        while left:
            number = (left & -left).bit_length() - 1
            left &= left - 1
            if not self.needs[number] & ~done:
                a, b = self.interactions[number].wires
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
        left = self.all & ~done
        longest = 1
        for (a, b), mask in self.pairs:
            if left & mask:
                longest = max(longest, self.distance[places[a]][places[b]])
        joins = (left & self.joinable).bit_count()
        free = len([0 for passed in self.passed if not done & passed])
        cz = left.bit_count() + (left & self.doubles).bit_count()
        return cz - 2 * min(joins, free // 2) + longest - 1

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
