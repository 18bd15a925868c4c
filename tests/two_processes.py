"""A function on two gloo processes, within a time limit."""

import os
import time

import pytest
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


def leave():
    """End a worker without destroying what it holds.

    The last reference to a gloo group, dropped under the interpreter's lock, can wait forever for a worker thread that
    wants that lock.
    """
    dist.barrier()
    os._exit(0)
