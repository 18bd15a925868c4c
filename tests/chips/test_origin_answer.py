"""Origin's chipInfo is read as it comes, written back unchanged, and refused in one sentence where it is broken."""

import contextlib
import copy
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.chips import PRESETS, ChipSnapshot, load_chip
from qpeft.errors import InputError

# Shaped as the cloud answers; the first two qubits and the edges are those that Origin printed in its change log.
DOWNLOAD = {
    "ChipID": "72",
    "QubitCount": 5,
    "AvailableQubits": [0, 1, 2, 4],
    "HighFrequencyQubit": [0, 4],
    "adjMatrix": {
        "0": [{"v": 1, "w": 0.9831}, {"v": 2, "w": 0.0}],
        "1": [{"v": 0, "w": 0.9831}, {"v": 2, "w": 0.9519}],
        "2": [{"v": 4, "w": 0.9589}, {"v": 3, "w": 0.964}],
    },
    "QubitParams": [
        {"qubitId": "0", "T1": 9.254, "T2": 1.128, "SingleGateFidelity": 0.995, "ReadoutFidelity": 0.9234,
         "Frequency": 4764.0},
        {"qubitId": "1", "T1": 17.436, "T2": 1.844, "SingleGateFidelity": 0.9973, "ReadoutFidelity": 0.9417,
         "Frequency": 4041.0},
        {"qubitId": "2", "T1": 10.0, "T2": 1.5, "SingleGateFidelity": 0.996, "ReadoutFidelity": 0.93},
        {"qubitId": "4", "T1": 11.0, "T2": 1.25, "SingleGateFidelity": 0.997, "ReadoutFidelity": 0.95},
    ],
    "BasicQGate": ["RPhi", "CZ"],
    "CompensateAngle": {"CZ(0,1)": {"0": 1.0, "1": 2.0}},
    "QGateClock": [{"gateType": "RPhi", "IntValue": 30}, {"gateType": "CZ", "IntValue": 45}],
}  # fmt: skip


def changed(**changes) -> dict:
    answer = copy.deepcopy(DOWNLOAD)
    answer.update(changes)
    return answer


def test_a_download_is_read():
    chip = ChipSnapshot.from_origin(DOWNLOAD)
    assert (chip.name, len(chip.qubits), chip.live_qubits) == ("72", 5, (0, 1, 2, 4))
    live = {coupler.qubits: coupler.fidelity for coupler in chip.live_couplers}
    assert live == {(0, 1): 0.9831, (1, 2): 0.9519, (2, 4): 0.9589}
    first = chip.qubits[0]
    assert (first.fidelity, first.t1_us, first.t2_us, first.frequency_mhz) == (0.995, 9.254, 1.128, 4764.0)
    assert first.p10 == first.p01 == pytest.approx(1 - 0.9234)
    assert (chip.one_qubit_ns, chip.two_qubit_ns) == (30.0, 45.0)
    assert chip.sources["readout_ns"].startswith("inferred")
    assert not chip.notes


def test_the_whole_answer_is_read_too():
    whole = {"success": True, "code": 10000, "message": "success", "obj": DOWNLOAD}
    assert ChipSnapshot.from_origin(whole).id == ChipSnapshot.from_origin(DOWNLOAD).id
    with pytest.raises(InputError, match="refusal: 'resource is null'"):
        ChipSnapshot.from_origin({"success": False, "message": "resource is null", "obj": None})


def test_a_download_replays_unchanged():
    written = ChipSnapshot.from_origin(DOWNLOAD).to_origin()
    for name in ("ChipID", "QubitCount", "AvailableQubits", "HighFrequencyQubit", "BasicQGate", "CompensateAngle"):
        assert written[name] == DOWNLOAD[name]
    assert json.dumps(written["QGateClock"]) == json.dumps(DOWNLOAD["QGateClock"])  # whole numbers stay whole
    assert written["QubitParams"] == DOWNLOAD["QubitParams"]

    def edges(answer):
        return {(*sorted((int(a), e["v"])), e["w"]) for a, entries in answer["adjMatrix"].items() for e in entries}

    assert edges(written) == edges(DOWNLOAD)


@pytest.mark.parametrize("name", PRESETS)
def test_writing_and_reading_is_the_identity(name):
    chip = load_chip(name)
    again = ChipSnapshot.from_origin(json.loads(json.dumps(chip.to_origin())))
    assert again == chip
    assert (again.id, again.sources, again.vendor) == (chip.id, chip.sources, chip.vendor)


def test_numbers_may_be_strings():
    def spelled(value):
        if isinstance(value, dict):
            return {name: spelled(entry) for name, entry in value.items()}
        if isinstance(value, list):
            return [spelled(entry) for entry in value]
        return str(value)

    assert ChipSnapshot.from_origin(spelled(DOWNLOAD)).id == ChipSnapshot.from_origin(DOWNLOAD).id


def test_what_is_missing_is_filled_and_noted():
    answer = changed()
    for name in ("AvailableQubits", "QubitCount", "QGateClock", "ChipID", "BasicQGate", "HighFrequencyQubit"):
        del answer[name]
    del answer["QubitParams"][2]["T1"]
    answer["QubitParams"][3]["T2"] = 0.0
    chip = ChipSnapshot.from_origin(answer)
    assert chip.live_qubits == (0, 1, 2, 4)
    assert chip.qubits[2].t1_us == 11.0  # median of 9.254, 17.436 and 11
    assert chip.qubits[4].t2_us == 1.5
    assert any(note.startswith("T1 of qubits 2 is missing") for note in chip.notes)
    assert chip.sources["one_qubit_ns"].startswith("inferred")
    assert ChipSnapshot.from_origin(chip.to_origin()).notes == chip.notes


