"""How sure a difference between two arms is: paired over seeds and over test items.

Every arm trains on the same seeds (one seed, one data order) and answers the same items, so that only differences are
analysed. With d_si the difference of seed s on item i, of S seeds and N items,

    d_si = D + a_s + b_i + e_si,    Var(mean) = Var(a)/S + Var(b)/N + Var(e)/(S N),

another training would give other a and e, another test set other b. Items are many: they are resampled
(`scipy.stats.bootstrap`, 10,000 times). Seeds are few, and resampling five of them understates their spread, so that
their share, Var(a)/S + Var(e)/(S N), enters each resample as a draw of Student's t with S - 1 degrees of freedom; the
items are shrunk to their own share, Var(b)/N. One seed leaves the bootstrap over items alone, and a measure without
items leaves Student's t alone. For losses, d_si is summed over an item's tokens, and D is their sum by the tokens.

J. Bowles et al., "Better than classical? The subtle art of benchmarking quantum machine learning models", 2403.07059;
A. B. Owen, "The pigeonhole bootstrap", 2007; S. Holm, "A simple sequentially rejective multiple test procedure", 1979.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qpeft.errors import InputError, MissingDependencyError

#: of a two-sided test
ALPHA = 0.05
#: with which a minimum detectable effect is found
POWER = 0.8
_RESAMPLES = 10_000
_SEED = 20_240_601


@dataclass(frozen=True)
class Difference:
    """A difference with its 95 % interval; without interval where one seed is all there is.

    Attributes:
        value: The difference.
        low: Lower end.
        high: Upper end.
        p: Two-sided p-value of "no difference".
        error: Standard error.
        freedom: Its degrees of freedom.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    error: float | None = None
    freedom: float | None = None


def over_seeds(values: np.ndarray) -> Difference:
    """Mean of one number a seed, with Student's t: interval and p-value of "the mean is zero".

    Without an interval for one seed, and for seeds that all gave the same number: they tell no more than one.

    Args:
        values: `(n_seeds,)`.
    """
    mean = float(values.mean())
    if len(values) < 2 or values.std() <= 1e-12 * max(1.0, abs(mean)):
        nothing = len(values) > 1 and mean == 0
        return Difference(mean, 0.0, 0.0, 1.0) if nothing else Difference(mean)
    test = _need("scipy.stats").ttest_1samp(values, 0.0)
    interval = test.confidence_interval(1 - ALPHA)
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    return Difference(mean, float(interval.low), float(interval.high), float(test.pvalue), error, len(values) - 1)


