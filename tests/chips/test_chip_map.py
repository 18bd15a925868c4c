"""Maps: grids are recognised, drawings show what is there."""

import numpy
import pytest
from grid_chips import grid_chip

from qpeft.chips import ChipSnapshot, Coupler, Qubit
from qpeft.chips.chip_map import distances, draw_map, grid_columns, positions
from qpeft.chips.layout_plot import plot_layout
from qpeft.chips.packing import plan_layout
from qpeft.circuits import simplified_two_design

CHAIN = simplified_two_design(2, 1)


def chip_of(n, pairs, missing=()):
    qubits = tuple(Qubit(q, 0.99, 0.02, 0.05, 10.0, 2.0, available=q not in missing) for q in range(n))
    return ChipSnapshot("chip", qubits, tuple(Coupler(pair, 0.96) for pair in pairs))


HONEYCOMB = chip_of(10, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5), (2, 6), (6, 7), (7, 8), (8, 9), (3, 9)])


@pytest.mark.parametrize(("rows", "columns"), [(3, 4), (12, 6), (1, 5), (5, 2)])
def test_grids_are_recognised(rows, columns):
    assert grid_columns(grid_chip(rows, columns)) == columns


def test_other_chips_are_no_grids():
    assert grid_columns(HONEYCOMB) is None
    assert grid_columns(ChipSnapshot.fully_connected(5)) is None
    assert grid_columns(chip_of(6, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 3)])) is None  # (2, 3) ends a row


def test_distances_count_couplers_dead_ones_too():
    snapshot = grid_chip(3, 4, live_share=0.3)
    away = distances(snapshot)
    for a in range(12):
        for b in range(12):
            assert away[a, b] == abs(a // 4 - b // 4) + abs(a % 4 - b % 4)
    assert distances(chip_of(3, [(0, 1)]))[0, 2] == numpy.inf


def test_other_chips_are_drawn_with_neighbours_near():
    for chip in (HONEYCOMB, chip_of(5, [(0, 1), (2, 3)]), chip_of(1, []), ChipSnapshot.fully_connected(6)):
        spots = positions(chip)
        assert sorted(spots) == list(range(len(chip.qubits)))
        points = numpy.array([spots[q] for q in spots])
        assert numpy.isfinite(points).all()
        assert points.min() >= 0
    spots, away = positions(HONEYCOMB), distances(HONEYCOMB)
    near = [numpy.hypot(*numpy.subtract(spots[a], spots[b])) for a, b in zip(*numpy.nonzero(away == 1), strict=True)]
    far = [numpy.hypot(*numpy.subtract(spots[a], spots[b])) for a, b in zip(*numpy.nonzero(away >= 3), strict=True)]
    assert 0.5 < min(near) <= max(near) < min(far)


def test_the_text_map_shows_blocks_idle_and_missing_qubits_and_dead_couplers():
    #  0 - 1   2
    #  |       |
    #  3 - 4 - 5        with qubit 4 missing
    snapshot = chip_of(6, [(0, 1), (0, 3), (2, 5), (3, 4), (4, 5)], missing=(4,))
    dead = ChipSnapshot("chip", snapshot.qubits, (*snapshot.couplers, Coupler((1, 2), 0.0), Coupler((1, 4), 0.0)))
    layout = plan_layout(CHAIN, dead, max_blocks=2)
    owner = {qubit: str(block + 1) for block, t in enumerate(layout.templates) for qubit in t.qubits}
    assert owner[2] == owner[5]
    [one] = {owner.get(0)} & {owner.get(1), owner.get(3)}
    mark = [owner.get(q, "·") for q in range(6)]
    across, down = ("══", "│") if owner.get(1) == one else ("──", "║")
    assert draw_map(layout, dead).splitlines() == [
        f"q0  {mark[0]} {across} {mark[1]}    {mark[2]}",
        f"    {down}         ║",
        f"q3  {mark[3]}    ×    {mark[5]}",
    ]


def test_the_text_map_of_another_chip_has_every_qubit():
    layout = plan_layout(CHAIN, HONEYCOMB)
    drawn = draw_map(layout, HONEYCOMB).split()
    assert len(drawn) == 10
    pairs = sorted(2 * [str(block + 1) for block in range(layout.n_blocks)])
    assert sorted(mark for mark in drawn if mark != "·") == pairs


@pytest.mark.parametrize("snapshot", [grid_chip(3, 4, live_share=0.8, missing=(2,)), HONEYCOMB], ids=["grid", "other"])
def test_pictures_are_written(snapshot, tmp_path):
    path = plot_layout(plan_layout(CHAIN, snapshot), snapshot, tmp_path / "map.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
