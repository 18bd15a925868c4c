"""The processes of one run, as `torchrun` and `accelerate launch` start them: the same program once a rank.

Every rank reads the same data with the same seeds and takes its share of each batch. With R ranks of B examples each
the gradient is that of one process with R·B examples,

    g = (1/N) sum_r sum_(labels of rank r) dl,      N = labels of all ranks,

circuits included: each rank simulates those of its own examples. The first rank alone writes, to the run folder and
to the user; what can be refused is refused by all ranks together, so that none waits for one that has left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from qpeft.errors import InputError, QPeftError, TrainingError

T = TypeVar("T")

#: longest wait for another rank, as transformers' `ddp_timeout`
_PATIENCE = timedelta(minutes=30)

_kept: list[Any] = []


class SaidElsewhere(QPeftError):
    """This rank ends because another refused; that one tells the user why."""


class RankLost(TrainingError):
    """Another process of this run was killed or has failed; the message tells how to go on."""


def rank() -> int:
    """This process's number among those of the run, from 0."""
    return int(os.environ.get("RANK", 0)) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes the run has."""
    # some schedulers set WORLD_SIZE for programs that they start once; LOCAL_RANK comes from a launcher alone
    return int(os.environ.get("WORLD_SIZE", 1)) if "LOCAL_RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def join() -> None:
    """Meet the other ranks; does nothing in a run of one process, or the second time.

    Raises:
        InputError: They could not be reached.
    """
    if world_size() == 1 or dist.is_initialized():
        return
    on_gpus = torch.cuda.is_available() and not _env("ACCELERATE_USE_CPU")
    if on_gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=_PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the {world_size()} processes of this run did not meet ({_one_line(error)}): start them with accelerate "
            "launch or torchrun"
        ) from error


def device_for(device: str) -> tuple[str, str | None]:
    """Where this rank loads the base, and where it computes if that is said already, for a recipe's `model.device`.

    A base that FSDP or DeepSpeed will shard is loaded into the main memory: whole, it may not fit on one GPU.

    Raises:
        InputError: All ranks would share one GPU.
    """
    if world_size() == 1:
        return device, None
    if ":" in device:
        raise InputError(
            f"model.device is {device}, and each of the {world_size()} processes needs a GPU of its own: use "
            "model.device=auto"
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() and not _env("ACCELERATE_USE_CPU") else "cpu"
    sharded = asks_for_shards()
    if device == "cuda" and not sharded:
        return f"cuda:{os.environ['LOCAL_RANK']}", device
    return "cpu" if sharded else device, device


def asks_for_fsdp() -> bool:
    """Whether `accelerate launch` was given an FSDP configuration, for more than one process."""
    return world_size() > 1 and _env("ACCELERATE_USE_FSDP")


def asks_for_shards() -> bool:
    """Whether no process will hold the whole base, by FSDP or DeepSpeed."""
    return asks_for_fsdp() or (world_size() > 1 and _env("ACCELERATE_USE_DEEPSPEED"))


@contextmanager
def together() -> Iterator[None]:
    """A part that every rank goes through; where one fails, all end.

    Raises:
        SaidElsewhere: In all ranks but the first that failed, which raises its own error.
        RankLost: A rank is gone.
    """
    if world_size() == 1:
        yield
        return
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    failures: list[str | None] = [None] * world_size()
    with told_if_lost():
        dist.all_gather_object(failures, None if own is None else _one_line(own))
    failed = [number for number, failure in enumerate(failures) if failure is not None]
    if not failed:
        return
    if own is not None and rank() == failed[0]:
        raise own
    raise SaidElsewhere(f"process {failed[0]} ended the run: {failures[failed[0]]}") from own


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives in the first rank, in all of them.

    Raises:
        SaidElsewhere: In the other ranks, where `make` raises in the first.
        RankLost: A rank is gone.
    """
    made: list[Any] = [None]
    with together():
        if is_first():
            made[0] = make()
    if world_size() > 1:
        with told_if_lost():
            dist.broadcast_object_list(made, src=0)
    return made[0]


def in_any(flag: bool) -> bool:
    """Whether `flag` is set in at least one rank."""
    if world_size() == 1 or not dist.is_initialized():
        return flag
    count = torch.tensor(int(flag), device="cuda" if dist.get_backend() == "nccl" else "cpu")
    dist.all_reduce(count, dist.ReduceOp.MAX)
    return bool(count.item())


def gathered(value: bytes) -> list[bytes]:
    """The values of all ranks, in all ranks."""
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def told_if_lost() -> Iterator[None]:
    """Say in one sentence that another process is gone, where a collective operation found that out.

    Raises:
        RankLost: A rank is gone, or has not answered for 30 minutes.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost(error):
            raise
        raise RankLost(
            f"process {rank()} of {world_size()} has lost another one, which was killed or has failed"
        ) from error


def is_lost(error: BaseException) -> bool:
    """Whether an error of torch means that another rank is gone."""
    signs = ("by peer", "broken pipe", "gloo", "nccl", "timed out waiting")
    return (
        world_size() > 1
        and isinstance(error, RuntimeError)
        and not isinstance(error, QPeftError)
        and any(sign in str(error).lower() for sign in signs)
    )


def keep(*objects: Any) -> None:
    """Hold objects until the process has left.

    The last reference to a gloo group, dropped under the interpreter's lock, can wait forever for a worker thread that
    wants that lock; so a model in DDP is never dropped.
    """
    if world_size() > 1:
        _kept.extend(objects)


def launched(command: str) -> str:
    """The command line that starts `qpeft COMMAND` again as this run was started."""
    if world_size() == 1:
        return f"qpeft {command}"
    return f"accelerate launch ... -m qpeft {command}"


def _env(name: str) -> bool:
    return os.environ.get(name, "false").lower() in ("1", "true", "yes")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
