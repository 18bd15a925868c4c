"""Blocks side by side return what they return alone, unless crosstalk couples them."""

import torch
from grid_chips import grid_chip

from qpeft.chips import plan_layout
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import simplified_two_design
from qpeft.qpu.protocol import Block

CIRCUIT = simplified_two_design(3, 1)
ROWS, SHOTS = 120, 1000


def both_ways(snapshot, crosstalk, buffer=0, seeds=(1, 2)):
    """Counts of all rows, packed and each alone on its block, ``(ROWS, 8)``."""
    layout = plan_layout(CIRCUIT, snapshot, buffer=buffer, crosstalk_penalty=0.0)
    assert layout.n_blocks >= 3
    generator = torch.Generator().manual_seed(0)
    inputs = torch.rand(ROWS, CIRCUIT.n_inputs, generator=generator, dtype=torch.float64) * 3
    weights = torch.rand(CIRCUIT.n_weights, generator=generator, dtype=torch.float64) * 3
    angles = [template.angles(inputs, weights).tolist() for template in layout.templates]
    packed = [[Block(block, tuple(angles[block][row])) for row, block in c] for c in layout.assign(ROWS, step=3)]
    alone = [[block] for circuit in packed for block in circuit]
    chip = VirtualChip(snapshot, crosstalk=crosstalk)
    one = layout.unpack(chip.run(layout.templates, packed, SHOTS, seed=seeds[0]), ROWS, step=3)
    flat = iter(chip.run(layout.templates, alone, SHOTS, seed=seeds[1]))
    other = layout.unpack([[next(flat)[0] for _ in circuit] for circuit in packed], ROWS, step=3)
    return torch.stack(one).double(), torch.stack(other).double()


def distance_in_sigma(one, other):
    """Chi-square of two samples, summed over all rows, in standard deviations from its mean."""
    total = one + other
    seen = total > 0
    chi_square = ((one - other) ** 2 / total.clamp(min=1)).sum().item()
    freedom = seen.sum().item() - len(one)
    return (chi_square - freedom) / (2 * freedom) ** 0.5


def test_without_crosstalk_packed_and_alone_are_samples_of_one_distribution():
    one, other = both_ways(grid_chip(3, 4), crosstalk=0.0)
    assert (one.sum(1) == SHOTS).all()
    assert abs(distance_in_sigma(one, other)) < 4


def test_without_crosstalk_equal_seeds_give_equal_counts():
    one, other = both_ways(grid_chip(3, 4), crosstalk=0.0, seeds=(1, 1))
    assert torch.equal(one, other)


def test_crosstalk_shows_between_neighbours_and_not_across_a_buffer():
    one, other = both_ways(grid_chip(3, 4), crosstalk=0.1)
    assert distance_in_sigma(one, other) > 10
    one, other = both_ways(grid_chip(5, 5), crosstalk=0.1, buffer=1)
    assert abs(distance_in_sigma(one, other)) < 4
