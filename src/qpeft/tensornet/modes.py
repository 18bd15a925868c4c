"""How a layer width is split into the four modes of a tensor network.

A matrix-product operator acts on a vector of length ``n`` seen as a tensor with modes ``n = m1 m2 m3 m4``. The eleven
widths of arXiv:2503.12790's released code keep the modes used there. Any other width gets the four factors with the
smallest sum (the parameters of an operator grow with the modes, and equal factors have the smallest sum), largest
first. A width without such factors (a prime, or twice a large prime) is padded to the next one that has them.
"""

import logging
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod

from qpeft.errors import InputError

logger = logging.getLogger(__name__)

N_MODES = 4

PUBLISHED_MODES: dict[int, tuple[int, ...]] = {
    256: (4, 4, 4, 4),
    512: (8, 4, 4, 4),
    1024: (8, 8, 4, 4),
    2048: (8, 8, 8, 4),
    2560: (8, 8, 8, 5),
    3584: (8, 8, 8, 7),
    4096: (8, 8, 8, 8),
    5120: (10, 8, 8, 8),
    18944: (37, 8, 8, 8),
    20480: (40, 8, 8, 8),
    27648: (27, 16, 8, 8),
}

# A factor this small never makes a core large, whatever the width.
_SMALL_FACTOR = 8


@dataclass(frozen=True)
class Modes:
    """Modes of one side of an operator.

    Attributes:
        size: Width of the layer.
        factors: The four modes; their product is ``padded``.
    """

    size: int
    factors: tuple[int, ...]

    @property
    def padded(self) -> int:
        """Width the operator works on; ``size`` where nothing had to be padded."""
        return prod(self.factors)

    @property
    def padding(self) -> int:
        """Number of extra entries, which are dropped after the contraction."""
        return self.padded - self.size


def choose_modes(size: int, factors: tuple[int, ...] | None = None) -> Modes:
    """Split a width into four modes.

    Args:
        size: Width of the layer, at least 1.
        factors: Modes to use instead; their product must be at least ``size``, and the surplus is padding.

    Returns:
        The published modes where the width is one of the published eleven, else the most balanced factors.

    Raises:
        InputError: The width is not positive, or ``factors`` are not four positive numbers with a sufficient product.
    """
    if size < 1:
        raise InputError(f"a layer width must be at least 1 (got {size}): a tensor network needs something to split")
    if factors is not None:
        if len(factors) != N_MODES or min(factors) < 1 or prod(factors) < size:
            raise InputError(
                f"factors of width {size} must be {N_MODES} positive numbers whose product is at least {size} "
                f"(got {list(factors)}): leave them out to have balanced ones chosen"
            )
        modes = Modes(size, tuple(factors))
    else:
        modes = _balanced(size)
    if modes.padding:
        _report_padding(modes)
    return modes


@cache
def _report_padding(modes: Modes) -> None:
    logger.info(
        "width %d has no balanced factors; the tensor network pads it to %d = %s",
        modes.size,
        modes.padded,
        " x ".join(map(str, modes.factors)),
    )


@cache
def _balanced(size: int) -> Modes:
    if size in PUBLISHED_MODES:
        return Modes(size, PUBLISHED_MODES[size])
    exact = _smallest_sum(size, N_MODES)
    if exact[0] <= max(_SMALL_FACTOR, 4 * size ** (1 / N_MODES)):
        return Modes(size, exact)
    padded = size + 1
    while (factors := _smallest_sum(padded, N_MODES))[0] > max(_SMALL_FACTOR, 2 * padded ** (1 / N_MODES)):
        padded += 1
    return Modes(size, factors)


@lru_cache(maxsize=4096)
def _smallest_sum(number: int, count: int) -> tuple[int, ...]:
    """The ``count`` factors of ``number`` with the smallest sum, in descending order."""
    if count == 1:
        return (number,)
    candidates = []
    for first in range(1, round(number ** (1 / count)) + 1):  # the smallest factor is at most the count-th root
        if number % first == 0:
            candidates.append((*_smallest_sum(number // first, count - 1), first))
    best = min(candidates, key=lambda factors: (sum(factors), max(factors)))
    return tuple(sorted(best, reverse=True))
