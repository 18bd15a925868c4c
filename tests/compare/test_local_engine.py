"""Jobs in processes: every answer once, processes that keep and that die, and nothing left running."""

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from qpeft.compare.local_engine import run_locally
from qpeft.errors import InputError, QPeftError

_seen: list[int] = []


def job_of(values):
    """Squares; some jobs ask for trouble."""
    _seen.append(values["n"])
    if values.get("dies") and not Path(values["dies"]).exists():
        Path(values["dies"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if values.get("always_dies"):
        os._exit(3)
    if values.get("warns"):
        logging.getLogger("qpeft.somewhere").warning(values["warns"])
    if values["n"] < 0:
        raise InputError("n must be positive")
    if values["n"] == 13:
        raise ZeroDivisionError("unlucky")
    return {"square": values["n"] ** 2, "pid": os.getpid(), "before": len(_seen) - 1}


def test_every_job_is_done_once_by_processes_that_keep_what_they_have():
    jobs = [{"n": n} for n in range(5)]
    answers = list(run_locally(jobs, job_of, n_workers=1))
    assert [(job["n"], answer["square"]) for job, answer in answers] == [(n, n * n) for n in range(5)]
    assert [answer["before"] for _, answer in answers] == [0, 1, 2, 3, 4]
    assert {answer["pid"] for _, answer in answers}.isdisjoint({os.getpid()})


def test_errors_come_back_as_answers_and_a_killed_process_costs_one_more_try(tmp_path):
    jobs = [{"n": -1}, {"n": 13}, {"n": 2, "dies": str(tmp_path / "died")}, {"n": 3, "always_dies": True}, {"n": 4}]
    answers = {job["n"]: answer for job, answer in run_locally(jobs, job_of, n_workers=2)}
    assert isinstance(answers[-1], InputError)
    assert "ZeroDivisionError" in str(answers[13])
    assert "job_of" in str(answers[13])
    assert answers[2]["square"] == 4
    assert isinstance(answers[3], QPeftError)
    assert "code 3" in str(answers[3])
    assert answers[4]["square"] == 16


def test_a_warning_of_every_job_is_said_once(capfd):
    jobs = [{"n": n, "warns": f"3 samples were cut{n // 3}"} for n in range(5)]
    assert len(list(run_locally(jobs, job_of, n_workers=1))) == 5
    assert [line for line in capfd.readouterr().err.splitlines() if "samples" in line] == [
        "3 samples were cut0", "3 samples were cut1"
    ]  # fmt: skip


def test_workers_end_with_their_engine():
    engine = run_locally([{"n": n} for n in range(3)], job_of, n_workers=1)
    _, answer = next(engine)
    engine.close()
    assert not psutil.pid_exists(answer["pid"])


@pytest.mark.skipif(os.name != "posix", reason="kills processes")
def test_workers_end_with_a_killed_engine(tmp_path):
    script = tmp_path / "engine.py"
    script.write_text(
        textwrap.dedent("""
            import os, time
            from qpeft.compare.local_engine import run_locally

            def wait(values):
                print(os.getpid(), flush=True)
                time.sleep(600)

            if __name__ == "__main__":
                list(run_locally([{}], wait))
        """)
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    worker = int(process.stdout.readline())
    process.kill()
    process.wait()
    for _ in range(100):
        if not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"worker {worker} outlived its engine")
