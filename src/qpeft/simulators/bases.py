"""Which observables are read from the same shots, and what turns their letters into Z.

A shot reads every wire in one letter: X, Y or Z. Observables that agree on the letter of every wire they share are
read together (*qubit-wise commuting*), so a circuit takes as many settings as its observables have bases. A chip reads
Z alone; H turns X into Z, and H S† turns Y into Z.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Gate
from qpeft.simulators.steps import parities

_TURNS = {"X": ("H",), "Y": ("SDG", "H"), "Z": ()}


class Setting(NamedTuple):
    """Wires that are read together, each in one letter, and the observables that are found from them.

    Attributes:
        wires: ``(wire, letter)`` in wire order.
        places: Indices of the observables.
        masks: Wires of each observable, as bits over ``wires``; the first is the most significant.
    """

    wires: tuple[tuple[int, str], ...]
    places: tuple[int, ...]
    masks: tuple[int, ...] = ()

    def signs(self) -> Tensor:
        """Values of the observables for every outcome: (2**wires, observables), float64."""
        outcomes = torch.arange(1 << len(self.wires), device="cpu")
        return parities(outcomes, torch.tensor(self.masks, device="cpu"))


@lru_cache(maxsize=256)
def settings(key: str) -> tuple[Setting, ...]:
    """Observables of a circuit, given by its key, by basis: each joins the first whose letters agree with its own.

    Example:
        >>> circuit = Circuit(2, (Gate("H", 0),), ("Z0", "X1", "X0 X1", "Z0 X1"))
        >>> [(setting.wires, setting.places) for setting in settings(circuit.key)]
        [(((0, 'Z'), (1, 'X')), (0, 1, 3)), (((0, 'X'), (1, 'X')), (2,))]
    """
    circuit = Circuit.from_key(key)
    bases: list[dict[int, str]] = []
    members: list[list[int]] = []
    for place, observable in enumerate(circuit.observables):
        own = {wire: letter for letter, wire in observable.paulis}
        agree = (i for i, b in enumerate(bases) if all(b.get(wire, letter) == letter for wire, letter in own.items()))
        home = next(agree, len(bases))
        if home == len(bases):
            bases.append({})
            members.append([])
        bases[home].update(own)
        members[home].append(place)
    found = []
    for basis, places in zip(bases, members, strict=True):
        wires = tuple(sorted(basis.items()))
        bit = {wire: 1 << (len(wires) - 1 - i) for i, (wire, _) in enumerate(wires)}
        masks = tuple(sum(bit[wire] for _, wire in circuit.observables[place].paulis) for place in places)
        found.append(Setting(wires, tuple(places), masks))
    return tuple(found)


@lru_cache(maxsize=256)
def rotated(key: str, wires: tuple[tuple[int, str], ...]) -> Circuit:
    """The circuit, given by its key, followed by what turns the letters into Z."""
    circuit = Circuit.from_key(key)
    more = tuple(Gate(name, (wire,)) for wire, letter in wires for name in _TURNS[letter])
    return replace(circuit, gates=circuit.gates + more)
