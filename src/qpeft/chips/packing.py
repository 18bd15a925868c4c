"""Many small circuits side by side on one chip.

All samples of a batch run the same circuit with other angles, so copies of it are laid onto disjoint places and one
shot of the chip answers for all of them. :func:`plan_layout` chooses the places: as many as fit with at least the
asked fidelity, and among those the largest

    Σ_blocks ln F - crosstalk_penalty · (couplers between different blocks).

A constant penalty for neighbours instead of measured crosstalk: QuCP, arXiv 2112.00387.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy

from qpeft.chips.chip_map import distances
from qpeft.chips.disjoint import Places, choose_exactly, choose_greedily
from qpeft.chips.layout import Layout, Neighbours
from qpeft.chips.regions import Region, find_regions, refined
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.circuits import Circuit
from qpeft.errors import InputError

SOLVERS = ("greedy", "exact")
SECONDS = 30.0
"""Time limit of each of the exact solver's two searches."""


def plan_layout(
    circuit: Circuit,
    snapshot: ChipSnapshot,
    *,
    buffer: int = 0,
    max_blocks: int | None = None,
    min_fidelity: float = 0.0,
    crosstalk_penalty: float = 0.01,
    restarts: int = 4,
    seed: int = 0,
    solver: str = "greedy",
) -> Layout:
    """Choose where copies of a circuit stand on a chip; equal arguments give equal layouts.

    Args:
        circuit: The circuit that every block runs.
        snapshot: The chip.
        buffer: Idle qubits that lie at least between two blocks, counted along couplers, dead ones too.
        max_blocks: Most blocks; ``None`` for as many as fit.
        min_fidelity: Least expected fidelity of a block, 0 to 1.
        crosstalk_penalty: What a coupler between two blocks costs, as a loss of ln fidelity.
        restarts: Beginnings of the greedy search.
        seed: Of the search, and of the rotation of samples over blocks.
        solver: ``"greedy"``, or ``"exact"``, which takes longer and says whether its layout is proven to be best.

    Raises:
        InputError: An argument out of range, or no place for even one block.
        MissingDependencyError: The exact solver without scipy.

    Example:
        >>> from qpeft.chips import load_chip
        >>> from qpeft.circuits import simplified_two_design
        >>> layout = plan_layout(simplified_two_design(4, 1), load_chip("wukong-72"))
        >>> layout.n_blocks >= 12, layout.n_circuits(1000)
        (True, 67)
    """
    _check(buffer, max_blocks, min_fidelity, crosstalk_penalty, restarts, seed, solver)
    regions = find_regions(circuit, snapshot)
    good = [region for region in regions if math.exp(region.score) >= min_fidelity]
    if not good:
        raise InputError(
            f"no place of {snapshot.name} reaches the fidelity {min_fidelity:g}: the best has "
            f"{math.exp(regions[0].score):.3f}; lower the limit, or use fewer qubits or layers."
        )
    places = _places(good, snapshot, buffer, crosstalk_penalty, max_blocks)
    chosen, proven = choose_greedily(places, restarts, seed), False
    if solver == "exact":
        better, proven = choose_exactly(places, len(chosen), SECONDS)
        chosen = max(better, chosen, key=places.merit)
    blocks = [refined(circuit, snapshot, good[place]) for place in chosen]
    blocks.sort(key=lambda block: (-block.score, block.template.qubits))
    return Layout(
        templates=tuple(block.template for block in blocks),
        scores=tuple(math.exp(block.score) for block in blocks),
        snapshot=snapshot.id,
        buffer=buffer,
        neighbours=_neighbours(blocks, snapshot),
        seed=seed,
        proven=proven,
    )


def _check(buffer: int, max_blocks: int | None, min_fidelity: float, crosstalk_penalty: float, restarts: int,
           seed: int, solver: str) -> None:  # fmt: skip
    whole = [("buffer", buffer, 0), ("restarts", restarts, 1), ("seed", seed, 0)]
    whole += [] if max_blocks is None else [("max_blocks", max_blocks, 1)]
    for name, value, least in whole:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least} (got {value!r}).")
    if not isinstance(min_fidelity, (int, float)) or not 0 <= min_fidelity <= 1:
        raise InputError(f"min_fidelity must lie between 0 and 1 (got {min_fidelity!r}); 0 takes every place.")
    if not isinstance(crosstalk_penalty, (int, float)) or not 0 <= crosstalk_penalty < math.inf:
        raise InputError(f"crosstalk_penalty must be 0 or more (got {crosstalk_penalty!r}); 0 ignores neighbours.")
    if solver not in SOLVERS:
        raise InputError(f"there is no solver {solver!r}; choose one of {', '.join(SOLVERS)}.")


def _places(regions: Sequence[Region], snapshot: ChipSnapshot, buffer: int, penalty: float,
            most: int | None) -> Places:  # fmt: skip
    n_qubits = len(snapshot.qubits)
    members = numpy.zeros((len(regions), n_qubits), dtype=numpy.float32)
    for place, region in enumerate(regions):
        members[place, list(region.template.qubits)] = 1
    couplers = [coupler.qubits for coupler in snapshot.couplers]
    return Places(
        members=members,
        values=numpy.array([region.score for region in regions]),
        distance=distances(snapshot),
        couplers=numpy.array(couplers, dtype=numpy.int64).reshape(-1, 2),
        buffer=buffer,
        penalty=penalty,
        most=n_qubits if most is None else most,
    )


def _neighbours(blocks: Sequence[Region], snapshot: ChipSnapshot) -> tuple[Neighbours, ...]:
    owner = {qubit: block for block, region in enumerate(blocks) for qubit in region.template.qubits}
    found = []
    for coupler in snapshot.couplers:
        ends = sorted((owner[qubit], qubit) for qubit in coupler.qubits if qubit in owner)
        if len(ends) == 2 and ends[0][0] != ends[1][0]:
            (one, first), (other, second) = ends
            found.append(Neighbours((one, other), (first, second)))
    return tuple(sorted(found))
