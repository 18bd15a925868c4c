"""Jobs over Ray workers: every answer once, workers that keep and that die, and nothing left running."""

import builtins
import os
import signal
import sys
from pathlib import Path

import pytest

from qpeft.compare.ray_engine import processors_each, run_on_ray
from qpeft.errors import InputError, MissingDependencyError, QPeftError

_kept = []


def work(job):
    """Squares; some jobs ask for trouble."""
    _kept.append(job["n"])
    if job.get("dies") and (job["dies"] == "always" or not Path(job["dies"]).exists()):
        if job["dies"] != "always":
            Path(job["dies"]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job["n"] < 0:
        raise InputError(f"n must be positive (got {job['n']})")
    if job["n"] == 13:
        return {"answer": lambda: "no pickle"}
    threads = os.environ.get("OMP_NUM_THREADS")
    return {
        "square": job["n"] ** 2, "pid": os.getpid(), "jobs_here": len(_kept), "threads": threads,
        "folder": os.getcwd(),
    }  # fmt: skip


@pytest.fixture
def ray():
    ray = pytest.importorskip("ray")
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
    yield ray
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


def test_a_round_of_jobs(ray, tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.chdir(tmp_path)
    jobs = [{"n": n} for n in (1, 2, 3, -1)]
    answers = {job["n"]: answer for job, answer in run_on_ray(jobs, work, n_workers=1)}
    assert set(answers) == {1, 2, 3, -1}
    for n in (1, 2, 3):
        assert answers[n]["square"] == n**2
        assert answers[n]["folder"] == str(tmp_path)
        assert answers[n]["threads"] == str(os.cpu_count())
        assert answers[n]["jobs_here"] == n  # one process does them all
    assert answers[1]["pid"] != os.getpid()
    assert isinstance(answers[-1], InputError)
    assert str(answers[-1]) == "n must be positive (got -1)"
    assert "in work" in answers[-1].__notes__[0]
    assert not ray.is_initialized()


@pytest.mark.slow
def test_dead_workers_are_replaced_and_their_jobs_done_again(ray, tmp_path):
    jobs = [{"n": 20, "dies": str(tmp_path / "died-once")}, {"n": 21, "dies": "always"}, *({"n": n} for n in range(6))]
    answers = {job["n"]: answer for job, answer in run_on_ray(jobs, work, n_workers=2)}
    assert {n: answer["square"] for n, answer in answers.items() if n != 21} == {n: n * n for n in (20, *range(6))}
    assert isinstance(answers[21], QPeftError)
    assert "two workers died" in str(answers[21])
    assert "\n" not in str(answers[21])


@pytest.mark.slow
def test_stopping_early_leaves_no_worker(ray):
    running = run_on_ray([{"n": n} for n in range(1, 50)], work, n_workers=1)
    pid = next(running)[1]["pid"]
    running.close()
    assert not ray.is_initialized()
    for _ in range(100):
        if not Path(f"/proc/{pid}").exists():
            break
        signal.sigtimedwait([], 0.1)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.slow
def test_answer_that_cannot_travel(ray):
    (_, answer), (_, other) = run_on_ray([{"n": 13}, {"n": 2}], work, n_workers=1)
    # Ray's own pickle takes functions, so this one arrives
    assert answer["answer"]() == "no pickle"
    assert other["square"] == 4


def test_no_cluster_at_the_address(ray):
    with pytest.raises(InputError, match="no Ray cluster at nowhere"):
        next(run_on_ray([{"n": 1}], work, address="nowhere"))


def test_without_ray_the_way_to_get_it(monkeypatch):
    real = builtins.__import__

    def refuse(name, *rest, **others):
        if name == "ray":
            raise ImportError(name)
        return real(name, *rest, **others)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependencyError, match=r"qpeft\[cluster\]"):
        next(run_on_ray([{"n": 1}], work))


def test_processors_are_shared_evenly():
    assert processors_each([8], 3) == 2
    assert processors_each([2, 2, 2], 3) == 2
    assert processors_each([3, 3], 4) == 1
    with pytest.raises(InputError, match="4 processors, too few for 5 workers"):
        processors_each([2, 2], 5)
    with pytest.raises(InputError, match="at least 1"):
        next(run_on_ray([{"n": 1}], work, n_workers=0))
