"""Choosing a set of places that leave each other alone: as many as possible, and among those the best.

Of the places r, each with a value v_r and the qubits it takes, choose

    x ∈ {0, 1}:  first  max Σ_r x_r,  then  max Σ_r v_r x_r - penalty · (couplers between different chosen places),
    where no two chosen places may hold qubits that are ``near`` each other (the same one, or within the buffer).

:func:`choose_greedily` takes the place that spoils fewest others, again and again, then clears a random patch of the
chip and fills it anew as long as that does no harm (ruin and recreate: Schrimpf et al., J. Comput. Phys. 159, 2000).
:func:`choose_exactly` hands the same problem to the mixed-integer solver HiGHS.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy
from numpy.typing import NDArray

from qpeft.errors import MissingDependencyError

ROUNDS = 300
"""Patches that are cleared and filled again after each greedy start."""


@dataclass(frozen=True)
class Places:
    """What may be chosen.

    Args:
        members: Whether a place takes a qubit, ``(n_places, n_qubits)``.
        values: Value of each place, ``(n_places,)``; a higher one is better.
        distance: Couplers between two qubits on the shortest way, ``(n_qubits, n_qubits)``.
        couplers: Neighbouring qubits, ``(n_couplers, 2)``.
        buffer: Idle qubits that must lie between two places.
        penalty: What every coupler between two chosen places costs.
        most: How many places to choose at most.
    """

    members: NDArray[numpy.float32]
    values: NDArray[numpy.float64]
    distance: NDArray[numpy.float64]
    couplers: NDArray[numpy.int64]
    buffer: int
    penalty: float
    most: int

    @cached_property
    def near(self) -> NDArray[numpy.float32]:
        """Whether two qubits must not belong to different places, ``(n_qubits, n_qubits)``."""
        return (self.distance <= self.buffer).astype(numpy.float32)

    @cached_property
    def reach(self) -> NDArray[numpy.float32]:
        """Whether a place closes a qubit to others, ``(n_places, n_qubits)``."""
        return (self.members @ self.near > 0).astype(numpy.float32)

    @cached_property
    def _bits(self) -> NDArray[numpy.uint64]:
        """Members as bits, ``(n_places, n_words)``: with thousands of places far quicker to compare."""
        return _pack(self.members > 0)

    def untouched(self, closed: NDArray[numpy.float32]) -> NDArray[numpy.int64]:
        """Places that need none of the closed qubits ``(n_qubits,)``."""
        return numpy.flatnonzero(~(self._bits & _pack(closed[None] > 0)).any(axis=1))

    @cached_property
    def adjacent(self) -> NDArray[numpy.float32]:
        """Whether a coupler joins two qubits, ``(n_qubits, n_qubits)``."""
        return (self.distance == 1).astype(numpy.float32)

    def merit(self, chosen: Sequence[int]) -> tuple[int, float]:
        """Number and total value of chosen places, less the penalty: the better of two choices is larger."""
        owner = numpy.full(self.members.shape[1], -1)
        for number, place in enumerate(chosen):
            owner[self.members[place] > 0] = number
        ends = owner[self.couplers].reshape(-1, 2)
        touching = (ends.min(axis=1) >= 0) & (ends[:, 0] != ends[:, 1])
        return len(chosen), float(self.values[list(chosen)].sum() - self.penalty * touching.sum())


def _pack(flags: NDArray[numpy.bool_]) -> NDArray[numpy.uint64]:
    """Rows of truth values as rows of bits."""
    rows, columns = flags.shape
    padded = numpy.zeros((rows, -(-columns // 64) * 64), dtype=bool)
    padded[:, :columns] = flags
    return numpy.packbits(padded, axis=1).view(numpy.uint64)


def choose_greedily(places: Places, restarts: int, seed: int) -> list[int]:
    """A good choice, quickly; equal seeds give equal choices.

    Args:
        places: What may be chosen.
        restarts: How often to begin anew; the best choice of all counts.
        seed: Of the random numbers.

    Returns:
        Numbers of places.
    """
    random = numpy.random.default_rng(seed)
    best: list[int] = []
    for _ in range(restarts):
        chosen = _fill(places, [], random)
        for number in range(ROUNDS):
            again = _fill(places, _clear(places, chosen, random), random)
            wander = number < ROUNDS // 2 and len(again) == len(chosen)  # first look for room, whatever its value
            if wander or places.merit(again) >= places.merit(chosen):
                chosen = again
            best = max(best, chosen, key=places.merit)
    return best


def _clear(places: Places, chosen: list[int], random: numpy.random.Generator) -> list[int]:
    """Take away what lies within a random number of steps from a random place."""
    if not chosen:
        return []
    centre = places.members[chosen[random.integers(len(chosen))]] > 0
    away = places.distance[centre].min(axis=0)
    patch = (away <= random.integers(4)).astype(numpy.float32)
    return [place for place in chosen if not places.members[place] @ patch]


def _fill(places: Places, kept: list[int], random: numpy.random.Generator) -> list[int]:
    """Add places until none fits.

    The next one has the smallest ``ln(how many others it spoils) - greed · value``, give or take a little; a random
    greed makes some choices go for many places, others for good ones.
    """
    chosen = list(kept)
    taken = places.members[chosen].sum(axis=0)
    free = places.untouched(places.near @ taken)
    greed = random.exponential(2.0)
    while free.size and len(chosen) < places.most:
        members = places.members[free]
        spoilt = places.reach[free] @ members.sum(axis=0)
        value = places.values[free] - places.penalty * (members @ (places.adjacent @ taken))
        cost = numpy.log(spoilt) - greed * value + 0.1 * random.standard_normal(free.size)
        best = free[cost.argmin()]
        chosen.append(int(best))
        taken = taken + places.members[best]
        free = free[members @ places.reach[best] == 0]
    return chosen


def choose_exactly(places: Places, at_least: int, seconds: float) -> tuple[list[int], bool]:
    """The best choice, found by HiGHS.

    Args:
        places: What may be chosen.
        at_least: A number of places that is known to fit.
        seconds: Time limit of each of the two searches, for the number and for the value.

    Returns:
        Numbers of places (none where time ran out before a choice was found), and whether they are proven to be best.

    Raises:
        MissingDependencyError: scipy is not installed.
    """
    try:
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array, eye_array, hstack
    except ImportError as error:
        raise MissingDependencyError('solver="exact" needs scipy: pip install "qpeft[packing]".') from error

    n_places, n_couplers = len(places.members), len(places.couplers)
    holders = csr_array(places.members.T.astype(float))  # (n_qubits, n_places)

    def either(pairs: NDArray[numpy.int64]) -> csr_array:
        return holders[pairs[:, 0]].maximum(holders[pairs[:, 1]])  # (n_pairs, n_places)

    # of two near qubits (or one and the same) only one place may have any; y = 1 where two places meet at a coupler
    disjoint = either(numpy.argwhere(numpy.triu(places.near)))
    meeting = either(places.couplers)
    rows = [
        LinearConstraint(hstack([disjoint, csr_array((disjoint.shape[0], n_couplers))]), ub=1),
        LinearConstraint(hstack([meeting, -eye_array(n_couplers)]), ub=1),
    ]
    count = numpy.concatenate([numpy.ones(n_places), numpy.zeros(n_couplers)])
    value = numpy.concatenate([places.values, numpy.full(n_couplers, -places.penalty)])
    options = {"time_limit": seconds, "mip_rel_gap": 0.0}

    def search(objective: NDArray[numpy.float64], least: int, most: int) -> tuple[list[int], bool]:
        found = milp(
            -objective,
            integrality=count,
            bounds=Bounds(0, 1),
            constraints=[*rows, LinearConstraint(count, lb=least, ub=most)],
            options=options,
        )
        chosen = [] if found.x is None else [int(place) for place in numpy.flatnonzero(found.x[:n_places] > 0.5)]
        return chosen, found.status == 0

    largest, all_fit = search(count, at_least, places.most)
    number = max(at_least, len(largest))
    best, proven = search(value, number, number)
    candidates = [choice for choice in (largest, best) if choice]
    return max(candidates, key=places.merit, default=[]), all_fit and proven
