"""Runs of turns stay the same operation when they are simplified, and come out short."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.chips.turns import HADAMARD, fixed, rx, simplify, tilts, turns_of, y, z
from qpeft.circuits import Gate

# Features: 1, and two that vary.
VALUES = np.array([1.0, 0.7, -2.3])


def matrix(turns) -> np.ndarray:
    whole = np.eye(2, dtype=complex)
    for axis, angle in turns:
        half = sum(value * VALUES[feature] for feature, value in angle.items()) / 2
        c, s = math.cos(half), math.sin(half)
        gate = np.diag([c - 1j * s, c + 1j * s]) if axis == "Z" else np.array([[c, -s], [s, c]])
        whole = gate @ whole
    return whole


def same_up_to_a_phase(first: np.ndarray, second: np.ndarray) -> bool:
    return abs(abs(np.trace(first.conj().T @ second)) - 2) < 1e-9


ANGLES = st.one_of(
    st.integers(-8, 8).map(lambda eighth: {0: eighth * math.pi / 4}),
    st.floats(-7, 7).map(lambda value: {0: value}),
    st.sampled_from([{1: 1.0}, {1: -1.0}, {2: 0.5}, {0: math.pi, 1: 1.0}]),
)
RUNS = st.lists(st.builds(lambda make, angle: make(angle), st.sampled_from([y, z]), ANGLES), max_size=8)


@settings(max_examples=150, deadline=None)
@given(RUNS)
def test_simplifying_changes_nothing(run):
    short = simplify(run)
    assert same_up_to_a_phase(matrix(run), matrix(short))
    assert tilts(short) <= tilts(run)
    assert all(first.axis != second.axis for first, second in itertools.pairwise(short))
    assert simplify(short) == short


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["H", "X", "Y", "Z", "S", "SDG", "T", "TDG"]), max_size=12))
def test_constants_become_one_turn_about_y(names):
    run = [turn for name in names for turn in turns_of(Gate(name, 0), 0)]
    short = simplify(run)
    assert tilts(short) <= 1
    assert same_up_to_a_phase(matrix(run), matrix(short))


@pytest.mark.parametrize(
    ("run", "left"),
    [
        ([*HADAMARD, *HADAMARD], 0),
        ([*HADAMARD, z({1: 1.0}), *HADAMARD], 1),  # RX
        ([y({1: 1.0}), *HADAMARD], 1),
        ([*HADAMARD, y({1: 1.0})], 1),
        ([*HADAMARD, z({1: 1.0}), *HADAMARD, *rx({1: -1.0})], 0),
        ([y({1: 1.0}), z(math.pi), y({1: 1.0})], 0),
        ([y({1: 1.0}), z({2: 1.0}), y(math.pi)], 1),
        ([y(math.pi), z({2: 1.0}), y({1: 1.0})], 1),
        ([y({1: 1.0}), z({2: 1.0}), y({1: 1.0})], 2),
    ],
)
def test_known_identities(run, left):
    assert tilts(simplify(run)) <= left


def test_constants_are_wrapped_and_snapped():
    assert fixed({0: 3 * math.pi}) == math.pi
    assert fixed({0: -math.pi}) == math.pi
    assert fixed({0: math.pi / 2 + 1e-13}) == math.pi / 2
    assert fixed({1: 1.0}) is None
    assert fixed({}) == 0.0
