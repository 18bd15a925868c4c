"""Intervals for shares: Wilson's score interval, and Newcombe's for the difference of two.

For k successes of n and z = 1.96 (95 %), Wilson's interval is

    (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n),   p = k/n.

E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927;
R. G. Newcombe, "Interval estimation for the difference between independent proportions", 1998 (method 10).
"""

import math
from dataclasses import dataclass

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Share:
    """A share of successes with its 95 % interval; `str()` gives `54.5 % [47.6, 61.2]`."""

    successes: int
    n: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if not self.n:
            return "no data"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: int, n: int) -> Share:
    """The share `successes / n` with Wilson's 95 % interval; of nothing, NaN within [0, 1].

    Raises:
        ValueError: If `successes` is not between 0 and `n`.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n (got {successes} of {n})")
    if n == 0:
        return Share(0, 0, math.nan, 0.0, 1.0)
    p, z2 = successes / n, _Z_95**2
    centre = p + z2 / (2 * n)
    half = _Z_95 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    scale = 1 + z2 / n
    # The ends are exactly 0 and 1 at the extremes; rounding would leave them a hair off.
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return Share(successes, n, p, low, high)


def difference(first: Share, second: Share) -> tuple[float, float, float]:
    """`first - second` of two independent shares and its 95 % interval (Newcombe's method 10): value, low, high."""
    value = first.value - second.value
    below = math.hypot(first.value - first.low, second.high - second.value)
    above = math.hypot(first.high - first.value, second.value - second.low)
    return value, value - below, value + above
