"""The chips that come along: what was published is in them, the rest says that it was inferred."""

import sys
from pathlib import Path
from statistics import fmean

import pytest

from qpeft.chips import PRESETS, load_chip
from qpeft.errors import InputError

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import chip_presets


@pytest.mark.parametrize("name", PRESETS)
def test_files_are_what_the_generator_writes(name):
    written = chip_presets.text(chip_presets.ALL[name]())
    assert (chip_presets.PRESETS / f"{name}.json").read_text(encoding="utf-8") == written


def test_wukong_72_is_the_published_chip():
    chip = load_chip("wukong-72")
    assert (len(chip.qubits), len(chip.couplers), len(chip.live_qubits)) == (72, 126, 66)
    assert set(range(72)) - set(chip.live_qubits) == {18, 23, 42, 43, 49, 68}
    assert {b - a for a, b in (coupler.qubits for coupler in chip.couplers)} == {1, 6}
    fidelity = {coupler.qubits: coupler.fidelity for coupler in chip.couplers}
    assert (fidelity[38, 44], fidelity[45, 46], fidelity[45, 51], fidelity[41, 47]) == (0.9831, 0.9519, 0.9589, 0.964)
    assert not any(fidelity[pair] for pair in ((44, 50), (39, 45), (40, 46), (46, 47)))
    between = [c for c in chip.couplers if set(c.qubits) <= set(chip.live_qubits)]
    assert len(chip.live_couplers) / len(between) == pytest.approx(0.7, abs=0.01)
    assert (chip.qubits[0].t1_us, chip.qubits[1].t2_us) == (9.254, 1.844)
    assert 1 - (chip.qubits[0].p10 + chip.qubits[0].p01) / 2 == pytest.approx(0.9234, abs=1e-6)
    assert len(chip.vendor["HighFrequencyQubit"]) == 48
    assert chip.sources["two_qubit_ns"].startswith("inferred")
    assert not chip.notes


def test_ideal_wukong_works_everywhere():
    chip = load_chip("wukong-72-ideal")
    assert (len(chip.live_qubits), len(chip.live_couplers), chip.largest_part()) == (72, 126, 72)
    assert all(qubit.fidelity == 1 and qubit.p10 == qubit.p01 == 0 for qubit in chip.qubits)


def test_c180_has_the_published_averages():
    chip = load_chip("wk-c180-like")
    assert len(chip.live_qubits) == 180
    assert fmean(q.fidelity for q in chip.qubits) == pytest.approx(0.9983, abs=1e-4)
    assert fmean(1 - (q.p10 + q.p01) / 2 for q in chip.qubits) == pytest.approx(0.9557, abs=1e-4)
    assert fmean(c.fidelity for c in chip.live_couplers) == pytest.approx(0.9638, abs=1e-4)
    assert (0, 1) not in {coupler.qubits for coupler in chip.live_couplers}
    assert chip.sources["topology"].startswith("inferred")


def test_unknown_names_say_what_there_is(tmp_path):
    with pytest.raises(InputError, match="did you mean 'wukong-72'"):
        load_chip("wukong72")
    with pytest.raises(InputError, match="presets are wukong-72"):
        load_chip(tmp_path / "nothing.json")
    with pytest.raises(InputError, match="snapshot_from_backend"):
        load_chip("ibm-heron-like")
