"""The cache stays whole when two processes build at once, one is killed, the disk is full, or a file is damaged."""

import errno
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from safetensors import SafetensorError

from qpeft.errors import InputError
from qpeft.models.cache import MANIFEST, cache_root, cached, cached_or_built

BUILDER = """
import sys, time
from pathlib import Path
from qpeft.models.cache import cached_or_built

log, gate = Path(sys.argv[1]), Path(sys.argv[2])

def build(scratch, target):
    with log.open("a") as file:
        file.write("built\\n")
    (target / "weights").write_bytes(b"w" * 1000)
    while not gate.exists():
        time.sleep(0.01)
    (target / "config.json").write_text("{}")

print(sorted(p.name for p in cached_or_built("tiny", build, lambda step: print(step, flush=True)).iterdir()))
"""


def build_two_files(scratch: Path, target: Path) -> None:
    (target / "weights").write_bytes(b"w" * 1000)
    (target / "config.json").write_text("{}")


def never_build(scratch: Path, target: Path) -> None:
    raise AssertionError("built again although the cache was whole")


def start(log: Path, gate: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(BUILDER), str(log), str(gate)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "the other process did not get there in time"
        time.sleep(0.01)


def leftovers(root: Path) -> list[str]:
    return [p.name for p in (root / "models").iterdir() if p.name.startswith(".partial")]


def test_second_use_does_not_build_again(own_cache):
    folder = cached_or_built("tiny", build_two_files)
    assert folder == own_cache / "models" / "tiny"
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", MANIFEST, "weights"]
    assert cached_or_built("tiny", never_build) == folder
    assert leftovers(own_cache) == []


def test_two_processes_at_once_build_once(own_cache, tmp_path):
    log, gate = tmp_path / "log", tmp_path / "gate"
    builder = start(log, gate)
    wait_for(log.exists)
    waiter = start(log, gate)
    assert waiter.stdout.readline() == "waiting for another process that is preparing tiny\n"
    gate.touch()
    for process in (builder, waiter):
        assert process.communicate(timeout=120)[0] == f"['config.json', '{MANIFEST}', 'weights']\n"
        assert process.returncode == 0
    assert log.read_text() == "built\n"


def test_kill_in_the_middle_leaves_no_broken_model_and_is_cleaned_up(own_cache, tmp_path):
    process = start(tmp_path / "log", tmp_path / "never")
    wait_for(lambda: any((own_cache / "models").glob(".partial-tiny-*/model/weights")))
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert cached("tiny") is None
    assert len(leftovers(own_cache)) == 1
    folder = cached_or_built("tiny", build_two_files)  # the dead process's lock is gone with it
    assert (folder / "weights").read_bytes() == b"w" * 1000
    assert leftovers(own_cache) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_one_sentence_and_leaves_nothing(own_cache, error):
    def build(scratch, target):
        (target / "weights").write_bytes(b"w")
        raise error

    with pytest.raises(InputError, match=r"no space left for the model in .*models; free some, or set QPEFT_CACHE"):
        cached_or_built("tiny", build)
    assert leftovers(own_cache) == []
    assert cached("tiny") is None
    assert cached_or_built("tiny", build_two_files).is_dir()


def test_full_disk_at_the_manifest_leaves_nothing(own_cache, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        with pytest.raises(InputError, match="no space left"):
            cached_or_built("tiny", lambda scratch, target: (target / "weights").write_bytes(b"w") and None)
    assert leftovers(own_cache) == []
    assert cached("tiny") is None


def test_interruption_leaves_nothing(own_cache):
    def build(scratch, target):
        (target / "weights").write_bytes(b"w")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_or_built("tiny", build)
    assert leftovers(own_cache) == []
    assert cached("tiny") is None


def flip_a_byte(folder: Path) -> None:
    data = bytearray((folder / "weights").read_bytes())
    data[500] ^= 1
    (folder / "weights").write_bytes(data)
    os.utime(folder / "weights", ns=(1, 1))


def cut_short(folder: Path) -> None:
    os.truncate(folder / "weights", 999)


def lose_a_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def garble_the_manifest(folder: Path) -> None:
    (folder / MANIFEST).write_text("[1, 2")


def age_the_manifest(folder: Path) -> None:
    path = folder / MANIFEST
    path.write_text(path.read_text().replace('"format": 1', '"format": 0'))


@pytest.mark.parametrize(
    "damage", [flip_a_byte, cut_short, lose_a_file, lose_the_manifest, garble_the_manifest, age_the_manifest]
)
def test_damage_is_detected_and_repaired(own_cache, damage):
    folder = cached_or_built("tiny", build_two_files)
    damage(folder)
    assert cached("tiny") is None
    assert cached_or_built("tiny", build_two_files) == folder
    assert (folder / "weights").read_bytes() == b"w" * 1000
    assert leftovers(own_cache) == []
    assert cached("tiny") == folder


def test_copied_cache_is_verified_once_and_kept(own_cache):
    folder = cached_or_built("tiny", build_two_files)
    os.utime(folder / "weights", ns=(1, 1))
    assert cached_or_built("tiny", never_build) == folder
    assert '"mtime_ns": 1\n' in (folder / MANIFEST).read_text()


def test_failed_rebuild_keeps_the_damaged_model_out_of_use(own_cache):
    folder = cached_or_built("tiny", build_two_files)
    cut_short(folder)

    def fail(scratch, target):
        raise InputError("no network")

    with pytest.raises(InputError, match="no network"):
        cached_or_built("tiny", fail)
    assert cached("tiny") is None


def test_cache_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")  # not even root can make a folder below a file
    monkeypatch.setenv("QPEFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"cannot be stored in .*; set QPEFT_CACHE to a folder you can write to"):
        cached_or_built("tiny", build_two_files)


def test_read_only_cache_is_one_sentence_and_still_serves_what_it_holds(own_cache, monkeypatch):
    folder = cached_or_built("tiny", build_two_files)

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    monkeypatch.setattr("os.mkdir", refuse)
    assert cached_or_built("tiny", never_build) == folder
    with pytest.raises(InputError, match=r"\(Read-only file system\); set QPEFT_CACHE"):
        cached_or_built("other", build_two_files)


def test_place_of_the_cache(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("QPEFT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_root() == tmp_path / "qpeft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "qpeft"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert cache_root() == tmp_path / "home" / "Library" / "Caches" / "qpeft"