def over_seeds_and_items(
    values: np.ndarray, tokens: np.ndarray | None = None, resamples: int = _RESAMPLES, rng: int = _SEED
) -> Difference:
    """Mean of one number a seed and item, sum(values) / sum(tokens), with the bootstrap of this module.

    Args:
        values: `(n_seeds, n_items)`: first arm minus second, for losses summed over an item's tokens.
        tokens: `(n_items,)` of the items; without it every item counts once.
        resamples: Of the bootstrap; the smallest p-value is 2 / (resamples + 1).
        rng: Seed of the resampling: the same numbers give the same interval.

    Example:
        >>> found = over_seeds_and_items(np.array([[1.0, 0, 1, 1], [1, 0, 0, 1]]))
        >>> found.value, found.low < 0 < found.high
        (0.625, True)
    """
    generator = np.random.default_rng(rng)
    n_seeds, n_items = values.shape
    weights = np.ones(n_items) if tokens is None else np.asarray(tokens, dtype=float)
    seeds = values.sum(axis=1) / weights.sum()  # (n_seeds,)
    centre = float(seeds.mean())
    items = values.mean(axis=0) - centre * weights  # (n_items,), sums to zero
    if n_items < 2:
        return over_seeds(seeds)
    spread = items.var(ddof=1)
    seed_error = 0.0
    if n_seeds > 1:
        seed_error = float(seeds.std(ddof=1)) / math.sqrt(n_seeds)
        noise = values - np.outer(seeds, weights) - items  # (n_seeds, n_items): neither the seed's nor the item's own
        noise_variance = (noise**2).sum() / ((n_seeds - 1) * (n_items - 1))
        own = 1 - noise_variance / (n_seeds * spread) if spread > 0 else 0.0
        items = items * math.sqrt(max(0.0, own))
    if seed_error == 0 and not np.any(items):  # the arms did the same on every item, or all items count alike
        return Difference(centre, 0.0, 0.0, 1.0) if centre == 0 else Difference(centre)

    def ratio(total: np.ndarray, weight: np.ndarray | None = None, axis: int = -1) -> np.ndarray:
        return total.mean(axis=axis) if weight is None else total.sum(axis=axis) / weight.sum(axis=axis)

    totals = centre * weights + items
    bootstrap = _need("scipy.stats").bootstrap(
        (totals,) if tokens is None else (totals, weights),
        ratio,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, 2_000_000 // n_items),  # a few tens of megabytes at a time
        method="percentile",
        rng=generator,
    )
    draws = bootstrap.bootstrap_distribution
    item_error = float(draws.std(ddof=1))
    if n_seeds > 1:
        draws = draws + seed_error * generator.standard_t(n_seeds - 1, resamples)
    low, high = np.quantile(draws, (ALPHA / 2, 1 - ALPHA / 2))
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    p = min(1.0, 2 * (tail + 1) / (resamples + 1))
    # Welch and Satterthwaite: degrees of freedom of a sum of two variances
    shares = [(item_error**2, n_items - 1)] + ([(seed_error**2, n_seeds - 1)] if n_seeds > 1 else [])
    variance = sum(share for share, _ in shares)
    freedom = variance**2 / sum(share**2 / own for share, own in shares)
    return Difference(centre, float(low), float(high), float(p), math.sqrt(variance), freedom)


def minimum_detectable_effect(error: float, freedom: float) -> float:
    """The true difference that a two-sided t-test at 5 % finds with power 0.8.

    Args:
        error: Standard error of the difference.
        freedom: Its degrees of freedom; many give (1.96 + 0.84) standard errors, 4 (five seeds) give 3.76.
    """
    return _detectable_errors(freedom) * error


def detectable_accuracy(n_items: int, accuracy: float = 0.5) -> float:
    """The difference of two accuracies that `n_items` can show at all, stated before anything is trained.

    The worst case: the arms err independently of each other, and the accuracy is the one given (0.5 is the worst).
    Pairing and further seeds only lower it, unless trainings differ much. Power 0.8, 5 %, two-sided; Cohen's
    h = 2 asin √p₁ − 2 asin √p₂. Where even a difference up to 0 or 1 is too small to show, that difference.

    Raises:
        InputError: for no items or an accuracy outside [0, 1].

    Example:
        >>> round(detectable_accuracy(400), 3)
        0.098
    """
    if n_items < 1:
        raise InputError(f"a test set has at least one item, not {n_items}: give the number of test items.")
    if not 0 <= accuracy <= 1:
        raise InputError(f"an accuracy lies between 0 and 1, not at {accuracy}: give 0.54 for 54 %.")
    normal = _need("scipy.stats").norm
    effect = (normal.ppf(1 - ALPHA / 2) + normal.ppf(POWER)) * math.sqrt(2 / n_items)
    angle = math.asin(math.sqrt(accuracy))
    ends = [math.sin(min(max(angle + side * effect / 2, 0.0), math.pi / 2)) ** 2 for side in (-1, 1)]
    return max(abs(end - accuracy) for end in ends)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: each p-value so that all together are wrong in 5 % of cases at most.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    # statsmodels' multipletests gives the same, after collecting the garbage of the whole process
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return [float(each) for each in corrected]


@functools.lru_cache(maxsize=256)
def _detectable_errors(freedom: float) -> float:
    power = _need("statsmodels.stats.power").TTestPower()
    # its effect is in standard deviations of one observation, of which there are freedom + 1
    effect = power.solve_power(nobs=freedom + 1, alpha=ALPHA, power=POWER, alternative="two-sided")
    return float(np.squeeze(effect)) * math.sqrt(freedom + 1)


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingDependencyError(f"comparing arms needs {package}: pip install qpeft[compare]") from error
