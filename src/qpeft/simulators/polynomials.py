r"""Expectations as polynomials in what single wires hold, where inputs enter nowhere else.

In the Heisenberg picture an observable meets the gates from the last to the first, and each gate is a rotation
``exp(-iθG/2)`` about a Pauli string ``G``. A string ``P`` that commutes with ``G`` stays, another one becomes two::

    P  →  cos θ P + sin θ iGP,                  <O>(x, w) = Σ_P c_P(w) Π_i <P_i>(x)

What is left at the product state are coefficients ``c_P`` that the whole batch shares and, for each sample, the
expectations of Z, X and Y on its wires. Strings whose expectation is zero for every sample (a Y on a wire in a real
state) are left out, and with them the rotations that only they need. In one layer of QTHA ``<Z_i>`` has 44
coefficients, whatever the number of wires is, against 32 complex amplitudes that six steps turn.

Observables that differ only in their wires and angles, as around a ring, are expanded together: they are the members
of one group. The expansion that this module prepares is carried out in the kernel, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from qpeft.simulators.lowering import Expression, PauliMask

_MAX_STRINGS = 1 << 11
_LETTERS = {(0, 0): 0, (0, 1): 1, (1, 0): 2, (1, 1): 3}  # (flips, signs) of a wire: I, Z, X, Y

String = tuple[int, int]  # flips and signs


@dataclass(frozen=True)
class PauliRotation:
    """``exp(-i angle/2 G)`` with ``G = i^power X^flips Z^signs``, X and Z on the bits of the masks."""

    angle: Expression
    power: int
    flips: int
    signs: int


@dataclass(frozen=True)
class Level:
    """A sum over the letters of one wire: ``out[targets[j]] = Σ_k <letter_k> in[...]``, numbers going in one by one.

    Attributes:
        runs: Letters of so many sums each, one run after the other.
        targets: Of all sums.
    """

    runs: tuple[tuple[tuple[int, ...], int], ...]
    targets: tuple[int, ...]


@dataclass(frozen=True)
class _Expansion:
    """The polynomial of one observable.

    Attributes:
        pairs: For each rotation that matters, the slots (a, b) -> (cos a - sin b, cos b + sin a).
        angles: Of these rotations.
        levels: How it is evaluated, one wire after the other.
        wires: The bits that these levels stand for.
        coefficients: ``slot + 1`` of every coefficient, negative where it changes sign, in the order of evaluation.
    """

    pairs: tuple[tuple[tuple[int, int], ...], ...]
    angles: tuple[Expression, ...]
    levels: tuple[Level, ...]
    wires: tuple[int, ...]
    coefficients: tuple[int, ...]
    n_slots: int
    sign: int  # what slot 0 starts from; the others start from 0


@dataclass(frozen=True)
class PolynomialGroup:
    """Observables with polynomials of one structure."""

    members: tuple[_Expansion, ...]
    values: tuple[int, ...]  # number of each member among the observables

    def cost(self) -> float:
        """Vector operations of a forward pass, roughly, with a share of what happens once per call."""
        first = self.members[0]
        pairs = sum(map(len, first.pairs)) + 10 * len(first.pairs)
        return len(self.members) * (30 + 3 * len(first.coefficients)) + pairs * math.ceil(len(self.members) / 8)


def expand_all(
    values: Sequence[PauliMask],
    steps: Sequence[Sequence[PauliRotation]],
    letters: Sequence[set[int]],
    limit: float,
) -> list[PolynomialGroup] | None:
    """Expand observables through steps of commuting rotations.

    Args:
        values: The observables.
        steps: The rotations, from the first that acts on the state to the last; none of their angles reads inputs.
        letters: On each wire, the letters (1 for Z, 2 for X, 3 for Y) whose expectation may differ from zero.
        limit: Cost above which the answer is not wanted.

    Returns:
        Groups that hold every observable once, or ``None`` above the limit.
    """
    groups: dict[tuple[object, ...], list[tuple[_Expansion, int]]] = {}
    for number, value in enumerate(values):
        expansion = _expand(value, steps, letters, limit)
        if expansion is None:
            return None
        key = expansion.pairs, expansion.levels, expansion.coefficients, expansion.n_slots
        groups.setdefault(key, []).append((expansion, number))
    result = []
    for group in groups.values():
        members, numbers = zip(*group, strict=True)
        result.append(PolynomialGroup(members, numbers))
    return result if sum(group.cost() for group in result) <= limit else None


def _expand(
    value: PauliMask, steps: Sequence[Sequence[PauliRotation]], letters: Sequence[set[int]], limit: float
) -> _Expansion | None:
    n_bits = len(letters)
    support = value.flips | value.signs
    anchor = (support & -support).bit_length() - 1  # bits are told from here on, so that members of a ring agree
    power = (value.n_y - (value.flips & value.signs).bit_count()) % 4 + (0 if value.sign > 0 else 2)
    slots: dict[String, tuple[int, int]] = {(value.flips, value.signs): (0, 1)}  # string -> slot and sign
    found: list[tuple[list[tuple[int, int]], Expression]] = []
    n_slots, n_pairs = 1, 0

    def from_anchor(rotation: PauliRotation) -> list[list[int]]:
        return [
            sorted((bit - anchor) % n_bits for bit in range(n_bits) if mask >> bit & 1)
            for mask in (rotation.flips, rotation.signs)
        ]

    for step in reversed(steps):
        for rotation in sorted(step, key=from_anchor):
            turned = [string for string in slots if _anticommute(string, rotation)]
            if not turned:
                continue
            angle = rotation.angle
            cosine, sine = math.cos(angle.constant), math.sin(angle.constant)
            if angle.is_constant and min(abs(cosine), abs(sine)) < 1e-12:  # a Clifford gate: a string stays one string
                taken = [(string, *slots.pop(string)) for string in turned]
                for string, slot, sign in taken:
                    other, factor = (string, 1) if abs(cosine) > 0.5 else _times(rotation, string)
                    slots[other] = slot, sign * factor * (1 if cosine + sine > 0 else -1)
                continue
            pairs: list[tuple[int, int]] = []
            met: set[String] = set()
            for string in turned:
                if string in met:
                    continue
                other, factor = _times(rotation, string)
                if other not in slots:
                    slots[other] = n_slots, 1
                    n_slots += 1
                met |= {string, other}
                (a, sign_a), (b, sign_b) = slots[string], slots[other]
                pairs.append((a, b) if factor * sign_a * sign_b > 0 else (b, a))
            found.append((pairs, angle))
            n_pairs += len(pairs)
            if len(slots) > _MAX_STRINGS or n_pairs > limit:
                return None
    kept = {
        string: place
        for string, place in slots.items()
        if all(letter in letters[bit] for bit, letter in enumerate(_letters(string, n_bits)) if letter)
    }
    return _without_idle(kept, found, anchor, n_bits, 1 if power % 4 == 0 else -1)


def _without_idle(
    kept: dict[String, tuple[int, int]],
    found: list[tuple[list[tuple[int, int]], Expression]],
    anchor: int,
    n_bits: int,
    sign: int,
) -> _Expansion:
    """Leave out what no kept string needs, and order the evaluation of what is kept."""
    live = {slot for slot, _ in kept.values()}
    rotations: list[tuple[list[tuple[int, int]], Expression]] = []
    for pairs, angle in reversed(found):
        needed = [pair for pair in pairs if live.intersection(pair)]
        if needed:
            live.update(*needed)
            rotations.append((needed, angle))
    numbers = {slot: number for number, slot in enumerate(sorted(live))}  # 0 is the observable, if anything is left
    bits = sorted(range(n_bits), key=lambda bit: (bit - anchor) % n_bits)
    strings = {tuple(_letters(string, n_bits)[bit] for bit in bits): place for string, place in kept.items()}
    axes, levels, order = _levels(list(strings), n_bits)
    return _Expansion(
        tuple(tuple((numbers[a], numbers[b]) for a, b in pairs) for pairs, _ in reversed(rotations)),
        tuple(angle for _, angle in reversed(rotations)),
        levels,
        tuple(bits[axis] for axis in axes),
        tuple(factor * (numbers[slot] + 1) for slot, factor in (strings[letters] for letters in order)),
        max(1, len(numbers)),
        sign,
    )


def _levels(strings: list[tuple[int, ...]], n_axes: int) -> tuple[list[int], tuple[Level, ...], list[tuple[int, ...]]]:
    """In which order of the wires to add up, the sums for each, and the strings in the order in which they go in.

    Next is always the wire without which fewest different strings are left. A string without it has I (0) there.
    """
    if not strings:
        return [], (), []
    axes: list[int] = []
    sums: list[dict[tuple[int, ...], list[tuple[int, ...]]]] = []  # for each level: what is left -> what goes in
    left = sorted(strings)
    while True:
        occurring = [axis for axis in range(n_axes) if any(string[axis] for string in left)]
        if not occurring:
            break
        groups: list[dict[tuple[int, ...], list[tuple[int, ...]]]] = []
        for axis in occurring:
            groups.append({})
            for string in left:
                groups[-1].setdefault((*string[:axis], 0, *string[axis + 1 :]), []).append(string)
        best = min(range(len(occurring)), key=lambda k: len(groups[k]))
        axes.append(occurring[best])
        sums.append(groups[best])
        left = sorted(groups[best])
    levels: list[Level] = []
    order = left  # of the numbers that leave a level; in the end a single one
    for axis, entering in zip(reversed(axes), reversed(sums), strict=True):
        place = {string: number for number, string in enumerate(order)}
        runs: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
        for string in sorted(entering):
            runs.setdefault(tuple(other[axis] for other in entering[string]), []).append(string)
        levels.append(
            Level(
                tuple((letters, len(run)) for letters, run in runs.items()),
                tuple(place[string] for run in runs.values() for string in run),
            )
        )
        order = [other for run in runs.values() for string in run for other in entering[string]]
    return axes, tuple(reversed(levels)), order


def _letters(string: String, n_bits: int) -> list[int]:
    flips, signs = string
    return [_LETTERS[flips >> bit & 1, signs >> bit & 1] for bit in range(n_bits)]


def _anticommute(string: String, rotation: PauliRotation) -> bool:
    flips, signs = string
    return bool(((rotation.signs & flips).bit_count() + (rotation.flips & signs).bit_count()) & 1)


def _times(rotation: PauliRotation, string: String) -> tuple[String, int]:
    """``iGP`` as a string and its sign; strings are Hermitian, ``i^{|flips & signs|} X^flips Z^signs``."""
    flips, signs = string
    product = rotation.flips ^ flips, rotation.signs ^ signs
    power = 1 + rotation.power + (flips & signs).bit_count() + 2 * (rotation.signs & flips).bit_count()
    power -= (product[0] & product[1]).bit_count()
    return product, 1 if power % 4 == 0 else -1
