"""What a chip must be, what it offers, and how it is named."""

import dataclasses
import json
import math
from datetime import UTC, datetime, timedelta

import pytest
import torch

from qpeft.chips import ChipSnapshot, Coupler, Qubit, load_chip
from qpeft.circuits import Circuit, Gate
from qpeft.errors import InputError
from qpeft.simulators import run_noisy

GOOD = {"fidelity": 0.995, "p10": 0.03, "p01": 0.06, "t1_us": 12.0, "t2_us": 1.5}


def chip(**changes) -> ChipSnapshot:
    qubits = tuple(Qubit(index, **GOOD, available=index != 3) for index in range(5))
    couplers = (Coupler((0, 1), 0.97), Coupler((2, 1), 0.0), Coupler((2, 3), 0.95), Coupler((2, 4), 0.96))
    return ChipSnapshot(**{"name": "five", "qubits": qubits, "couplers": couplers, **changes})


def test_what_cannot_be_used_is_not_offered():
    five = chip()
    assert five.live_qubits == (0, 1, 2, 4)
    assert [coupler.qubits for coupler in five.live_couplers] == [(0, 1), (2, 4)]
    assert five.largest_part() == 2


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("fidelity", 1.2, "from 0 to 1"),
        ("fidelity", math.nan, "from 0 to 1"),
        ("fidelity", 0.4, "not better than chance"),
        ("fidelity", "0.99", "from 0 to 1"),
        ("p10", -0.1, "p10 of qubit 0"),
        ("p01", math.inf, "p01 of qubit 0"),
        ("t1_us", 0.0, "positive time"),
        ("t2_us", -1.0, "positive time"),
        ("t2_us", math.nan, "positive time"),
        ("t2_us", 25.0, "longer than 2 T1"),
    ],
)
def test_numbers_of_a_qubit_are_checked(field, value, says):
    with pytest.raises(InputError, match=says):
        Qubit(0, **{**GOOD, field: value})
    Qubit(0, **{**GOOD, field: value}, available=False)


@pytest.mark.parametrize("pair", [(1, 1), (0,), (0, -1), (0, 1.5), (True, 2)])
def test_a_coupler_joins_two_qubits(pair):
    with pytest.raises(InputError, match="two different qubits"):
        Coupler(pair, 0.9)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"qubits": ()}, "no qubits"),
        ({"qubits": (Qubit(0, **GOOD), Qubit(0, **GOOD))}, "stands at place 1"),
        ({"qubits": (Qubit(0, **GOOD), Qubit(2, **GOOD))}, "stands at place 1"),
        ({"couplers": (Coupler((0, 7), 0.9),)}, "not there"),
        ({"couplers": (Coupler((0, 1), 0.9), Coupler((1, 0), 0.8))}, "listed twice"),
        ({"two_qubit_ns": 0.0}, "positive time"),
        ({"repetition_us": math.nan}, "positive time"),
        ({"date": "yesterday"}, "ISO 8601"),
    ],
)
def test_a_chip_is_checked(changes, says):
    with pytest.raises(InputError, match=says):
        chip(**changes)


def test_the_id_is_of_everything_physical_and_of_nothing_else():
    five = chip()
    assert len(five.id) == 12
    assert int(five.id, 16) >= 0
    same = {"name": "other", "date": "2024-01-01", "sources": {"t1_us": "inferred: guessed"}, "notes": ("read",)}
    assert chip(**same).id == five.id
    assert chip(one_qubit_ns=30).id == five.id  # a whole number is the same time
    others = [
        {"two_qubit_ns": 41.0},
        {"readout_ns": 999.0},
        {"qubits": tuple(dataclasses.replace(q, p01=0.0601) for q in five.qubits)},
        {"qubits": tuple(dataclasses.replace(q, available=True) for q in five.qubits)},
        {"couplers": (*five.couplers[:3], Coupler((2, 4), 0.961))},
        {"couplers": (*five.couplers[:3], Coupler((2, 4), 0.96, zz_khz=20.0))},
    ]
    assert len({five.id, *(chip(**changes).id for changes in others)}) == 1 + len(others)
    assert chip(couplers=five.couplers[::-1]).id == five.id


