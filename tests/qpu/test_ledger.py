"""The ledger: what is committed stays, states follow their order, other processes and broken disks are met."""

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from fault_vendor import CHIP, circuits, template
from qpeft.errors import InputError
from qpeft.qpu.budget import Spend
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.protocol import Block, RawAnswer
from qpeft.qpu.reading import Batch, LedgerReader
from qpeft.qpu.records import (
    digest,
    read_circuit,
    read_counts,
    read_template,
    scrubbed,
    write_circuit,
    write_counts,
    write_template,
)
from qpeft.qpu.schema import STEPS, VERSION, State
from qpeft.qpu.storage import FILE, DiskFull, LedgerError

TEXT = write_template(template(0, 1))


def add_batch(ledger: Ledger, n: int = 4) -> Batch:
    if ledger.run is None:
        ledger.start_run("folder:chip", ("virtual-wukong", {"chip": "wukong-72"}), CHIP.id)
    batch = Batch(0, digest(str(n)), "evaluation", 0, 100, 7, {"amend": 0}, (digest(TEXT),))
    return ledger.add_batch(batch, [TEXT], [(write_circuit(circuit), 1) for circuit in circuits(n)], n)


def intend(ledger: Ledger, batch: Batch, positions=(0, 1)):
    return ledger.intend(batch, "folder:chip", positions, 5, Spend(len(positions), 1, 200, 1.5, 2.0), "EUR")


def test_what_is_written_is_read_again():
    circuit = (Block(3, (0.12345678, -2.5, 7e2)), Block(0, ()), Block(70_000, (0.0,)))
    assert read_circuit(write_circuit(circuit)) == circuit
    counts = [torch.tensor([3, 0, 5, 2]), torch.tensor([10, 0])]
    assert all(torch.equal(a, b) for a, b in zip(read_counts(write_counts(counts)), counts, strict=True))
    copy = read_template(TEXT)
    assert copy == template(0, 1)
    with pytest.raises(InputError, match="compile the circuit again"):
        copy.angles(torch.zeros(1, 2), torch.zeros(0))


def test_angles_that_differ_beyond_eight_decimals_are_the_same_circuit():
    one, other = (write_circuit((Block(0, (angle, 1.0)),)) for angle in (0.123456781, 0.12345678))
    assert one == other
    assert read_circuit(one)[0].angles == (0.12345678, 1.0)
    generator = torch.Generator().manual_seed(0)
    angles = (torch.rand(1000, generator=generator, dtype=torch.float64) * 50 - 25).tolist()
    assert read_circuit(write_circuit((Block(0, tuple(angles)),)))[0].angles == tuple(round(a, 8) for a in angles)
    for angle in (float("nan"), float("inf"), 1e12):
        with pytest.raises(InputError, match="no angle"):
            write_circuit((Block(0, (angle,)),))


def test_a_submission_is_rebuilt_from_the_file_alone(tmp_path):
    with Ledger(tmp_path) as ledger:
        batch = add_batch(ledger)
        job = intend(ledger, batch, (1, 3))
        job = ledger.move(job, State.SUBMITTED, "taken", vendor_id="job-1")
        ledger.keep_answer(
            job, RawAnswer(b"\x00raw\xff" * 100, {"seconds": 0.25, "cost": 3.0, "currency": "EUR"}, "job-1")
        )
    with LedgerReader(tmp_path) as reader:
        job = reader.job("job-1")
        assert (job.state, job.positions) == (State.FETCHED, (1, 3))
        submission = reader.submission(job)
        assert submission.circuits == tuple(circuits(4)[i] for i in (1, 3))
        assert submission.templates == (template(0, 1),)
        assert (submission.shots, submission.seed, submission.options) == (100, 5, {"amend": 0})
        assert submission.token == job.token
        assert reader.answer(job).data == b"\x00raw\xff" * 100
        assert reader.spent("folder:chip") == Spend(2, 1, 200, 0.25, 3.0)
        assert reader.last_opened("folder:chip") == ("virtual-wukong", {"chip": "wukong-72"})


