"""Runs that are killed with SIGKILL between any two statements and started again."""

import os
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import faults
from fault_vendor import FolderVendor

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed by signal")


@pytest.mark.parametrize("finds", [True, False], ids=["finds", "settled by hand"])
def test_nothing_is_lost_or_sent_twice(tmp_path, finds):
    found = faults.campaign(
        tmp_path, faults.FolderWorld(tmp_path, finds), 20, n_circuits=40, batch=20, how="both", seed=1
    )
    assert found["killed"] == 20
    assert found["lost"] == 0
    assert found["sent twice"] == 0


def test_a_kill_at_every_line_of_one_job(tmp_path):
    """Every so many lines from the first intent to the last answer, each in a run folder of its own."""
    random.seed(0)
    line = 0
    died = 0
    while True:
        folder = tmp_path / str(line)
        vendor = FolderVendor(folder / "vendor")
        code = faults.in_child(lambda at=folder, to=vendor: faults.run(at, to, 4, 4), "lines", line, False)
        assert faults.run(folder, vendor, 4, 4)
        assert set(vendor.taken().values()) == {1}
        if code == 0:
            break
        died += 1
        line += random.randint(20, 60)
    assert died > 10


@pytest.mark.slow
@pytest.mark.parametrize("finds", [True, False], ids=["finds", "settled by hand"])
def test_a_thousand_kills(tmp_path, finds):
    found = faults.campaign(
        tmp_path, faults.FolderWorld(tmp_path, finds), 1000, n_circuits=2000, batch=100, how="both"
    )
    assert found["lost"] == 0
    assert found["sent twice"] == 0