def test_age():
    assert chip().age_hours is None
    before = datetime.now(UTC) - timedelta(hours=30)
    assert chip(date=before.isoformat()).age_hours == pytest.approx(30, abs=0.01)
    assert chip(date=before.replace(tzinfo=None).isoformat()).age_hours == pytest.approx(30, abs=0.01)
    assert chip(date=(before + timedelta(hours=40)).isoformat()).age_hours == 0.0


def test_noise_model_of_the_whole_chip():
    five = chip()
    model = five.noise_model()
    assert model.n_qubits == 5
    assert model.couplers == ((0, 1), (2, 4))
    assert (model.readout_of(0).p10, model.readout_of(0).p01) == (0.03, 0.06)
    # one pulse of stated average fidelity: <Z> shrinks as depolarising and relaxation together say, then the readout
    flip = Circuit(1, (Gate("RX", 0, math.pi), Gate("RZ", 0, 0.3)))
    nothing = torch.zeros(1, 0, dtype=torch.float64)
    found = run_noisy(flip, nothing, torch.zeros(0, dtype=torch.float64), model.select([0])).item()
    assert found == pytest.approx(-(1 - 0.03 - 0.06) * (1 - 2 * 0.0025 - 2 * 0.0025) + 0.03, abs=0.01)
    # an unavailable qubit says nothing
    coin = run_noisy(Circuit(1, ()), nothing, torch.zeros(0, dtype=torch.float64), model.select([3]))
    assert coin.item() == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(InputError, match="no working coupler"):
        model.select([2, 3]).check(Circuit(2, (Gate("CZ", (0, 1)),)))


def test_fully_connected():
    ideal = ChipSnapshot.fully_connected(5)
    assert len(ideal.live_couplers) == 10
    bell = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))), ("Z0 Z1",))
    nothing = torch.zeros(1, 0, dtype=torch.float64)
    found = run_noisy(bell, nothing, torch.zeros(0, dtype=torch.float64), ideal.noise_model().select([3, 1]))
    assert found.item() == pytest.approx(1.0, abs=1e-9)
    with pytest.raises(InputError, match="1 to 1000"):
        ChipSnapshot.fully_connected(0)


def test_summary_counts_and_says_what_was_inferred():
    text = load_chip("wukong-72").summary()
    assert "66 of 72 usable" in text
    assert "of 126 live" in text
    assert "two_qubit_ns" in text.split("inferred", 1)[1]
    lonely = ChipSnapshot("none", (Qubit(0, **GOOD, available=False),), ())
    assert "0 of 1 usable; largest connected part 0" in lonely.summary()


def test_saved_and_loaded(tmp_path):
    five = chip(date="2024-04-22T09:30:00+00:00", sources={"t1_us": "inferred: guessed"})
    five.save(tmp_path / "five.json")
    again = load_chip(tmp_path / "five.json")
    assert again.id == five.id
    assert (again.live_qubits, again.date, again.sources) == (five.live_qubits, five.date, five.sources)
    with pytest.raises(InputError, match="cannot be written"):
        five.save(tmp_path / "nowhere" / "five.json")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", "must be a JSON object"),
        (json.dumps({"obj": None}).encode(), "must be a JSON object"),
    ],
)
def test_files_that_are_no_chip(tmp_path, content, says):
    path = tmp_path / "chip.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says):
        ChipSnapshot.load(path)


def test_a_folder_or_a_missing_file_is_no_chip(tmp_path):
    for path in (tmp_path, tmp_path / "missing.json"):
        with pytest.raises(InputError, match="cannot be read"):
            ChipSnapshot.load(path)
