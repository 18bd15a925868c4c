"""Settings of executors: strict, and what they open works."""

import doctest

import pytest
import torch

import qpeft.qpu.settings
from qpeft.circuits import qtha_block
from qpeft.errors import InputError
from qpeft.qpu.budget import Budget
from qpeft.qpu.mitigation import Mitigation
from qpeft.qpu.policy import Policy
from qpeft.qpu.settings import ExecutionSettings, open_executor


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"executor": "wukong"},
            "unknown executor 'wukong'; available: exact, virtual-wukong, origin, qiskit, qbraid",
        ),
        ({"gradient": "adjoint"}, "unknown gradient rule 'adjoint'; available: twin, shift, spsa"),
        ({"shots": 0}, "shots must be a whole number of at least 1 (got 0)"),
        ({"shots": 10.0}, "shots must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"max_blocks": 0}, "max_blocks must be a whole number"),
        ({"buffer": -1}, "buffer must be a whole number of at least 0"),
        ({"min_fidelity": 1.5}, "min_fidelity must be a number from 0 to 1"),
        ({"crosstalk": "much"}, "crosstalk must be a number"),
        ({"step": 0}, "the step of SPSA must be above 0"),
        ({"tokens": "some"}, "tokens must be 'all', 'last', 'every k'"),
        ({"max_cost": -1.0}, "max_cost must be a number of 0 or more"),
        ({"max_seconds": float("nan")}, "max_seconds must be a number of 0 or more"),
        ({"chip": 7.2}, "chip must be a name or a path"),
        ({"fallback": "yes"}, "fallback must be true or false"),
        ({"provider": ["url"]}, "must be names and values"),
        ({"policy": {"on_unknown": "resubmit"}}, "needs risk=Budget(...)"),
        ({"policy": {"on_unknown": "guess"}}, "on_unknown must be 'stop' or 'resubmit'"),
        ({"policy": {"retries": 3}}, "its names are on_unknown, risk, failures"),
        ({"policy": {"failures": "many"}}, "policy cannot be"),
        ({"mitigation": "twirled"}, "unknown readout mitigation"),
        ({"mitigation": {"affin": True}}, "mitigation must be the kind of readout mitigation, or any of"),
        ({"mitigation": 3}, "mitigation must be"),
    ],
)
def test_values_that_cannot_be_used_are_named(options, words):
    with pytest.raises(InputError) as caught:
        ExecutionSettings(**options)
    assert words in str(caught.value)


def test_settings_are_sorted_to_those_who_use_them():
    settings = ExecutionSettings(
        "origin", chip="WK_C180", tokens=" Every 2 ", mitigation={"affine": True, "minutes": 5}, buffer=1,
        max_jobs=3, max_cost=2.5, provider={"timeout": 30.0},
    )  # fmt: skip
    assert settings.tokens == "every 2"
    assert settings.mitigation == Mitigation(affine=True, minutes=5)
    assert settings.budget == {"jobs": 3, "money": 2.5}
    assert settings.layout == {"buffer": 1, "max_blocks": None, "min_fidelity": 0.0}
    assert settings.provider_settings == {"timeout": 30.0, "chip": "WK_C180"}
    virtual = ExecutionSettings("virtual-wukong", chip="wk-c180-like", crosstalk=0.1)
    assert virtual.provider_settings == {"chip": "wk-c180-like", "crosstalk": 0.1}
    assert ExecutionSettings("qiskit", chip="fake_torino").provider_settings == {"backend": "fake_torino"}


def test_the_policy_reaches_the_broker(tmp_path):
    policy = {"on_unknown": "resubmit", "risk": {"circuits": 400}, "failures": 2}
    executor = open_executor(ExecutionSettings("virtual-wukong", policy=policy), tmp_path)
    assert executor.broker.policy == Policy(on_unknown="resubmit", risk=Budget(circuits=400), failures=2, rate=1e6,
                                            in_flight=1)  # fmt: skip
    executor.close()


def test_a_virtual_chip_needs_no_folder(tmp_path):
    circuit, inputs = qtha_block(2, 1), torch.zeros(4, 2)
    forgotten = open_executor(ExecutionSettings("virtual-wukong", shots=200, seed=3))
    kept = open_executor(ExecutionSettings("virtual-wukong", shots=200, seed=3), tmp_path / "run")
    found = [each.expectations(circuit, inputs, torch.ones(8)) for each in (forgotten, kept)]
    assert torch.equal(*found)
    report = kept.report()
    assert (report.circuits, report.jobs, report.packed_circuits) == (4 + 2 * report.regions, 2, 3)
    assert report.shots == 200 + 2 * 2000
    assert report.cost == 0
    forgotten.close()
    kept.close()
    again = open_executor(ExecutionSettings("virtual-wukong", shots=200, seed=3), tmp_path / "run")
    assert torch.equal(again.expectations(circuit, inputs, torch.ones(8)), found[0])
    assert again.report().jobs == 2  # answered from the ledger
    again.close()


def test_budgets_are_kept(tmp_path):
    chip = open_executor(ExecutionSettings("virtual-wukong", shots=200, max_circuits=3), tmp_path)
    circuit = qtha_block(2, 1)
    chip.expectations(circuit, torch.zeros(4, 2), torch.ones(8))
    with pytest.raises(Exception, match="budget") as caught:
        chip.expectations(circuit, torch.zeros(4, 2), torch.ones(8))
    assert "circuits" in str(caught.value)
    chip.close()


def test_what_cannot_be_opened_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match="the layer's own simulator"):
        open_executor(ExecutionSettings())
    with pytest.raises(InputError, match="does not take these settings"):
        open_executor(ExecutionSettings("virtual-wukong", provider={"speed": 3}))
    with pytest.raises(InputError, match="no chip 'wukong-73'"):
        open_executor(ExecutionSettings("virtual-wukong", chip="wukong-73"))
    with pytest.raises(InputError, match="shots must be a whole number from 100 to 10000"):
        open_executor(ExecutionSettings("virtual-wukong", shots=10))


def test_examples_in_docstrings():
    assert doctest.testmod(qpeft.qpu.settings).failed == 0
