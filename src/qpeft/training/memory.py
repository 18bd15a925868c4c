"""Memory of this process: what it has used at most, what there is for it, and what to say when it did not suffice.

Main memory that can be had is the least of what the system calls available, which counts caches that it can drop, and
what each control group around this process leaves below its limit, caches of files counted as free there too.
"""

from __future__ import annotations

import errno
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from qpeft.errors import QPeftError, TrainingError

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


class OutOfMemory(TrainingError):
    """The memory did not suffice; the message tells what to do with less, and how to go on."""


def peak_memory_bytes(device: str) -> int:
    """Largest amount of memory used so far, in bytes."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_bytes(device: str) -> float:
    """Memory that this process can still take on a device (`cpu`, `cuda`, `cuda:1`), in bytes."""
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            return math.inf  # loading the model says what is wrong
        return float(torch.cuda.mem_get_info(torch.device(device))[0])
    return min([float(psutil.virtual_memory().available), *_left_in_groups()])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether too little memory is behind an error, also where a library wrapped it into one of its own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, MemoryError | torch.OutOfMemoryError):
            return True
        if isinstance(link, OSError) and link.errno == errno.ENOMEM:
            return True
        text = str(link)
        if isinstance(link, RuntimeError) and any(sign in text for sign in _SIGNS):
            return True
        link = link.__cause__ or link.__context__
    return False


#: of torch's allocators, of the libraries of matrix products, and of the system
_SIGNS = (
    "not enough memory", "can't allocate memory", "out of memory", "ALLOC_FAILED", "Cannot allocate memory",
    "bad_alloc",
)  # fmt: skip


@contextmanager
def told_if_out_of_memory(doing: str) -> Iterator[None]:
    """Say in one sentence that the memory did not suffice for something.

    Raises:
        OutOfMemory: It did not.
    """
    try:
        yield
    except QPeftError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(f"the memory did not suffice for {doing}: free some, or take a smaller model") from error


def _left_in_groups() -> Iterator[float]:
    """What the control groups of this process leave below their limits."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2: one tree, each limit holds for all below it
            group = _GROUPS / path.lstrip("/")
            while group != _GROUPS.parent:
                yield from _left(group, "memory.max", "memory.current", "inactive_file")
                group = group.parent
        elif "memory" in controllers.split(","):
            group = _GROUPS / "memory" / path.lstrip("/")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            # inside a container its own group is often mounted as the root
            yield from _left(group if group.is_dir() else _GROUPS / "memory", *names)


def _left(group: Path, limit: str, usage: str, reclaimable: str) -> Iterator[float]:
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        cached = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit ("max"), or no such group here
        return
    yield float(max(0, most - used + int(cached.get(reclaimable, 0))))
