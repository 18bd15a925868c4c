r"""Steps of a routed circuit as a graph of what must come before what; interactions of one pair join where they can.

Two ZZ on one pair with one-qubit gates between them take two CZ, not four. One-qubit gates are RZ RY RZ, and RZ moves
out of the way, so what remains lies in the group that ZZ and the two RY generate. With

    A± = (Y⊗1 ± 1⊗Y) / 2,   B± = (Z⊗Z ∓ X⊗X) / 2      (A+, B+ commute with A-, B-; each pair makes an SU(2))

    ZZ(φ) = exp(-i φ (B+ + B-) / 2),      RY(α)⊗RY(β) = exp(-i ((α + β) A+ + (α - β) A-) / 2)

the product ZZ(φ') RY(α)⊗RY(β) ZZ(φ) is a product of three turns in each of the two SU(2), which becomes three others,
about A, B, A: again RY⊗RY on the outside, and between them exp(-i (u Z⊗Z + v X⊗X) / 2), which two CZ do. (The same
count follows from Shende, Bullock and Markov, arXiv quant-ph/0308045; the formulas here hold for a whole batch.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qpeft.chips.lowering import Interaction, Lowered
from qpeft.chips.routing import Route, Swap


@dataclass(frozen=True)
class Step:
    """An interaction, a swap, or both in one.

    Args:
        places: Where it happens.
        wires: Which wires stand there before it, ``None`` for none.
        interaction: The interaction, if any.
        swaps: Whether the wires change places.
        joined: An earlier interaction of the pair that is done in one with this one.
    """

    places: tuple[int, int]
    wires: tuple[int | None, int | None]
    interaction: Interaction | None
    swaps: bool
    joined: Interaction | None = None

    @property
    def n_cz(self) -> int:
        """CZ gates, one after the other."""
        if self.interaction is None:
            return 2 if None in self.wires else 3
        return (2 if self.joined else self.interaction.n_cz) + self.swaps

    def commutes_with(self, other: Step) -> bool:
        """Whether the order of the two does not matter."""
        if self.swaps or other.swaps or self.interaction is None or other.interaction is None:
            return not set(self.places) & set(other.places)
        shared = set(self.interaction.wires) & set(other.interaction.wires)
        return all(self.interaction.segment_of(w) == other.interaction.segment_of(w) for w in shared)


def steps_of(lowered: Lowered, route: Route) -> tuple[list[Step], list[int]]:
    """The steps of a route, and the place of every wire after them."""
    places = list(route.start)
    steps = []
    for step in route.steps:
        if isinstance(step, Swap):
            p, q = step.places
            at = {place: wire for wire, place in enumerate(places)}
            merged = None if step.merged is None else lowered.interactions[step.merged]
            steps.append(Step((p, q), (at.get(p), at.get(q)), merged, True))
            for wire, goal in ((at.get(p), q), (at.get(q), p)):
                if wire is not None:
                    places[wire] = goal
        else:
            interaction = lowered.interactions[step]
            a, b = interaction.wires
            steps.append(Step((places[a], places[b]), (a, b), interaction, False))
    return steps, places


class Steps:
    """Steps with what must come before each of them."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = dict(enumerate(steps))
        self.before: dict[int, set[int]] = {
            late: {early for early in range(late) if not steps[early].commutes_with(second)}
            for late, second in enumerate(steps)
        }

    def fused(self) -> Steps:
        """Join what can be joined, in two orders, and keep the better result."""
        forward, backward = self._copy(), self._copy()
        for graph, direction in ((forward, 1), (backward, -1)):
            while (pair := graph._next_pair(direction)) is not None:
                graph._join(*pair)
        return min((forward, backward), key=lambda graph: sum(step.n_cz for step in graph.steps.values()))

    def _copy(self) -> Steps:
        copy = Steps(())
        copy.steps = dict(self.steps)
        copy.before = {number: set(before) for number, before in self.before.items()}
        return copy

    def _next_pair(self, direction: int) -> tuple[int, int] | None:
        ancestors = self._ancestors()
        for late in sorted(self.steps, key=lambda number: direction * number):
            second = self.steps[late]
            if second.interaction is None or second.joined:
                continue
            for early in sorted(self.before[late], reverse=True):
                first = self.steps[early]
                if first.interaction is None or first.joined or set(first.places) != set(second.places):
                    continue
                saved = first.interaction.n_cz + second.interaction.n_cz - 2
                between = any(early in ancestors[number] for number in ancestors[late])
                if saved > 0 and not between:
                    return early, late
        return None

    def _ancestors(self) -> dict[int, set[int]]:
        found: dict[int, set[int]] = {}

        def of(number: int) -> set[int]:
            if number not in found:
                found[number] = set(self.before[number]).union(*(of(other) for other in self.before[number]))
            return found[number]

        for number in self.steps:
            of(number)
        return found

    def _join(self, early: int, late: int) -> None:
        first, second = self.steps.pop(early), self.steps[late]
        # ZZ' · (one-qubit gates) · SWAP · ZZ is SWAP after the same with the gates on the other place.
        self.steps[late] = replace(
            first, interaction=second.interaction, joined=first.interaction, swaps=first.swaps != second.swaps
        )
        self.before[late] = (self.before[late] | self.before.pop(early)) - {early, late}
        for number, before in self.before.items():
            if early in before:
                before.discard(early)
                if number != late:
                    before.add(late)

    def in_time(self, grow: bool) -> list[Step]:
        """The steps in an order in which those on different places overlap: a list schedule by longest tail.

        Args:
            grow: Whether to prefer interactions that bring in one wire that has not interacted yet: one CZ is enough
                for these, and more of them come about.
        """
        tail: dict[int, int] = {}

        def tail_of(number: int) -> int:
            if number not in tail:
                after = (other for other, before in self.before.items() if number in before)
                tail[number] = self.steps[number].n_cz + max(map(tail_of, after), default=0)
            return tail[number]

        free: dict[int, int] = {}  # place -> when it is free again, in CZ gates
        waiting = dict(self.before)
        ordered: list[Step] = []
        while waiting:

            def urgency(number: int) -> tuple[bool, int, int, int]:
                places = self.steps[number].places
                grows = sum(place in free for place in places) == 1
                return grow and not grows, max(free.get(place, 0) for place in places), -tail_of(number), number

            number = min((n for n, before in waiting.items() if not before & waiting.keys()), key=urgency)
            del waiting[number]
            step = self.steps[number]
            end = max(free.get(place, 0) for place in step.places) + step.n_cz
            free.update(dict.fromkeys(step.places, end))
            ordered.append(step)
        return ordered
