"""Jobs on a Ray cluster, or on this machine through Ray: many small ones over workers that keep what they loaded.

Every worker is a Ray actor, a process of its own that lives through many jobs, so a base model is loaded once a
worker and not once a job. A worker that dies (out of memory, kill -9, a machine gone) takes nothing with it but its
job, which another worker does again; the second death is that job's answer. Machines of a cluster must see the same
folders under the same paths. Paper: Moritz et al., "Ray: A Distributed Framework for Emerging AI Applications", 2018.
"""

from __future__ import annotations

import logging
import os
import pickle
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from qpeft.errors import InputError, MissingDependencyError, QPeftError

logger = logging.getLogger(__name__)

Work = Callable[[dict[str, Any]], dict[str, Any]]

#: memory for values between processes; a job's are a few kilobytes
_OBJECT_STORE_BYTES = 100 * 2**20

#: seconds without any worker after which the log says what is waited for
_PATIENCE = 30.0

#: workers that may fail to start before it is no accident
_FALSE_STARTS = 3


@dataclass(frozen=True)
class _Task:
    job: dict[str, Any]
    lost_worker: bool = False


def run_on_ray(
    jobs: Sequence[dict[str, Any]], work: Work, n_workers: int = 1, address: str | None = None
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | Exception]]:
    """Do jobs in parallel, and yield each with its answer as soon as it is there.

    A closed or interrupted iteration stops the workers, and the Ray that was started here.

    Args:
        jobs: Plain values.
        work: Does one job in a worker process; what it keeps in its module stays there for the next job.
        n_workers: Most processes at once. The processors are shared among them evenly.
        address: Of a running cluster (`"auto"`, `"host:6379"`, `"ray://host:10001"`); without it $RAY_ADDRESS, or
            else a Ray of this machine alone, which ends with the iteration.

    Yields:
        A job, and what `work` returned or the exception it raised (its traceback is among the notes).

    Raises:
        InputError: A number of workers that cannot be had, or no cluster at the address.
        MissingDependencyError: Ray is not installed.
        QPeftError: Workers do not start.

    Example:
        >>> sorted(answer["square"] for _, answer in run_on_ray([{"n": 2}, {"n": 3}], square, 2))  # doctest: +SKIP
        [4, 9]
    """
    if n_workers < 1:
        raise InputError(f"the number of workers must be at least 1 (got {n_workers}).")
    ray = _ray()
    if not jobs:
        return
    n_workers = min(n_workers, len(jobs))
    with _cluster(ray, n_workers, address):
        yield from _run(ray, jobs, _actor(ray, work, n_workers), n_workers)


def _run(
    ray: Any, jobs: Sequence[dict[str, Any]], start: Callable[[], Any], n_workers: int
) -> Iterator[tuple[dict[str, Any], dict[str, Any] | Exception]]:
    waiting = deque(_Task(job) for job in jobs)
    pending: dict[Any, tuple[Any, _Task | None]] = {}  # coming answer -> its worker, and its task (None: it starts)
    false_starts, told = 0, False

    def hire() -> None:
        worker = start()
        pending[worker.ready.remote()] = (worker, None)

    try:
        for _ in range(n_workers):
            hire()
        while waiting or any(task for _, task in pending.values()):
            answers, _ = ray.wait(list(pending), num_returns=1, timeout=_PATIENCE)
            if not answers:
                if not told and not any(task for _, task in pending.values()):
                    told = True
                    logger.warning("no Ray worker has started yet: the cluster may have no free processors")
                continue
            worker, task = pending.pop(answers[0])
            try:
                result = ray.get(answers[0])
            except ray.exceptions.RayActorError as error:
                result = QPeftError(f"two workers died at this job, the second with: {_first_line(error)}")
                if task is None:
                    false_starts += 1
                    if false_starts == _FALSE_STARTS:
                        raise QPeftError(f"the Ray workers do not start: {_last_line(error)}") from error
                elif not task.lost_worker:
                    logger.warning("a Ray worker died; another one does its job again")
                    waiting.appendleft(_Task(task.job, lost_worker=True))
                    task = None
                if waiting:
                    hire()
            except ray.exceptions.RayError as error:  # an answer that cannot travel
                result = QPeftError(f"the job's answer was lost: {_last_line(error)}")
                _employ(ray, worker, waiting, pending)
            else:
                _employ(ray, worker, waiting, pending)
            if task is not None:
                yield task.job, result
    finally:
        for worker, _ in pending.values():
            ray.kill(worker)


def _employ(ray: Any, worker: Any, waiting: deque[_Task], pending: dict[Any, tuple[Any, _Task | None]]) -> None:
    """Give a free worker the next task, or let it go."""
    if waiting:
        task = waiting.popleft()
        pending[worker.do.remote(task.job)] = (worker, task)
    else:
        ray.kill(worker)


class _Worker:
    """What runs in a process of its own."""

    def __init__(self, work: Work, folder: str) -> None:
        os.chdir(folder)  # jobs may name folders relative to the one the comparison was started in
        self._work = work

    def ready(self) -> None:
        """Answered as soon as the process runs."""

    def do(self, job: dict[str, Any]) -> dict[str, Any] | Exception:
        try:
            return self._work(job)
        except Exception as error:
            error.add_note(traceback.format_exc())
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:
                return QPeftError(f"{type(error).__name__}: {error}")
            return error


def _actor(ray: Any, work: Work, n_workers: int) -> Callable[[], Any]:
    """A function that starts one worker with its share of the processors."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # Ray sets OMP_NUM_THREADS to the number of processors, unless the user has set it.
    options: dict[str, float] = {"num_cpus": processors_each([int(node.get("CPU", 0)) for node in nodes], n_workers)}
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if gpus:
        options["num_gpus"] = 1 / -(-n_workers // gpus)
    actor = ray.remote(_Worker).options(max_restarts=0, max_task_retries=0, **options)
    return lambda: actor.remote(work, os.getcwd())


def processors_each(processors: Sequence[int], n_workers: int) -> int:
    """The most processors that each of the workers can have, every worker on one machine.

    Args:
        processors: Of each machine.
        n_workers: Workers in all.

    Raises:
        InputError: There are more workers than processors.

    Example:
        >>> processors_each([8, 4], 3)
        4
        >>> processors_each([8, 4], 4)
        2
    """
    for share in range(max(processors, default=0), 0, -1):
        if sum(own // share for own in processors) >= n_workers:
            return share
    raise InputError(
        f"the Ray cluster has {sum(processors)} processors, too few for {n_workers} workers: ask for fewer."
    )


@contextmanager
def _cluster(ray: Any, n_workers: int, address: str | None) -> Iterator[None]:
    """Join the cluster, or start a small one; one that was joined before stays joined."""
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or None
    own: dict[str, Any] = {}
    if address in (None, "local"):
        own = {
            "num_cpus": max(n_workers, os.cpu_count() or 1),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(address=address or "local", logging_level=logging.ERROR, log_to_driver=False, **own)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"there is no Ray cluster at {address or 'this machine'} ({_first_line(error)}): start one with "
            "`ray start --head`, or leave the address out"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _ray() -> Any:
    # Before Ray is imported: no reports to its makers, and no warning about a change of its own to come.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            'the engine ray needs the package ray: install it with pip install "qpeft[cluster]".'
        ) from error
    return ray


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip().rstrip(".:")
