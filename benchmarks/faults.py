"""Kill a run at random moments, start it again, and see whether anything is lost or sent twice.

    python benchmarks/faults.py                         # 1,000 kills in a run of 2,000 circuits
    python benchmarks/faults.py --kills 100 --circuits 200 --how lines
    python benchmarks/faults.py --finds no              # a vendor that cannot look jobs up: a user settles each doubt

A run asks for its circuits batch by batch. It runs in a process of its own, which is killed with SIGKILL: after a
random time, or at a random line of the broker, the ledger or the vendor (``--how``), so that every place between two
statements gets its share. The vendor's side is a folder, which no kill undoes; its books are compared with the ledger
at the end, and the counts with those of a run that nobody disturbed. Where the vendor cannot look jobs up, the
"user" reads the vendor's books and settles what is unknown, as ``qpeft qpu resolve`` does.
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
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from fault_vendor import FolderVendor, circuits, template
from qpeft.qpu.broker import Broker
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.policy import Policy
from qpeft.qpu.protocol import ProviderError
from qpeft.qpu.schema import State

HASTY = Policy(backoff=1e-3, settle=0.0, poll_first=0.0, poll_last=1e-3, in_flight=3, rate=1e6)
SHOTS = 100
PLACES = ("broker", "desk", "doubt", "watching", "ledger", "reading", "storage", "fault_vendor")


def run(folder: Path, vendor: FolderVendor, n_circuits: int, batch: int) -> list[Any]:
    """The run that is disturbed: all batches, in order."""
    with Broker(vendor, folder / "run", policy=HASTY, say=lambda sentence: None) as broker:
        answers = []
        for start in range(0, n_circuits, batch):
            part = circuits(min(batch, n_circuits - start), start)
            answers += broker.run([template(0, 1)], part, SHOTS, purpose="forward")
        return answers


def in_child(work: Callable[[], Any], way: str, far: float, from_start: bool) -> int:
    """Run something in a fork and kill it ``far`` seconds or lines after it began, or after it began to send.

    Returns:
        0 if it ended before, 1 if it failed, -9 if it was killed.
    """
    began, begin = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            _when_sending(from_start, lambda: _die_after(int(far)) if way == "lines" else os.write(begin, b"!"))
            work()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)
    os.close(begin)
    if way == "time" and os.read(began, 1):  # nothing is read if it ended without sending
        time.sleep(far)
        os.kill(child, signal.SIGKILL)
    os.close(began)
    _, status = os.waitpid(child, 0)
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


def settle_by_hand(folder: Path, vendor: FolderVendor) -> int:
    """What a user does who looks at the vendor's list of jobs; how many there were to settle."""
    with Ledger(folder / "run") as ledger:
        unknown = ledger.jobs(State.UNKNOWN)
        for job in unknown:
            found = vendor.find(job.token)
            if found is None:
                ledger.move(job, State.NOT_TAKEN, "the user says that the vendor does not have it")
            else:
                ledger.move(job, State.SUBMITTED, "the user found it", vendor_id=found)
    return len(unknown)


def campaign(folder: Path, kills: int, n_circuits: int, batch: int, how: str, finds: bool, seed: int = 0) -> Counter:
    """Kill until there were so many kills, let the run end, and compare; raises AssertionError for any loss."""
    random.seed(seed)
    vendor = FolderVendor(folder / "vendor", finds=finds)
    found: Counter[str] = Counter()
    began = time.perf_counter()

    def work() -> None:
        run(folder, FolderVendor(folder / "vendor", finds=finds), n_circuits, batch)

    # how far an undisturbed start gets, so that kills fall everywhere
    reach = {"time": 0.03, "lines": 1500.0}
    while found["killed"] < kills:
        way = how if how != "both" else random.choice(("time", "lines"))
        far = random.uniform(0, reach[way])
        code = in_child(work, way, far, from_start=random.random() < 0.1)
        found["starts"] += 1
        if code == -signal.SIGKILL:
            found["killed"] += 1
        elif code == 0:
            found["ended"] += 1
            n_circuits += batch  # all are answered: ask for more, so that kills go on meeting work
        if code == 1 or not finds:
            settled = settle_by_hand(folder, vendor)
            found["settled by hand"] += settled
            assert code != 1 or settled, "a start failed for another reason than an unknown job"
        # a start that ends or dies early has to get further, one that does not has to be caught earlier
        done = len(vendor.taken())
        reach[way] *= 1.02 if done < n_circuits * found["killed"] / kills else 0.99
        reach[way] = max(reach[way], {"time": 0.004, "lines": 100.0}[way])
    while True:
        try:
            answers = run(folder, vendor, n_circuits, batch)
            break
        except ProviderError:
            assert settle_by_hand(folder, vendor)
    expected = run(folder / "calm", FolderVendor(folder / "calm" / "vendor"), n_circuits, batch)
    assert len(answers) == len(expected) == n_circuits
    for one, other in zip(answers, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True)), "a result differs"
    books = vendor.taken()
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
    parser.add_argument("--finds", choices=("yes", "no"), default="yes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = campaign(
            Path(folder), options.kills, options.circuits, options.batch, options.how, options.finds == "yes",
            options.seed,
        )  # fmt: skip
    table = Table("", "")
    for name, value in found.items():
        table.add_row(name, f"{value:,}")
    Console().print(table)
    sys.exit(1 if found["lost"] or found["sent twice"] else 0)


if __name__ == "__main__":
    main()
