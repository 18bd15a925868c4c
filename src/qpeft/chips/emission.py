r"""From a routed circuit to native gates: RX pulses of 90° or 180°, RZ, and CZ.

An interaction or a swap becomes Hadamards and CZ gates, with ``t`` the wire that carries the turns:

    ZZ(φ)         H_t · CZ · RX_t(φ) · CZ · H_t
    SWAP          H_t · CZ · H_t H_c · CZ · H_c H_t · CZ · H_t
    SWAP · ZZ(φ)  H_t · CZ · H_c H_t RZ_t(φ)  · CZ · H_c H_t · CZ · H_t        (first gate at the right)
    SWAP · CZ     H_t H_c · CZ · H_t H_c · CZ · H_t H_c

Hadamards melt into the runs beside them, so a wire is best the target of all its interactions in a segment, or of
none: wires are coloured in two colours where the graph of interactions allows it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from qpeft.chips.angles import NativeAngles
from qpeft.chips.lowering import Interaction, Lowered
from qpeft.chips.pulses import Event, write_pulses
from qpeft.chips.routing import Route, Swap
from qpeft.chips.turns import HADAMARD, Affine, Turn, is_diagonal, rx, simplify, tilts, z
from qpeft.circuits import Circuit, Observable

_COMPONENTS = 3  # up to so many parts of the graph of interactions, both colourings are tried

Vertex = tuple[int, int]
"""A wire and the number of a segment."""


@dataclass(frozen=True, eq=False)
class Native:
    """A circuit on the places of a graph.

    Args:
        circuit: RX, RZ and CZ, whose wires are places, and the observables on the places that carry them.
        output: Place that carries each qubit of the original circuit in the end.
        bind: Native angles of inputs and weights.
    """

    circuit: Circuit
    output: tuple[int, ...]
    bind: NativeAngles

    @property
    def n_cz(self) -> int:
        """CZ gates."""
        return sum(gate.name == "CZ" for gate in self.circuit.gates)


def measured_on(circuit: Circuit, output: Sequence[int]) -> tuple[Observable, ...]:
    """The observables of a circuit whose qubit ``i`` is carried by wire ``output[i]``."""
    texts = (" ".join(f"Z{output[wire]}" for _, wire in observable.paulis) for observable in circuit.observables)
    return tuple(map(Observable, texts))


@dataclass(frozen=True)
class _Step:
    """An interaction, a swap, or both in one, with where it happens and which wires stand there (``None``: none)."""

    places: tuple[int, int]
    wires: tuple[int | None, int | None]
    interaction: Interaction | None
    swaps: bool

    def commutes_with(self, other: _Step) -> bool:
        if self.swaps or other.swaps or self.interaction is None or other.interaction is None:
            return not set(self.places) & set(other.places)
        shared = set(self.interaction.wires) & set(other.interaction.wires)
        return all(self.interaction.segment_of(w) == other.interaction.segment_of(w) for w in shared)

    @property
    def length(self) -> int:
        """CZ gates one after the other."""
        if self.interaction is None:
            return 3
        return self.interaction.n_cz + self.swaps


def emit(circuit: Circuit, lowered: Lowered, route: Route, n_places: int) -> Native:
    """Native gates of a route, with the fewest pulses of the colourings that are tried."""
    steps, final = _steps(lowered, route)
    steps = _early(steps)
    written = [_Writer(lowered, route, targets).write(steps, final) for targets in _colourings(lowered)]
    events = min(written, key=_pulses_of_events)
    gates, bind = write_pulses(events, circuit.n_inputs, circuit.n_weights)
    output = tuple(final[wire] for wire in lowered.output)
    return Native(Circuit(n_places, gates, measured_on(circuit, output)), output, bind)


def _steps(lowered: Lowered, route: Route) -> tuple[list[_Step], list[int]]:
    """The steps of a route with their places, and where the wires are after them."""
    places = list(route.start)
    steps = []
    for step in route.steps:
        if isinstance(step, Swap):
            p, q = step.places
            at = {place: wire for wire, place in enumerate(places)}
            merged = None if step.merged is None else lowered.interactions[step.merged]
            steps.append(_Step((p, q), (at.get(p), at.get(q)), merged, True))
            for wire, goal in ((at.get(p), q), (at.get(q), p)):
                if wire is not None:
                    places[wire] = goal
        else:
            interaction = lowered.interactions[step]
            a, b = interaction.wires
            steps.append(_Step((places[a], places[b]), (a, b), interaction, False))
    return steps, places


def _early(steps: Sequence[_Step]) -> list[_Step]:
    """Reorder what commutes so that steps on different places overlap in time: a list schedule by longest tail."""
    after: list[list[int]] = [[] for _ in steps]
    missing = [0] * len(steps)
    for late, second in enumerate(steps):
        for early, first in enumerate(steps[:late]):
            if not first.commutes_with(second):
                after[early].append(late)
                missing[late] += 1
    tail = [0] * len(steps)
    load: dict[int, int] = {}  # CZ gates still to come on a place
    for number in reversed(range(len(steps))):
        step = steps[number]
        for place in step.places:
            load[place] = load.get(place, 0) + step.length
        tail[number] = step.length + max((tail[late] for late in after[number]), default=0)
    free: dict[int, int] = {}
    ready = [number for number, count in enumerate(missing) if not count]
    ordered = []
    while ready:

        def urgency(number: int) -> tuple[int, int, int, int]:
            step = steps[number]
            begin = max(free.get(place, 0) for place in step.places)
            return begin, -tail[number], -sum(load[place] for place in step.places), number

        number = min(ready, key=urgency)
        ready.remove(number)
        step = steps[number]
        ordered.append(step)
        end = max(free.get(place, 0) for place in step.places) + step.length
        for place in step.places:
            free[place] = end
            load[place] -= step.length
        for late in after[number]:
            missing[late] -= 1
            if not missing[late]:
                ready.append(late)
    return ordered


def _colourings(lowered: Lowered) -> list[set[Vertex]]:
    """Sets of segments whose wires are targets, so that as many interactions as may be have one target."""
    neighbours: dict[Vertex, list[Vertex]] = {}
    for interaction in lowered.interactions:
        first, second = zip(interaction.wires, interaction.segments, strict=True)
        neighbours.setdefault(first, []).append(second)
        neighbours.setdefault(second, []).append(first)
    colour: dict[Vertex, int] = {}
    parts: list[list[Vertex]] = []
    for start in neighbours:
        if start in colour:
            continue
        colour[start] = 0
        part = [start]
        for vertex in part:  # grows while it is read
            for other in neighbours[vertex]:
                if other not in colour:
                    colour[other] = 1 - colour[vertex]
                    part.append(other)
        parts.append(part)
    flips = itertools.product((0, 1), repeat=len(parts)) if len(parts) <= _COMPONENTS else [(0,) * len(parts)]
    return [
        {vertex for part, turned in zip(parts, flip, strict=True) for vertex in part if colour[vertex] != turned}
        for flip in flips
    ]


def _pulses_of_events(events: Sequence[Event]) -> int:
    return sum(min(2, tilts(event[1])) for event in events if isinstance(event[1], list))


class _Writer:
    """Writes runs and CZ gates place by place; open runs wait for the next CZ on their place."""

    def __init__(self, lowered: Lowered, route: Route, targets: set[Vertex]) -> None:
        self.lowered = lowered
        self.targets = targets
        self.position = list(route.start)
        self.next_run = [0] * len(lowered.runs)
        self.open: dict[int, list[Turn]] = {}
        self.events: list[Event | None] = []
        self.last: dict[int, int] = {}  # place -> number of the last CZ there
        self.runs_before: dict[int, dict[int, int]] = {}  # number of a CZ -> place -> number of the run before it

    def write(self, steps: Sequence[_Step], final: Sequence[int]) -> list[Event]:
        for step in steps:
            self._step(step)
        for wire, place in enumerate(final):
            self._advance(wire, place, len(self.lowered.runs[wire]) - 1)
        for place in sorted(self.open):
            self._close(place)
        return [event for event in self.events if event is not None]

    def _advance(self, wire: int, place: int, segment: int) -> None:
        while self.next_run[wire] <= segment:
            self._turn(place, *self.lowered.runs[wire][self.next_run[wire]])
            self.next_run[wire] += 1

    def _turn(self, place: int, *turns: Turn) -> None:
        self.open.setdefault(place, []).extend(turns)

    def _close(self, place: int) -> int | None:
        run = simplify(self.open.pop(place, []))
        if not run:
            return None
        self.events.append((place, run))
        return len(self.events) - 1

    def _cz(self, p: int, q: int) -> None:
        before = self.last.get(p)
        if (
            before is not None
            and before == self.last.get(q)
            and all(is_diagonal(simplify(self.open.get(place, []))) for place in (p, q))
        ):
            self._undo(before, p, q)
            return
        runs = {place: number for place in (p, q) if (number := self._close(place)) is not None}
        self.events.append((p, q))
        self.last[p] = self.last[q] = len(self.events) - 1
        self.runs_before[len(self.events) - 1] = runs

    def _undo(self, number: int, p: int, q: int) -> None:
        """Take back a CZ that would now be followed by another one: together they are nothing."""
        self.events[number] = None
        for place in (p, q):
            run = self.runs_before[number].get(place)
            if run is not None:
                event = self.events[run]
                assert event is not None
                self.events[run] = None
                self.open[place] = [*event[1], *self.open.get(place, [])]  # type: ignore[misc]
            earlier = [n for n in range(number) if self._is_cz_on(n, place)]
            self.last.pop(place)
            if earlier:
                self.last[place] = earlier[-1]

    def _is_cz_on(self, number: int, place: int) -> bool:
        event = self.events[number]
        return event is not None and isinstance(event[1], int) and place in event

    def _step(self, step: _Step) -> None:
        p, q = step.places
        if step.interaction is not None:
            at = dict(zip(step.wires, step.places, strict=True))
            for wire in step.interaction.wires:
                self._advance(wire, at[wire], step.interaction.segment_of(wire))
            c, t = p, q
            wire = step.wires[0]
            if wire is not None and (wire, step.interaction.segment_of(wire)) in self.targets:
                c, t = q, p
            self._interact(step.interaction.angle, c, t, step.swaps)
        elif None in step.wires:
            c, t = (p, q) if step.wires[1] is None else (q, p)  # CNOT to the empty place, CNOT back
            for place in (t, c):
                self._around(place, c, t)
        else:
            c, t = (p, q) if self._gain(q) <= self._gain(p) else (q, p)
            for place in (t, c, t):
                self._around(place, c, t)

    def _gain(self, place: int) -> int:
        """Pulses that a Hadamard would add to the open run of a place."""
        run = self.open.get(place, [])
        return tilts(simplify([*run, *HADAMARD])) - tilts(simplify(run))

    def _around(self, place: int, c: int, t: int) -> None:
        self._turn(place, *HADAMARD)
        self._cz(c, t)
        self._turn(place, *HADAMARD)

    def _interact(self, angle: Affine | None, c: int, t: int, swaps: bool) -> None:
        if angle is None and not swaps:
            self._cz(c, t)
        elif angle is None:
            for _ in range(2):
                self._turn(c, *HADAMARD)
                self._turn(t, *HADAMARD)
                self._cz(c, t)
            self._turn(c, *HADAMARD)
            self._turn(t, *HADAMARD)
        elif not swaps:
            self._turn(t, *HADAMARD)
            self._cz(c, t)
            self._turn(t, *rx(angle))
            self._cz(c, t)
            self._turn(t, *HADAMARD)
        else:
            self._around(t, c, t)
            self._turn(t, z(angle))
            self._around(c, c, t)
            self._around(t, c, t)
