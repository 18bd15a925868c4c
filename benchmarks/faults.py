"""Kill a run at random moments, start it again, and see whether anything is lost or sent twice.

    python benchmarks/faults.py                         # 1,000 kills in a run of 2,000 circuits
    python benchmarks/faults.py --kills 100 --circuits 200 --how lines
    python benchmarks/faults.py --finds no              # a vendor that cannot look jobs up: a user settles each doubt
    python benchmarks/faults.py --vendor loopback       # Origin's client against the loopback cloud

A run asks for its circuits batch by batch. It runs in a process of its own, which is killed with SIGKILL: after a
random time, or at a random line of the broker, the ledger or the vendor (``--how``), so that every place between two
statements gets its share. The vendor's side is a folder or a server, which no kill undoes; its books are compared with
the ledger at the end, and the counts with those of a run that nobody disturbed (folder) or with what the server keeps
of each job (loopback, whose counts are random). Where the vendor cannot look jobs up, the "user" reads the vendor's
books and settles what is unknown, as ``qpeft qpu resolve`` does.

The client of the loopback cloud, pyqpanda3, is not changed; only that importing it takes seconds is avoided: its
process is forked from one that has imported it.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table

from fault_vendor import FolderVendor, circuits, template
from qpeft.qpu.broker import Broker
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.policy import Policy
from qpeft.qpu.protocol import Provider, ProviderError
from qpeft.qpu.schema import State

if TYPE_CHECKING:
    from fault_loopback import LoopbackWorld

HASTY = Policy(backoff=1e-3, settle=0.0, poll_first=0.0, poll_last=1e-3, in_flight=3, rate=1e6)
SHOTS = 100
PLACES = (
    "broker", "desk", "doubt", "watching", "ledger", "reading", "storage", "fault_vendor", "origin", "origin_process"
)  # fmt: skip


def run(folder: Path, provider: Provider, n_circuits: int, batch: int) -> list[Any]:
    """The run that is disturbed: all batches, in order."""
    with Broker(provider, folder / "run", policy=HASTY, say=lambda sentence: None) as broker:
        answers = []
        for start in range(0, n_circuits, batch):
            part = circuits(min(batch, n_circuits - start), start)
            answers += broker.run([template(0, 1)], part, SHOTS, purpose="forward")
        return answers


class FolderWorld:
    """A vendor whose side is a folder, and whose counts follow from the circuits.

    Args:
        folder: For everything.
        finds: Whether the vendor can look jobs up.
    """

    def __init__(self, folder: Path, finds: bool) -> None:
        self.folder, self.finds = folder, finds

    def provider(self) -> Provider:
        return FolderVendor(self.folder / "vendor", finds=self.finds)

    def find(self, token: str) -> str | None:
        """What a user finds in the vendor's list of jobs."""
        return FolderVendor(self.folder / "vendor").find(token)

    def books(self) -> Counter[str]:
        """How often the vendor took each circuit."""
        return FolderVendor(self.folder / "vendor").taken()

    def compare(self, answers: list[Any], batch: int) -> None:
        """Against a run that nobody disturbed."""
        calm = run(self.folder / "calm", FolderVendor(self.folder / "calm" / "vendor"), len(answers), batch)
        for one, other in zip(answers, calm, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "a result differs"

    def close(self) -> None:
        """Nothing runs."""


def in_child(work: Callable[[], Any], way: str, far: float, from_start: bool) -> int:
    """Run something in a fork and kill it ``far`` seconds or lines after it began, or after it began to send.

    Returns:
        0 if it ended before, 1 if it failed, -9 if it was killed.
    """
    began, begin = os.pipe()
    alive, living = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(began)
        os.close(alive)
        try:
            _when_sending(from_start, lambda: _die_after(int(far)) if way == "lines" else os.write(begin, b"!"))
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(begin)
    os.close(living)
    if way == "time" and os.read(began, 1):  # nothing is read if it ended without sending
        time.sleep(far)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.read(alive, 1)  # until its own children have ended too: they may have been handing something in
    os.close(began)
    os.close(alive)
    return os.waitstatus_to_exitcode(status)


def _when_sending(at_once: bool, action: Callable[[], Any]) -> None:
    """Do something now, or when the broker first looks for circuits that are to be sent."""
    if at_once:
        action()
        return
    original = Broker._groups

    def groups(*arguments: Any) -> Any:
        Broker._groups = original  # type: ignore[method-assign]
        action()
        return original(*arguments)

    Broker._groups = groups  # type: ignore[method-assign]


def _die_after(lines: int) -> None:
    """Kill this process before it runs one more line than so many, counted over the files of interest."""
    left = lines

    def local(frame: Any, event: str, argument: Any) -> Any:
        nonlocal left
        if event == "line":
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return local

    def trace(frame: Any, event: str, argument: Any) -> Any:
        return local if Path(frame.f_code.co_filename).stem in PLACES else None

    sys.settrace(trace)
    frame = sys._getframe(1)
    while frame is not None:  # what runs already
        frame.f_trace = trace(frame, "call", None)
        frame = frame.f_back


def settle_by_hand(folder: Path, find: Callable[[str], str | None]) -> int:
    """What a user does who looks at the vendor's list of jobs; how many there were to settle."""
    with Ledger(folder / "run") as ledger:
        unknown = ledger.jobs(State.UNKNOWN)
        for job in unknown:
            found = find(job.token)
            if found is None:
                ledger.move(job, State.NOT_TAKEN, "the user says that the vendor does not have it")
            else:
                ledger.move(job, State.SUBMITTED, "the user found it", vendor_id=found)
    return len(unknown)


def campaign(
    folder: Path, world: FolderWorld | LoopbackWorld, kills: int, n_circuits: int, batch: int, how: str, seed: int = 0
) -> Counter[str]:
    """Kill until there were so many kills, let the run end, and compare.

    Raises:
        AssertionError: A result differs, or a start failed for a reason other than an unknown job.
    """
    random.seed(seed)
    found: Counter[str] = Counter()
    began = time.perf_counter()

    def work(n: int) -> None:
        run(folder, world.provider(), n, batch)

    # how far a start gets in the mean, so that kills are spread over the run
    reach, least = {"time": 0.03, "lines": 1500.0}, {"time": 0.004, "lines": 100.0}
    while found["killed"] < kills:
        way = how if how != "both" else random.choice(("time", "lines"))
        code = in_child(
            partial(work, n_circuits),
            way,
            random.uniform(0, reach[way]),
            from_start=random.random() < 0.1,
        )
        found["starts"] += 1
        if code == -signal.SIGKILL:
            found["killed"] += 1
        elif code == 0:
            n_circuits += batch  # all are answered: ask for more, so that kills go on meeting work
        if code == 1 or not world.finds:
            settled = settle_by_hand(folder, world.find)
            found["settled by hand"] += settled
            assert code != 1 or settled, "a start failed for another reason than an unknown job"
        done = len(world.books())
        reach[way] *= 1.02 if done < n_circuits * found["killed"] / kills else 0.99
        reach[way] = max(reach[way], least[way])
    answers: list[Any] = []
    while not answers:
        try:
            answers = run(folder, world.provider(), n_circuits, batch)
        except ProviderError:
            assert settle_by_hand(folder, world.find)
    assert len(answers) == n_circuits
    world.compare(answers, batch)
    books = world.books()
    found["circuits"] = n_circuits
    found["lost"] = n_circuits - len(books)
    found["sent twice"] = sum(times - 1 for times in books.values())
    with Ledger(folder / "run") as ledger:
        states = Counter(job.state for job in ledger.jobs())
        found["doubts"] = sum(event["kind"] == "unknown" for event in ledger.events())
        found["jobs"] = states[State.DONE]
        assert set(states) <= {State.DONE, State.NOT_TAKEN}, states
    found["seconds"] = round(time.perf_counter() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--circuits", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--how", choices=("time", "lines", "both"), default="both")
    parser.add_argument("--vendor", choices=("folder", "loopback"), default="folder")
    parser.add_argument("--finds", choices=("yes", "no"), default="yes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.vendor == "loopback":
            from fault_loopback import LoopbackWorld

            world: Any = LoopbackWorld(folder)
        else:
            world = FolderWorld(folder, options.finds == "yes")
        try:
            found = campaign(folder, world, options.kills, options.circuits, options.batch, options.how, options.seed)
        finally:
            world.close()
    table = Table("", "")
    for name, value in found.items():
        table.add_row(name, f"{value:,}")
    Console().print(table)
    sys.exit(1 if found["lost"] or found["sent twice"] else 0)


if __name__ == "__main__":
    main()
