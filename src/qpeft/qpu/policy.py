"""How patient the broker is: backoff, rates, limits.

A refused submission is tried again after ``backoff · 2^k · u`` seconds, u uniform in [1/2, 1] so that many clients do
not return at once, and never earlier than the vendor asked. Submissions leave at ``rate`` a second on average (token
bucket). After ``failures`` refusals in a row, or as many unanswered questions, the vendor is given up for the time
being (circuit breaker).
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from qpeft.errors import InputError
from qpeft.qpu.budget import Budget

PAID_RATE = 5.0
"""Submissions a second to a provider that costs something, unless another rate is set."""
LONGEST_WAIT = 3600.0
"""A vendor may ask for this many seconds of patience at a time; more is cut."""


@dataclass(frozen=True)
class Policy:
    """Patience and limits of a broker; times in seconds.

    Args:
        on_unknown: Where nobody knows whether the vendor took a job and it cannot be asked: ``"stop"``, or
            ``"resubmit"`` at the risk of paying twice, as far as ``risk`` goes.
        risk: The most that may be paid twice; needed for ``"resubmit"``.
        failures: Refusals or unanswered questions in a row after which the vendor is given up for now.
        backoff: First wait after a refusal.
        backoff_limit: Longest wait after a refusal.
        refetches: How often an answer that is not whole is asked for again.
        poll_first: First wait between two questions about a job; waits grow by half each time.
        poll_last: Longest wait between two questions.
        settle: Wait before the vendor is asked a second time whether it really has no job with a token.
        timeout: Longest time for one batch, or ``None``.
        in_flight: Most jobs at the vendor at once.
        rate: Submissions a second; ``None``: 5 where they cost something, else as many as there are.

    Raises:
        InputError: A limit that makes no sense, or ``"resubmit"`` without ``risk``.

    Example:
        >>> Policy(on_unknown="resubmit", risk=Budget(money=10.0)).failures
        5
    """

    on_unknown: Literal["stop", "resubmit"] = "stop"
    risk: Budget | None = None
    failures: int = 5
    backoff: float = 1.0
    backoff_limit: float = 60.0
    refetches: int = 3
    poll_first: float = 1.0
    poll_last: float = 30.0
    settle: float = 5.0
    timeout: float | None = None
    in_flight: int = 4
    rate: float | None = None

    def __post_init__(self) -> None:
        if self.on_unknown not in ("stop", "resubmit"):
            raise InputError(f"on_unknown must be 'stop' or 'resubmit' (got {self.on_unknown!r}).")
        if self.on_unknown == "resubmit" and self.risk is None:
            raise InputError("on_unknown='resubmit' needs risk=Budget(...): the most that may be paid twice.")
        for name in ("failures", "in_flight"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be 1 or more (got {getattr(self, name)}).")
        if self.rate is not None and not self.rate > 0:
            raise InputError(f"rate must be above 0 submissions a second (got {self.rate}).")
        for name in ("backoff", "backoff_limit", "refetches", "poll_first", "poll_last", "settle", "timeout"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"{name} must be 0 or more (got {value}).")

    def wait_after(self, refusals: int, asked: float | None) -> float:
        """Seconds to wait after so many refusals in a row; ``asked``: what the vendor wants."""
        # exponents are bounded so that long outages do not overflow
        wait = min(self.backoff * 2.0 ** min(refusals - 1, 60), self.backoff_limit) * random.uniform(0.5, 1.0)
        if asked is not None and math.isfinite(asked):
            wait = max(wait, min(asked, LONGEST_WAIT))
        return wait


class Failures:
    """Counts failures in a row; after the limit each further one is one too many, until something works."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0

    def failed(self) -> bool:
        """Count one; whether the limit is reached."""
        self.count += 1
        return self.count >= self.limit

    def worked(self) -> None:
        """Start counting anew."""
        self.count = 0


class TokenBucket:
    """Lets through ``rate`` calls a second on average, at most ``size`` at once.

    Args:
        rate: Calls a second.
        size: Calls that may come at once after a pause.
        clock: Monotonic seconds.

    Example:
        >>> bucket = TokenBucket(rate=2.0, size=1, clock=lambda: 0.0)
        >>> bucket.wait(), bucket.wait(), bucket.wait()
        (0.0, 0.5, 1.0)
    """

    def __init__(self, rate: float, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.size, self.clock = rate, size, clock
        self._tokens, self._at = float(size), clock()

    def wait(self) -> float:
        """Take a token; seconds until it is there."""
        if math.isinf(self.rate):
            return 0.0
        now = self.clock()
        self._tokens = min(self.size, self._tokens + (now - self._at) * self.rate) - 1.0
        self._at = now
        return max(0.0, -self._tokens / self.rate)
