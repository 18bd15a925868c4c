"""Small graphs inside a large one: the connected sets of k vertices, and which of them look alike.

A set of vertices is a bit mask (bit q stands for vertex q). Connected sets are found by the algorithm ESU, each just
once: a set grows from its smallest vertex, and only by neighbours that no earlier vertex of it had (Wernicke,
"Efficient detection of network motifs", IEEE/ACM Trans. Comput. Biol. Bioinf. 3, 2006). Sets that look alike are
found by backtracking, which is quick for the sizes that noisy chips can use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Shape = tuple[int, ...]
"""A graph on vertices 0 to k - 1: of every vertex the mask of its neighbours."""


def vertices(mask: int) -> tuple[int, ...]:
    """The vertices of a set, smallest first.

    Example:
        >>> vertices(0b1101)
        (0, 2, 3)
    """
    found = []
    while mask:
        bit = mask & -mask
        found.append(bit.bit_length() - 1)
        mask ^= bit
    return tuple(found)


def connected_sets(neighbours: Mapping[int, int], size: int, limit: int) -> list[int]:
    """Connected sets of ``size`` vertices.

    Args:
        neighbours: Of every vertex the mask of its neighbours.
        size: Vertices of a set.
        limit: About how many sets are wanted at most. Where there are more, all starts and directions get an equal
            share, so that the whole graph stays covered.

    Returns:
        Masks, each once, in a fixed order.

    Example:
        >>> connected_sets({0: 0b010, 1: 0b101, 2: 0b010}, size=2, limit=100)
        [3, 6]
    """
    found = _grow_all(neighbours, size, limit, even=False)
    return found if len(found) <= limit else _grow_all(neighbours, size, limit, even=True)


def _grow_all(neighbours: Mapping[int, int], size: int, limit: int, even: bool) -> list[int]:
    found: list[int] = []

    def grow(chosen: int, extension: int, seen: int, missing: int, budget: int) -> int:
        """Add the sets that go on from ``chosen``; how many there were."""
        if not missing:
            found.append(chosen)
            return 1
        # Shallow dead ends are cheaper to walk into than to foresee; deep ones would take for ever.
        if missing > 6 and not _reaches(neighbours, extension, allowed & ~(seen & ~extension), missing):
            return 0
        count = 0
        while extension and count < budget:
            share = budget - count
            if even:
                share = -(-share // extension.bit_count())
            bit = extension & -extension
            extension ^= bit
            fresh = neighbours[bit.bit_length() - 1] & allowed & ~seen
            count += grow(chosen | bit, extension | fresh, seen | fresh, missing - 1, share)
        return count

    for root in sorted(neighbours):
        start = 1 << root
        allowed = ~((start << 1) - 1)  # vertices after the root
        first = neighbours[root] & allowed
        budget = -(-limit // len(neighbours)) if even else limit + 1 - len(found)
        grow(start, first, start | first, size - 1, budget)
        if not even and len(found) > limit:
            break
    return found


def _reaches(neighbours: Mapping[int, int], start: int, allowed: int, wanted: int) -> bool:
    """Whether at least so many vertices hang together with the start."""
    reached, border = start, start
    while border and reached.bit_count() < wanted:
        fresh = 0
        for vertex in vertices(border):
            fresh |= neighbours[vertex]
        border = fresh & allowed & ~reached
        reached |= border
    return reached.bit_count() >= wanted


def components(neighbours: Mapping[int, int]) -> list[int]:
    """Connected parts of a graph as masks, largest first.

    Example:
        >>> components({0: 0b10, 1: 0b01, 2: 0})
        [3, 4]
    """
    left = set(neighbours)
    parts = []
    while left:
        part, border = 0, 1 << min(left)
        while border:
            part |= border
            reached = 0
            for vertex in vertices(border):
                reached |= neighbours[vertex]
            border = reached & ~part
        parts.append(part)
        left -= set(vertices(part))
    return sorted(parts, key=lambda part: (-part.bit_count(), part))


def shape_of(members: Sequence[int], neighbours: Mapping[int, int]) -> Shape:
    """The graph that a set of vertices forms; its vertex i is ``members[i]``.

    Example:
        >>> shape_of((4, 7, 9), {4: 1 << 7, 7: 1 << 4 | 1 << 9, 9: 1 << 7})
        (2, 5, 2)
    """
    return tuple(
        sum(1 << place for place, other in enumerate(members) if neighbours[member] >> other & 1) for member in members
    )


def ways_onto(shape: Shape, other: Shape, most: int = 48) -> list[tuple[int, ...]]:
    """The ways to lay one graph onto another one so that edges meet edges and gaps meet gaps.

    Args:
        shape: What is laid.
        other: What it is laid onto.
        most: Where there are more ways, these many are found: what couples everything with everything has k! of them.

    Returns:
        Tuples ``way``: vertex v of ``shape`` comes to lie on vertex ``way[v]`` of ``other``; none if they differ.

    Example:
        >>> ways_onto((2, 5, 2), (2, 5, 2))  # a path of three: as it is, or turned round
        [(0, 1, 2), (2, 1, 0)]
    """
    size = len(shape)
    here, there = _surroundings(shape), _surroundings(other)
    ways: list[tuple[int, ...]] = []

    def place(way: tuple[int, ...]) -> None:
        vertex = len(way)
        if vertex == size:
            ways.append(way)
            return
        for spot in range(size):
            if (
                len(ways) < most
                and spot not in way
                and here[vertex] == there[spot]
                and all((shape[vertex] >> u & 1) == (other[spot] >> way[u] & 1) for u in range(vertex))
            ):
                place((*way, spot))

    if sorted(here) == sorted(there):
        place(())
    return ways


def _surroundings(shape: Shape) -> list[list[int]]:
    """Of every vertex what its number cannot change: how many neighbours it has, and how many they have."""
    return [
        [mask.bit_count(), *sorted(shape[neighbour].bit_count() for neighbour in vertices(mask))] for mask in shape
    ]
