r"""From a routed circuit to runs and CZ gates.

An interaction or a swap becomes Hadamards and CZ gates, with ``t`` the wire that carries the turns (first gate at the
right, ``ZZXX(u, v) = exp(-i (u Z⊗Z + v X⊗X) / 2)``):

    ZZ(φ)               H_t · CZ · RX_t(φ) · CZ · H_t
    ZZXX(u, v)          H_t · CZ · RX_t(u) RX_c(v) · CZ · H_t
    SWAP                H_t · CZ · H_t H_c · CZ · H_c H_t · CZ · H_t
    SWAP · ZZXX(u, v)   H_t · CZ · H_c H_t · CZ · H_c H_t · RX_c(v) RZ_t(u) · H_t · CZ · H_t
    SWAP · CZ           H_t H_c · CZ · H_t H_c · CZ · H_t H_c

What :mod:`qpeft.chips.fusion` found takes fewer: two interactions of a pair are one ZZXX, and one CZ is enough for an
interaction with a qubit that nothing has acted on but one-qubit gates. Hadamards melt into the runs beside them, so a
wire is best the target of all its interactions in a segment, or of none: wires are coloured in two colours where the
graph of interactions allows it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from qpeft.chips.angles import NativeAngles
from qpeft.chips.fusion import Step, Steps, steps_of
from qpeft.chips.lowering import Lowered
from qpeft.chips.pulses import Event, Products, write_pulses
from qpeft.chips.routing import Route
from qpeft.chips.turns import HADAMARD, Affine, Turn, constant, is_diagonal, plus, rx, simplify, tilts, y, z
from qpeft.circuits import Circuit, Observable

_QUARTER = math.pi / 2
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


def emit(circuit: Circuit, lowered: Lowered, route: Route, n_places: int) -> Native:
    """Native gates of a route, with the fewest CZ gates, then pulses, of what is tried."""
    steps, final = steps_of(lowered, route)
    graph = Steps(steps).fused()
    orders = [graph.in_time(grow) for grow in (False, True)]
    written = [
        _Writer(circuit, lowered, route, targets).write(order, final)
        for order in (orders if orders[0] != orders[1] else orders[:1])
        for targets in _colourings(lowered)
    ]
    events, products = min(written, key=lambda pair: _cost_of_events(pair[0]))
    gates, bind = write_pulses(events, products)
    output = tuple(final[wire] for wire in lowered.output)
    return Native(Circuit(n_places, gates, measured_on(circuit, output)), output, bind)


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


def _cost_of_events(events: Sequence[Event]) -> tuple[int, int]:
    pulses = sum(min(2, tilts(event[1])) for event in events if isinstance(event[1], list))
    return sum(isinstance(event[1], int) for event in events), pulses


class _Writer:
    """Writes runs and CZ gates place by place; open runs wait for the next CZ on their place."""

    def __init__(self, circuit: Circuit, lowered: Lowered, route: Route, targets: set[Vertex]) -> None:
        self.lowered = lowered
        self.targets = targets
        self.products = Products(circuit.n_inputs, circuit.n_weights)
        self.next_run = [0] * len(lowered.runs)
        self.open: dict[int, list[Turn]] = {}
        self.events: list[Event | None] = []
        self.last: dict[int, int] = {}  # place -> number of the last CZ there
        self.runs_before: dict[int, dict[int, int]] = {}  # number of a CZ -> place -> number of the run before it

    def write(self, steps: Sequence[Step], final: Sequence[int]) -> tuple[list[Event], Products]:
        for step in steps:
            self._step(step)
        for wire, place in enumerate(final):
            self._turn(place, *self._runs(wire, len(self.lowered.runs[wire]) - 1))
        for place in sorted(self.open):
            self._close(place)
        return [event for event in self.events if event is not None], self.products

    def _runs(self, wire: int, segment: int) -> list[Turn]:
        """The runs of a wire up to a segment that have not been written yet."""
        start, self.next_run[wire] = self.next_run[wire], max(self.next_run[wire], segment + 1)
        return [turn for run in self.lowered.runs[wire][start : segment + 1] for turn in run]

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

    def _step(self, step: Step) -> None:
        p, q = step.places
        if step.interaction is None:
            if None in step.wires:
                c, t = (p, q) if step.wires[1] is None else (q, p)
                order = [t, c]  # CNOT to the empty place, CNOT back
            else:
                c, t = (p, q) if self._gain(q) <= self._gain(p) else (q, p)
                order = [t, c, t]
            for place in order:
                self._around(place, c, t)
            return
        first = step.joined or step.interaction
        place_of = dict(zip(step.wires, step.places, strict=True))
        for wire in first.wires:
            self._turn(place_of[wire], *self._runs(wire, first.segment_of(wire)))
        wire_at = dict(zip(step.places, step.wires, strict=True))
        left = wire_at[p]
        c, t = (q, p) if left is not None and (left, first.segment_of(left)) in self.targets else (p, q)
        if step.joined:
            self._join(step, wire_at, c, t)
        elif first.angle is not None and not (c in self.last and t in self.last):
            self._meet(first.angle, *((t, c) if c not in self.last else (c, t)), step.swaps)
        elif first.angle is None:
            self._cz_swap(c, t, step.swaps)
        else:
            self._interact(first.angle, {}, c, t, step.swaps)

    def _join(self, step: Step, wire_at: dict[int, int | None], c: int, t: int) -> None:
        """Two interactions of a pair: see :mod:`qpeft.chips.fusion`."""
        assert step.interaction is not None
        assert step.joined is not None
        between = {}
        for place in (c, t):
            wire = wire_at[place]
            assert wire is not None
            between[place] = self.products.three(simplify(self._runs(wire, step.interaction.segment_of(wire))))
            self._turn(place, z(between[place][0]))
        ends = []
        for interaction in (step.joined, step.interaction):
            angle = interaction.angle
            if angle is None:  # CZ = RZ(90°)⊗RZ(90°) ZZ(-90°), and RZ moves to the outside
                angle = constant(-_QUARTER)
                place_ends = between if interaction is step.interaction else None
                for place in (c, t):
                    if place_ends is None:
                        self._turn(place, z(_QUARTER))
                    else:
                        before, tilt, after = place_ends[place]
                        place_ends[place] = before, tilt, plus(after, constant(_QUARTER))
            ends.append(angle)
        # About A, B, A instead of B, A, B: products know Z, Y, Z, which stand for A, B.
        parts = [
            self.products.add([y(ends[0]), z(plus(between[c][1], between[t][1], sign)), y(ends[1])])
            for sign in (1.0, -1.0)
        ]
        (s, d, w), (s_, d_, w_) = parts
        right, right_ = plus(s, d, -1.0), plus(s_, d_, -1.0)
        left, left_ = plus(s, d), plus(s_, d_)
        for place, sign in ((c, 1.0), (t, -1.0)):
            self._turn(place, y(_half(right, right_, sign)))
        c_, t_ = (t, c) if step.swaps else (c, t)
        self._interact(_half(w, w_, 1.0), _half(w_, w, -1.0), c, t, step.swaps)
        for place, old, sign in ((c_, c, 1.0), (t_, t, -1.0)):
            self._turn(place, y(_half(left, left_, sign)), z(between[old][2]))

    def _meet(self, angle: Affine, c: int, t: int, swaps: bool) -> None:
        """An interaction with a qubit ``t`` that only one-qubit gates have acted on, with one CZ.

        Where ``c`` is 0 it turns RY(β)|0> by RZ(φ), where it is 1 by RZ(-φ): two states that mirror each other. With
        RZ(φ) RY(β) = RY(μ) RX(-η) RZ(-2γ) they are RY(μ) RX(∓η)|0> with the phases ±γ, and Z turns RX(-η)|0> into
        RX(η)|0>. The three angles come from RZ(φ) RY(β) RX(90°) = RY(μ) RX(90° - η) RY(-2γ), with the axes Y, Z, X
        renamed to Z, X, Y.
        """
        _, beta, after = self.products.three(simplify(self.open.pop(t, [])))
        s, d, w = self.products.add([y(_QUARTER), z(plus(beta, constant(_QUARTER))), y(angle), z(-_QUARTER)])
        self._turn(t, *rx(plus(w, constant(-_QUARTER))))
        self._cz_swap(c, t, swaps)
        if swaps:
            c, t = t, c
        self._turn(t, y(plus(s, d)), z(after))
        self._turn(c, z(plus(s, d, -1.0)))

    def _gain(self, place: int) -> int:
        """Pulses that a Hadamard would add to the open run of a place."""
        run = self.open.get(place, [])
        return tilts(simplify([*run, *HADAMARD])) - tilts(simplify(run))

    def _around(self, place: int, c: int, t: int) -> None:
        self._turn(place, *HADAMARD)
        self._cz(c, t)
        self._turn(place, *HADAMARD)

    def _cz_swap(self, c: int, t: int, swaps: bool) -> None:
        """CZ, and a swap after it."""
        if swaps:
            for _ in range(2):
                self._turn(c, *HADAMARD)
                self._turn(t, *HADAMARD)
                self._cz(c, t)
            self._turn(c, *HADAMARD)
            self._turn(t, *HADAMARD)
        else:
            self._cz(c, t)

    def _interact(self, u: Affine, v: Affine, c: int, t: int, swaps: bool) -> None:
        """ZZXX(u, v), and a swap after it."""
        self._around(t, c, t)
        self._turn(t, z(u))
        self._turn(c, *(rx(v) if v else ()))
        if swaps:
            self._around(c, c, t)
        self._around(t, c, t)


def _half(first: Affine, second: Affine, sign: float) -> Affine:
    return plus({}, plus(first, second, sign), 0.5)