def test_every_step_is_an_event_and_events_stay(tmp_path):
    with Ledger(tmp_path) as ledger:
        job = intend(ledger, add_batch(ledger))
        job = ledger.move(job, State.NOT_TAKEN, "503")
        job = ledger.move(job, State.INTENT, "again")
        job = ledger.move(job, State.SUBMITTED, "taken", vendor_id="a")
        assert job.attempts == 2
        kinds = [event["kind"] for event in ledger.events(job.id)]
        assert kinds == ["intent", "not-taken", "intent", "submitted"]
        assert ledger.job(job.id) == job
    connection = sqlite3.connect(tmp_path / FILE)
    for statement in ("DELETE FROM events", "UPDATE events SET kind = 'x'"):
        with pytest.raises(sqlite3.IntegrityError, match="events are never"):
            connection.execute(statement)
    connection.close()


def test_states_move_only_along_their_steps(tmp_path):
    with Ledger(tmp_path) as ledger:
        batch = add_batch(ledger)
        for state in State:
            if state in STEPS[State.INTENT]:
                continue
            with pytest.raises(AssertionError):
                ledger.move(intend(ledger, batch), state, "")
        job = intend(ledger, batch)
        ledger.move(job, State.UNKNOWN, "")
        with pytest.raises(AssertionError, match="is not intent"):  # a stale view of the job
            ledger.move(job, State.SUBMITTED, "", vendor_id="x")
        assert ledger.job(job.id).state is State.UNKNOWN


def test_intents_of_a_dead_process_are_unknown(tmp_path):
    with Ledger(tmp_path) as ledger:
        job = intend(ledger, add_batch(ledger))
    with Ledger(tmp_path) as ledger:
        assert ledger.job(job.id).state is State.UNKNOWN
        assert ledger.unheld(job.batch, "folder:chip") == [2, 3]


def test_a_second_writer_is_refused_and_readers_are_not(tmp_path):
    with Ledger(tmp_path) as ledger:
        intend(ledger, add_batch(ledger))
        with pytest.raises(InputError, match="in use by another run"):
            Ledger(tmp_path)

        def elsewhere():
            assert len(LedgerReader(tmp_path).jobs()) == 1
            with pytest.raises(InputError, match="in use by another run"):
                Ledger(tmp_path)

        assert in_child(elsewhere) == 0
    Ledger(tmp_path).close()


def test_a_fork_does_not_write_with_its_parents_connection(tmp_path):
    with Ledger(tmp_path) as ledger:

        def use_it():
            with pytest.raises(LedgerError, match="before this process was forked"):
                ledger.jobs()

        assert in_child(use_it) == 0