def test_too_long_t2_is_clipped_and_noted():
    answer = changed()
    answer["QubitParams"][1]["T2"] = 40.0
    chip = ChipSnapshot.from_origin(answer)
    assert chip.qubits[1].t2_us == 2 * 17.436
    assert "T2 of qubit 1 was 40 us" in chip.notes[0]


def test_an_edge_with_two_values_has_the_lower_one():
    answer = changed()
    answer["adjMatrix"]["1"][0]["w"] = 0.9
    chip = ChipSnapshot.from_origin(answer)
    assert chip.live_couplers[0].fidelity == 0.9
    assert "lower one" in chip.notes[0]


def test_qubits_without_fidelities_are_not_usable():
    answer = changed(AvailableQubits=[0, 1, 2, 3, 4])
    answer["QubitParams"][2]["SingleGateFidelity"] = 0.0
    chip = ChipSnapshot.from_origin(answer)
    assert chip.live_qubits == (0, 1, 4)
    assert "qubits 2, 3" in chip.notes[0]


def test_our_own_fields():
    more = {"readout": {"0": [0.05, 0.1]}, "zz_khz": {"1,0": 12.5}, "date": "2024-04-22", "repetition_us": 100}
    chip = ChipSnapshot.from_origin(changed(qpeft=more))
    assert (chip.qubits[0].p10, chip.qubits[0].p01) == (0.05, 0.1)
    assert (chip.couplers[0].zz_khz, chip.date, chip.repetition_us) == (12.5, "2024-04-22", 100.0)
    assert ChipSnapshot.from_origin(chip.to_origin()) == chip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"QubitParams": None}, "'QubitParams' must be a JSON list"),
        ({"QubitParams": [{}]}, "'qubitId' must be a finite number"),
        ({"QubitParams": DOWNLOAD["QubitParams"][:1] * 2}, "lists qubit 0 twice"),
        ({"QubitCount": 3}, "'QubitCount' is 3, but the answer names qubit 4"),
        ({"QubitCount": 10**12}, "'QubitCount'"),
        ({"AvailableQubits": [10**9]}, "names qubit 1000000000"),
        ({"adjMatrix": []}, "'adjMatrix' must be a JSON object"),
        ({"adjMatrix": {"0": [{"v": 0, "w": 0.9}]}}, "to itself"),
        ({"adjMatrix": {"0": [{"v": 1, "w": 1.5}]}}, "from 0 to 1"),
        ({"adjMatrix": {"0": [{"v": 1}]}}, "'w' of the edge"),
        ({"adjMatrix": {"x": []}}, "a key of 'adjMatrix'"),
        ({"QGateClock": [{"gateType": "CZ", "IntValue": -1}]}, "positive time"),
        ({"QGateClock": [{"IntValue": 30}]}, "'gateType' must be text"),
        ({"qpeft": {"zz_khz": {"0,4": 1.0}}}, "no edge"),
        ({"qpeft": {"readout": {"0": [0.1]}}}, "p10, p01"),
        ({"qpeft": {"date": "soon"}}, "ISO 8601"),
    ],
)
def test_broken_answers_are_named(changes, says):
    with pytest.raises(InputError, match=says):
        ChipSnapshot.from_origin(changed(**changes))


@pytest.mark.parametrize("name", ["T1", "T2", "SingleGateFidelity", "ReadoutFidelity", "Frequency"])
@pytest.mark.parametrize("value", [math.nan, math.inf, "much", [], True, -1e400])
def test_numbers_that_are_none(name, value):
    answer = changed()
    answer["QubitParams"][0][name] = value
    with pytest.raises(InputError, match=f"{name}"):
        ChipSnapshot.from_origin(answer)


@pytest.mark.parametrize("name", ["QubitParams", "adjMatrix"])
def test_answers_that_lack_the_chip(name):
    answer = changed()
    del answer[name]
    with pytest.raises(InputError, match=f"no '{name}'"):
        ChipSnapshot.from_origin(answer)


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def _spots(value, path=()):
    """Paths of everything inside a JSON value."""
    yield path
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _spots(entry, (*path, name))
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _spots(entry, (*path, number))


SPOTS = list(_spots(changed(qpeft={"readout": {"0": [0.1, 0.2]}, "zz_khz": {"0,1": 1.0}, "sources": {"T1": "x"}})))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(SPOTS), JUNK), min_size=1, max_size=3))
def test_corrupt_answers_give_a_chip_or_one_sentence(changes):
    answer = changed(qpeft={"readout": {"0": [0.1, 0.2]}, "zz_khz": {"0,1": 1.0}, "sources": {"T1": "x"}})
    for path, junk in changes:
        if not path:
            answer = junk
            continue
        inside = answer
        for name in path[:-1]:
            try:
                inside = inside[name]
            except (KeyError, IndexError, TypeError):
                break
        else:
            with contextlib.suppress(IndexError, TypeError):  # an earlier change took the spot away
                inside[path[-1]] = junk
    try:
        chip, message = ChipSnapshot.from_origin(answer), ""
    except InputError as error:
        chip, message = None, str(error)
    assert "\n" not in message
    assert len(message) < 400
    if chip is not None:  # what remains is a sound chip
        live = set(chip.live_qubits)
        assert all(live.issuperset(coupler.qubits) for coupler in chip.live_couplers)
        assert ChipSnapshot.from_origin(chip.to_origin()).id == chip.id
        chip.summary()


@settings(max_examples=100, deadline=None)
@given(JUNK)
def test_junk_gives_one_sentence(answer):
    with pytest.raises(InputError):
        ChipSnapshot.from_origin(answer)
