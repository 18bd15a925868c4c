"""Shared blocks and phases against their definitions, and their way back against autograd."""

import pytest
import torch

from qpeft.simulators.tables import Constant, Tables, parities

BLOCKS = [[0, 1, 2], [3], [4, 2], [1, 0, 3, 4], [2, 4, 0]]  # rows of half-angles
PHASES = [([1, 2, 5], [0, 1, 2]), ([0, 7], [3, 4]), ([4], [2])]  # masks and rows
N_QUBITS = 3


@pytest.fixture
def tables():
    tables = Tables(N_QUBITS, n_rows=6)
    assert [tables.add_block(rows) for rows in BLOCKS] == [0, 0, 0, 0, 1]  # places among those of one width
    assert [tables.add_phase(*phase) for phase in PHASES] == [0, 1, 2]
    tables.freeze()
    return tables


@pytest.fixture
def angles():
    angles = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    angles[-1] = 0  # the row that is no angle
    return angles


def block_of(rows, angles):
    block = torch.ones(1, 1, dtype=torch.float64)
    for angle in angles[rows]:
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2)
        block = torch.kron(block, turn)
    return block


def phase_of(masks, rows, angles):
    states = range(2**N_QUBITS)
    signs = torch.tensor([[(-1.0) ** (state & mask).bit_count() for mask in masks] for state in states]).double()
    return signs @ angles[rows]


def test_blocks_are_kronecker_products_and_phases_sums_over_parities(tables, angles):
    shared = tables.share(angles)
    for place, rows in [(0, BLOCKS[0]), (1, BLOCKS[4])]:
        torch.testing.assert_close(shared.blocks[3][place], block_of(rows, angles))
    torch.testing.assert_close(shared.blocks[1][0], block_of(BLOCKS[1], angles))
    torch.testing.assert_close(shared.blocks[4][0], block_of(BLOCKS[3], angles))
    for place, (masks, rows) in enumerate(PHASES):
        phase = phase_of(masks, rows, angles)
        torch.testing.assert_close(shared.phases[place, :, :, 0], torch.stack([phase.cos(), phase.sin()]))
    single = shared.to(torch.float32)
    assert {single.turns.dtype, single.blocks[2].dtype, single.phases.dtype} == {torch.float32}


def test_the_way_back_equals_autograd(tables, angles):
    """With a block as the output y of a step for the columns of the identity, and λ the loss's gradient of it."""
    generator = torch.Generator().manual_seed(1)
    gradients = tables.gradients(torch.device("cpu"))
    leaf = angles.clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    places: dict[int, int] = {}
    for rows in BLOCKS:
        width = len(rows)
        place = places[width] = places.get(width, -1) + 1
        towards = torch.randn(2**width, 2**width, generator=generator, dtype=torch.float64)
        loss = loss + (towards * block_of(rows, leaf)).sum()
        gradients.blocks[width][place] += towards @ block_of(rows, angles).t()
    for place, (masks, rows) in enumerate(PHASES):
        towards = torch.randn(2**N_QUBITS, generator=generator, dtype=torch.float64)
        loss = loss + towards @ phase_of(masks, rows, leaf)
        gradients.phases[place] += towards
    loss.backward()
    torch.testing.assert_close(tables.unshare(gradients)[:-1], leaf.grad[:-1])


def test_parities_of_wide_masks():
    found = parities(torch.tensor([0, 1, 2**40 + 1]), torch.tensor([1, 2**40 + 1]))
    assert found.tolist() == [[1, 1], [-1, -1], [-1, 1]]


def test_constants_are_copied_once():
    constant = Constant(torch.ones(3, dtype=torch.float64))
    single = constant.like(torch.zeros((), dtype=torch.float32))
    assert single.dtype == torch.float32
    assert constant.on(torch.device("cpu"), torch.float32) is single
    assert constant.on(torch.device("cpu")).dtype == torch.float64
