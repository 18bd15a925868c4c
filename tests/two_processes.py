"""A function on two gloo processes, within a time limit."""

import os
import socket
import time

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_on_two_processes(worker, *arguments, seconds=180):
    """Call `worker(rank, *arguments)` in two processes; the test fails if one fails or they take too long."""
    context = mp.spawn(worker, args=arguments, nprocs=2, join=False)
    ends = time.monotonic() + seconds
    while not context.join(timeout=1):
        if time.monotonic() > ends:
            for process in context.processes:
                process.kill()
            pytest.fail(f"two processes did not finish within {seconds} s")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def become(rank: int, port: int) -> None:
    """Take the place that a launcher gives to a process."""
    from qpeft.training import ranks  # heavy, and not every user of this module trains

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
    ranks.join()


def leave():
    """End a worker without destroying what it holds.

    The last reference to a gloo group, dropped under the interpreter's lock, can wait forever for a worker thread that
    wants that lock.
    """
    dist.barrier()
    os._exit(0)
