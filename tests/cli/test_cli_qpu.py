"""`qpeft qpu`: ledgers listed, shown, exported; jobs resumed, settled and cancelled."""

import csv
import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fault_vendor import FolderVendor, circuits, template
from qpeft.errors import Interrupted
from qpeft.qpu.broker import Broker
from qpeft.qpu.policy import Policy
from qpeft.qpu.protocol import Price, ProviderError
from qpeft.qpu.reading import LedgerReader

HASTY = Policy(backoff=1e-3, settle=0.0, poll_first=0.0, poll_last=1e-3, rate=1e6)


@pytest.fixture
def chip_run(tmp_path, monkeypatch):
    """Run 12 circuits in `tmp_path/runs/one` on a vendor that does what the script says; how it ended."""

    def open_provider(name, **settings):
        assert name == "folder"
        return FolderVendor(**settings, **later)

    later = {}
    monkeypatch.setattr("qpeft.qpu.providers.open_provider", open_provider)

    def run(cli=None, **script):
        later.clear()
        later.update(cli or {})
        vendor = FolderVendor(tmp_path / "vendor", price=Price(per_circuit=0.5), **script)
        opened = ("folder", {"folder": str(tmp_path / "vendor"), "finds": script.get("finds", True)})
        with Broker(vendor, tmp_path / "runs" / "one", policy=HASTY, opened=opened) as broker:
            broker.run([template(0, 1)], circuits(12), 100, purpose="evaluation")

    run.folder = tmp_path / "runs" / "one"
    return run


def states(folder):
    with LedgerReader(folder) as reader:
        return [job.state.value for job in reader.jobs()]


def test_list_show_and_cost(qpeft, chip_run):
    chip_run()
    listed = qpeft("qpu", "list", chip_run.folder.parent, "--json").json
    assert listed[0]["jobs"] == {"done": 3}
    assert listed[0]["circuits"] == 12
    assert "folder:chip" in qpeft("qpu", "list", chip_run.folder.parent).out
    shown = qpeft("qpu", "show", chip_run.folder, "--events", "--json").json
    assert [job["state"] for job in shown["submissions"]] == ["done"] * 3
    assert shown["events"][0]["kind"] == "started"
    assert "evaluation" in qpeft("qpu", "show", chip_run.folder, "--events").out
    spent = qpeft("qpu", "cost", chip_run.folder, "--json").json["providers"][0]
    assert spent["spent"] == {"circuits": 12, "jobs": 3, "shots": 1200, "seconds": 6.0, "money": 6.0}
    assert "6.00 EUR" in qpeft("qpu", "cost", chip_run.folder).out


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
@pytest.mark.parametrize("what", ["circuits", "jobs", "events"])
def test_export(qpeft, chip_run, tmp_path, what, ending):
    chip_run()
    file = tmp_path / f"out.{ending}"
    assert qpeft("qpu", "export", chip_run.folder, file, "--what", what).code == 0
    if ending == "jsonl":
        rows = [json.loads(line) for line in file.read_text().splitlines()]
    else:
        with open(file, newline="") as handle:
            rows = list(csv.DictReader(handle))
    assert len(rows) == {"circuits": 12, "jobs": 3}.get(what, len(rows)) >= 3
    if what == "circuits":
        blocks = rows[3]["blocks"] if ending == "jsonl" else json.loads(rows[3]["blocks"])
        assert blocks[0]["qubits"] == [0, 1]
        assert sum(blocks[0]["counts"].values()) == 100
        assert set(blocks[0]["counts"]) <= {"00", "01", "10", "11"}
    assert qpeft("qpu", "export", chip_run.folder, file, "--what", what).code == 2
    assert qpeft("qpu", "export", chip_run.folder, file, "--what", what, "--overwrite").code == 0


def test_resume_fetches_what_is_open(qpeft, chip_run):
    with pytest.raises(Interrupted):
        chip_run(polls=["queued", "interrupt"])
    open_jobs = states(chip_run.folder).count("submitted")
    assert open_jobs
    assert "qpeft qpu resume" in qpeft("qpu", "show", chip_run.folder).err
    fetched = qpeft("qpu", "resume", chip_run.folder, "--json").json
    assert [job["state"] for job in fetched] == ["done"] * open_jobs
    assert "no job was open" in qpeft("qpu", "resume", chip_run.folder).err


@pytest.mark.parametrize("what", ["silent", "dropped"])
def test_resolve_settles_a_doubt(qpeft, chip_run, what):
    with pytest.raises(ProviderError, match="qpeft qpu resolve"):
        chip_run(finds=False, submits=[what])
    assert "qpeft qpu resolve" in qpeft("qpu", "show", chip_run.folder).err
    with LedgerReader(chip_run.folder) as reader:
        (job,) = reader.jobs()
    found = FolderVendor(chip_run.folder.parents[1] / "vendor").find(job.token)
    assert "qpeft qpu resolve" in qpeft("qpu", "resume", chip_run.folder).err
    assert qpeft("qpu", "resolve", chip_run.folder, 1).code == 2
    if what == "silent":
        assert qpeft("qpu", "resolve", chip_run.folder, job.token, "--job-id", found).code == 0
        assert qpeft("qpu", "resume", chip_run.folder).code == 0
        assert states(chip_run.folder) == ["done"]
    else:
        assert qpeft("qpu", "resolve", chip_run.folder, 1, "--lost").code == 0
        assert states(chip_run.folder) == ["not-taken"]
    assert qpeft("qpu", "resolve", chip_run.folder, 1, "--lost").code == 2
    chip_run(finds=False)
    assert set(FolderVendor(chip_run.folder.parents[1] / "vendor").taken().values()) == {1}


def test_cancel_may_come_too_late(qpeft, chip_run):
    with pytest.raises(Interrupted):
        chip_run(cli={"polls": ["cancelled"]}, polls=["queued", "interrupt"])
    stopped = qpeft("qpu", "cancel", chip_run.folder, "--all", "--json").json
    assert stopped[0]["state"] == "cancelled"
    assert {job["state"] for job in stopped[1:]} <= {"done"}
    assert qpeft("qpu", "cancel", chip_run.folder, 1).code == 2
    assert qpeft("qpu", "cancel", chip_run.folder).code == 2


def test_folders_and_jobs_that_are_not_there(qpeft, chip_run, tmp_path):
    for arguments in (("show", tmp_path), ("cost", tmp_path), ("resume", tmp_path), ("list", tmp_path / "none")):
        assert qpeft("qpu", *arguments).code == 2
    assert qpeft("qpu", "list", tmp_path).code == 0
    chip_run()
    assert qpeft("qpu", "resolve", chip_run.folder, 99, "--lost").code == 2
    assert qpeft("qpu", "cancel", chip_run.folder, "nothing").code == 2
    assert qpeft("qpu", "export", chip_run.folder, tmp_path / "x.txt").code == 2
    assert qpeft("qpu", "export", chip_run.folder, tmp_path / "x.csv", "--what", "all").code == 2
