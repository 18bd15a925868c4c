"""Which sample runs where: every row once, back in order, and on every block in turn."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpeft.chips.layout import Layout
from qpeft.errors import InputError


def layout_of(n_blocks, seed=0):
    templates = tuple(SimpleNamespace(qubits=tuple(range(4 * b, 4 * b + 4))) for b in range(n_blocks))
    return Layout(templates, (0.5,) * n_blocks, "snapshot", seed=seed)


@given(st.integers(1, 20), st.integers(0, 100), st.integers(0, 1000), st.integers(0, 5))
def test_unpack_undoes_assign(n_blocks, n_rows, step, seed):
    layout = layout_of(n_blocks, seed)
    circuits = layout.assign(n_rows, step)
    assert len(circuits) == layout.n_circuits(n_rows)
    assert sorted(row for circuit in circuits for row, _ in circuit) == list(range(n_rows))
    for circuit in circuits:
        blocks = [block for _, block in circuit]
        assert blocks == sorted(set(blocks))
        assert all(0 <= block < n_blocks for block in blocks)
    assert all(len(circuit) == n_blocks for circuit in circuits[:-1])
    answers = [[f"row {row}" for row, _ in circuit] for circuit in circuits]
    assert layout.unpack(answers, n_rows, step) == [f"row {row}" for row in range(n_rows)]


@given(st.integers(1, 20), st.integers(1, 50), st.integers(0, 100))
def test_every_row_visits_every_block_in_as_many_steps(n_blocks, n_rows, first):
    layout = layout_of(n_blocks)
    visited = {row: set() for row in range(n_rows)}
    for step in range(first, first + n_blocks):
        for circuit in layout.assign(n_rows, step):
            for row, block in circuit:
                visited[row].add(block)
    assert all(blocks == set(range(n_blocks)) for blocks in visited.values())


def test_assignment_follows_from_seed_and_step():
    assert layout_of(7, seed=1).assign(20, 3) == layout_of(7, seed=1).assign(20, 3)
    assert layout_of(7, seed=1).assign(20, 3) != layout_of(7, seed=2).assign(20, 3)
    assert layout_of(7, seed=1).assign(20, 3) != layout_of(7, seed=1).assign(20, 4)


def test_classical_bits_follow_the_blocks_of_a_circuit():
    layout = layout_of(3)
    [full, rest] = layout.assign(4)
    assert layout.classical_bits(full) == [range(0, 4), range(4, 8), range(8, 12)]
    assert layout.classical_bits(rest) == [range(0, 4)]


def test_missing_and_surplus_results_are_refused():
    layout = layout_of(3)
    for results in ([[1, 2, 3]], [[1, 2, 3], []], [[1, 2, 3], [4, 5]], [[1, 2, 3], [4], [5]], [[4], [1, 2, 3]]):
        with pytest.raises(InputError, match="4 samples make 2 circuits"):
            layout.unpack(results, 4)


def test_negative_numbers_are_refused():
    with pytest.raises(InputError, match="0 or more"):
        layout_of(2).assign(-1)
    with pytest.raises(InputError, match="0 or more"):
        layout_of(2).assign(1, step=-1)
