import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpeft.evaluation.statistics import difference, wilson


def test_wilson_by_published_values():
    # Newcombe 1998, table 1 (method 3): 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0, 0.1611),
                                    (1, 29, 0.0061, 0.1718)):  # fmt: skip
        share = wilson(successes, n)
        assert (round(share.low, 4), round(share.high, 4)) == (low, high)


def test_difference_by_published_values():
    # Newcombe 1998, table II (method 10): 56/70 - 48/80, 9/10 - 3/10.
    value, low, high = difference(wilson(56, 70), wilson(48, 80))
    assert (round(value, 4), round(low, 4), round(high, 4)) == (0.2, 0.0524, 0.3339)
    value, low, high = difference(wilson(9, 10), wilson(3, 10))
    assert (round(value, 4), round(low, 4), round(high, 4)) == (0.6, 0.1705, 0.8090)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    draw = random.Random(0)
    covered = 0
    for _ in range(2000):
        share = wilson(sum(draw.random() < 0.3 for _ in range(50)), 50)
        covered += share.low <= 0.3 <= share.high
    assert 0.93 <= covered / 2000 <= 0.97


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_interval_holds_the_share(counts):
    share = wilson(*counts)
    assert 0 <= share.low <= share.value <= share.high <= 1
    mirrored = wilson(counts[1] - counts[0], counts[1])
    assert mirrored.low == pytest.approx(1 - share.high)


def test_extremes_and_text():
    assert wilson(0, 200).low == 0.0
    assert wilson(200, 200).high == 1.0
    assert str(wilson(109, 200)) == "54.5 % [47.6, 61.3]"
    assert str(wilson(0, 0)) == "no data"
    assert math.isnan(wilson(0, 0).value)
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(3, 2)