def in_child(work) -> int:
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"no database " * 1000), "damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "damaged|something else|could not"),
        (lambda path: sql(path, f"PRAGMA user_version = {VERSION + 1}"), "newer"),
        (lambda path: sql(path, f"PRAGMA user_version = {VERSION - 1}"), "older"),
        (lambda path: sql(path, "PRAGMA application_id = 1"), "something else"),
    ],
)
def test_a_file_that_is_no_ledger_of_this_version_is_refused(tmp_path, spoil, message):
    with Ledger(tmp_path) as ledger:
        intend(ledger, add_batch(ledger))
    spoil(tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    for kind in (Ledger, LedgerReader):
        with pytest.raises((InputError, LedgerError), match=message):
            kind(tmp_path).jobs()
    assert (tmp_path / FILE).read_bytes() == before


def sql(path, statement):
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()


def test_no_ledger_and_folders_that_cannot_be_used(tmp_path):
    with pytest.raises(InputError, match="holds no"):
        LedgerReader(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        Ledger(tmp_path / "file" / "run")
    (tmp_path / FILE).touch()
    with pytest.raises(InputError, match="empty"):
        LedgerReader(tmp_path)


def test_a_read_only_copy_can_be_read(tmp_path):
    with Ledger(tmp_path / "run") as ledger:
        intend(ledger, add_batch(ledger))
    (tmp_path / "run").chmod(0o555)
    try:
        with LedgerReader(tmp_path / "run") as reader:
            assert len(reader.jobs()) == 1
    finally:
        (tmp_path / "run").chmod(0o755)


def fill(ledger: Ledger) -> None:
    """Let the file grow no further, as on a full disk."""
    (pages,) = ledger.store.rows("PRAGMA page_count")[0]
    ledger.store.rows(f"PRAGMA max_page_count = {pages}")


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path):
    with Ledger(tmp_path) as ledger:
        batch = add_batch(ledger)
        job = ledger.move(intend(ledger, batch), State.SUBMITTED, "", vendor_id="a")
        fill(ledger)
        with pytest.raises(DiskFull, match=r"could not keep the answer of job a: the disk is full.*safe"):
            ledger.keep_answer(job, RawAnswer(os.urandom(100_000), {}, "a"))
        assert ledger.job(job.id).state is State.SUBMITTED
        ledger.store.rows("PRAGMA max_page_count = 100000")
        assert ledger.keep_answer(job, RawAnswer(os.urandom(100_000), {}, "a")).state is State.FETCHED


def test_a_file_size_limit_is_met_with_a_sentence(tmp_path):
    """A real limit of the operating system: the write-ahead log cannot grow."""
    resource = pytest.importorskip("resource")

    def write_too_much():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        ledger = Ledger(tmp_path)
        job = ledger.move(intend(ledger, add_batch(ledger)), State.SUBMITTED, "", vendor_id="a")
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
        with pytest.raises(DiskFull):
            ledger.keep_answer(job, RawAnswer(os.urandom(1_000_000), {}, "a"))
        assert ledger.job(job.id).state is State.SUBMITTED

    assert in_child(write_too_much) == 0
    with Ledger(tmp_path) as ledger:
        assert ledger.job("a").state is State.SUBMITTED


def take_all_room(folder: Path) -> None:
    with contextlib.suppress(OSError), open(folder / "filling", "ab", buffering=0) as file:
        while True:
            file.write(b"\0" * 512)


def test_the_reserve_makes_room_for_one_more_write(tmp_path):
    """A small file system of its own, where the system lets one be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    try:
        with Ledger(folder) as ledger:
            job = intend(ledger, add_batch(ledger))
            take_all_room(folder)
            job = ledger.move(job, State.SUBMITTED, "taken", vendor_id="paid")
            assert not (folder / "ledger.reserve").exists()
            with pytest.raises(DiskFull):
                ledger.keep_answer(job, RawAnswer(os.urandom(900_000), {}, "paid"))
            assert ledger.job("paid").state is State.SUBMITTED
        take_all_room(folder)
        with pytest.raises(DiskFull, match=r"disk is full|disk full"):
            Ledger(folder)
        (folder / "filling").unlink()
        with Ledger(folder) as ledger:
            assert ledger.job("paid").state is State.SUBMITTED
    finally:
        subprocess.run(["umount", folder], check=True)


def test_credentials_never_reach_the_file(tmp_path, monkeypatch):
    secret = "s3cr3t-0123456789"
    monkeypatch.setenv("FOLDER_API_KEY", secret)
    with Ledger(tmp_path) as ledger:
        for settings in (
            {"api_key": "abc"},
            {"chip": secret},
            {"deep": {"token": "abc"}},
            {"url": "https://me:pass@host/"},
            {"urls": [f"http://host/?{secret}"]},
        ):
            with pytest.raises(InputError, match="credential"):
                ledger.start_run("folder:chip", ("origin", settings), "")
        job = intend(ledger, add_batch(ledger))
        job = ledger.move(job, State.SUBMITTED, f"taken with oqcs_auth={secret}", vendor_id="a")
        ledger.tell("note", f"header {secret}", job)
        ledger.keep_answer(job, RawAnswer(b"{}", {"header": secret}, "a"))
    for file in tmp_path.iterdir():
        assert secret.encode() not in file.read_bytes(), file
    assert scrubbed(f"x{secret}y") == "x***y"


def test_a_large_ledger_is_read_in_no_time(tmp_path):
    with Ledger(tmp_path) as ledger:
        for n in range(1, 60):
            batch = add_batch(ledger, n)
            intend(ledger, batch, range(n))
        assert len(ledger.circuits(batch.id)) == 59
        assert json.loads(json.dumps(ledger.table("batches")))[0]["purpose"] == "evaluation"
