"""Submissions as PUBs, and answers that are read back without Qiskit: whole and right, or refused."""

import io
import sys

import numpy as np
import pytest
import torch
from circuit_set import plain_template, submission

from qpeft.circuits import Circuit, Gate, Input
from qpeft.qpu.protocol import Block, ProviderError, RawAnswer, Submission
from qpeft.qpu.providers.qiskit_pubs import Register, plan_pubs, read_answer, write_answer


def _template(n, *qubits):
    return plain_template(Circuit(n, tuple(Gate("RY", w, Input(w)) for w in range(n))), qubits)


def _mixed():
    """Three circuits: two on templates 0 and 1, one on template 1 alone."""
    templates = (_template(1, 4), _template(2, 0, 1))
    both = [(Block(0, (0.1 * c,)), Block(1, (0.2 * c, 0.3 * c))) for c in (1, 2)]
    return Submission(templates, (both[0], (Block(1, (7.0, 8.0)),), both[1]), shots=4, token="t")


def test_circuits_on_the_same_templates_share_a_pub():
    pubs = plan_pubs(_mixed(), side_by_side=True)
    assert [pub.templates for pub in pubs] == [(0, 1), (1,)]
    assert pubs[0].rows == (((0, 0), (0, 1)), ((2, 0), (2, 1)))
    np.testing.assert_allclose(pubs[0].values, [[0.1, 0.2, 0.3], [0.2, 0.4, 0.6]])
    np.testing.assert_allclose(pubs[1].values, [[7, 8]])


def test_blocks_run_one_by_one_where_that_makes_no_difference():
    pubs = plan_pubs(_mixed(), side_by_side=False)
    assert [pub.templates for pub in pubs] == [(0,), (1,)]
    assert pubs[1].rows == (((0, 1),), ((1, 0),), ((2, 1),))


def test_angles_that_do_not_fit_are_refused():
    broken = Submission((_template(2, 0, 1),), ((Block(0, (0.1,)),),), shots=4, token="t")
    with pytest.raises(ProviderError, match="has \\[1\\] angles, not 2"):
        plan_pubs(broken, side_by_side=True)


def _answer(change=lambda registers: None, side_by_side=True):
    rng = np.random.default_rng(0)
    registers = [
        {
            "b0": Register(1, rng.integers(0, 2, (2, 4, 1), dtype=np.uint8)),
            "b1": Register(2, rng.integers(0, 4, (2, 4, 1), dtype=np.uint8)),
        },
        {"b0": Register(2, rng.integers(0, 4, (1, 4, 1), dtype=np.uint8))},
    ]
    change(registers)
    return registers, RawAnswer(write_answer(registers, side_by_side), {}, "job-7")


def test_every_shot_is_counted_where_it_belongs():
    registers, answer = _answer()
    counts = read_answer(answer, _mixed())
    assert [[len(block) for block in circuit] for circuit in counts] == [[2, 4], [4], [2, 4]]
    for circuit, block, register, row in [(0, 0, (0, "b0"), 0), (0, 1, (0, "b1"), 0), (1, 0, (1, "b0"), 0),
                                          (2, 0, (0, "b0"), 1), (2, 1, (0, "b1"), 1)]:  # fmt: skip
        shots = registers[register[0]][register[1]].data[row, :, 0].tolist()
        expected = [shots.count(outcome) for outcome in range(len(counts[circuit][block]))]
        assert counts[circuit][block].tolist() == expected
        assert counts[circuit][block].dtype == torch.int64


def test_registers_of_more_than_eight_bits():
    job = submission([_template(10, *range(10))], [torch.zeros(1, 10)], shots=2)
    data = np.array([[[0b11, 0b00000001], [0, 0b10]]], dtype=np.uint8)
    counts = read_answer(RawAnswer(write_answer([{"b0": Register(10, data)}], True), {}, "j"), job)[0][0]
    assert counts.nonzero().flatten().tolist() == [2, 0b1100000001]


def _drop_a_shot(registers):
    registers[0]["b1"] = Register(2, registers[0]["b1"].data[:, :3])


def _drop_a_row(registers):
    registers[0]["b0"] = Register(1, registers[0]["b0"].data[:1])


def _one_bit_too_many(registers):
    registers[1]["b0"] = Register(2, registers[1]["b0"].data + np.uint8(4))


def _other_width(registers):
    registers[1]["b0"] = Register(3, registers[1]["b0"].data)


def _other_name(registers):
    registers[1]["meas"] = registers[1].pop("b0")


def _shots_as_numbers(registers):
    registers[1]["b0"] = Register(2, registers[1]["b0"].data.astype(float))


@pytest.mark.parametrize(
    "change", [_drop_a_shot, _drop_a_row, _one_bit_too_many, _other_width, _other_name, _shots_as_numbers, list.pop,
               list.clear]
)  # fmt: skip
def test_answers_that_are_not_whole_are_refused(change):
    with pytest.raises(ProviderError, match="the answer of job job-7 cannot be used"):
        read_answer(_answer(change)[1], _mixed())


def test_damaged_answers_are_refused_whatever_the_damage():
    _, answer = _answer()
    rng = np.random.default_rng(3)
    whole = [[block.tolist() for block in circuit] for circuit in read_answer(answer, _mixed())]
    for position in rng.integers(0, len(answer.data), 200):
        data = bytearray(answer.data)
        data[position] ^= 1 << int(rng.integers(8))
        for damaged in (bytes(data), answer.data[:position]):
            try:
                counts = read_answer(RawAnswer(damaged, {}, "job-7"), _mixed())
            except ProviderError:
                continue
            assert [[block.tolist() for block in circuit] for circuit in counts] == whole  # not a byte that matters


@pytest.mark.parametrize("manifest", ["[]", "{}", "null", '{"format": 2, "side_by_side": true, "pubs": []}', "{"])
def test_strange_manifests_are_refused(manifest):
    file = io.BytesIO()
    np.savez(file, manifest=np.array(manifest))
    with pytest.raises(ProviderError):
        read_answer(RawAnswer(file.getvalue(), {}, "job-7"), _mixed())


def test_answers_are_read_without_qiskit(monkeypatch):
    _, answer = _answer()
    for package in ("qiskit", "qiskit_aer", "qiskit_ibm_runtime"):
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises
    assert len(read_answer(answer, _mixed())) == 3
