"""The virtual Wukong as a service: six endpoints over a book of tasks, and a chip that works them off one by one."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from qpeft.chips import ChipSnapshot
from qpeft.cloud import wire
from qpeft.cloud.machine import Chip, run_programs
from qpeft.cloud.program import best_place
from qpeft.cloud.tasks import Task, TaskBook
from qpeft.errors import InputError, QPeftError

_MOST_BLOCKS = 64

logger = logging.getLogger(__name__)


class VirtualCloud:
    """Chips that take tasks.

    Args:
        chips: Name as clients know it -> chip.
        tasks: Where tasks are kept.
        speed: How many times faster than the real service a task is; ``inf`` takes only what the simulation takes.
        seed: Results of a task follow from it and from the task's number.
        tell: Called with one line for everything that happens to a task.

    Example:
        >>> from qpeft.chips import load_chip
        >>> from qpeft.chips.virtual import VirtualChip
        >>> cloud = VirtualCloud({"72": VirtualChip(load_chip("wukong-72"))}, TaskBook())
        >>> cloud.handle("getResourceList", {})
        [{'machineType': 5, 'onlineFlag': True, 'sinanChipId': '72'}]
        >>> cloud.close()
    """

    def __init__(
        self,
        chips: Mapping[str, Chip],
        tasks: TaskBook,
        speed: float = float("inf"),
        seed: int = 0,
        tell: Callable[[str], None] = logger.info,
    ) -> None:
        if not speed > 0:
            raise InputError(f"speed must be positive (got {speed!r}); 1 is as fast as the real service.")
        self.chips = dict(chips)
        self.tasks = tasks
        self.speed = speed
        self._seed = seed
        self._tell = tell
        self._stopping = threading.Event()
        self._work = threading.Condition()
        self._thread = threading.Thread(target=self._work_off, name="virtual chip", daemon=True)
        self._thread.start()

    def handle(self, endpoint: str, body: dict[str, Any]) -> Any:
        """Answer a request, as JSON data. What the service refuses is an answer too."""
        try:
            return getattr(self, f"_{endpoint}")(body)
        except (InputError, ValueError, TypeError) as error:
            return wire.refused(str(error))
        except sqlite3.Error as error:
            self._tell(f"tasks cannot be kept: {error}")
            return wire.refused("the service cannot keep tasks now")

    def snapshot(self, name: str) -> ChipSnapshot:
        """A chip by its name.

        Raises:
            InputError: There is no such chip.
        """
        if name not in self.chips:
            raise InputError("resource is null")
        return self.chips[name].snapshot

    def close(self) -> None:
        """Stop after the task that is being computed, and close the book; open tasks stay in it."""
        with self._work:
            self._stopping.set()
            self._work.notify_all()
        self._thread.join()
        self.tasks.close()

    def _getResourceList(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        return wire.resource_list(list(self.chips))

    def _chipInfo(self, body: dict[str, Any]) -> dict[str, Any]:
        name = str(body.get("ChipID", ""))
        return wire.accepted(wire.chip_info(name, self.snapshot(name)))

    def _submit(self, body: dict[str, Any]) -> dict[str, Any]:
        name = str(body.get("ChipID", ""))
        self.snapshot(name)
        request = wire.read_submission(body)
        task = self.tasks.add(name, str(body.get("batchNo", ""))[:200], request)
        self._tell(f"task {task[:8]}: {len(request['programs'])} programs, {request['shots']} shots each, accepted")
        with self._work:
            self._work.notify_all()
        return wire.accepted({"taskId": task})

    def _taskDetail(self, body: dict[str, Any]) -> dict[str, Any]:
        task = self.tasks.find(str(body.get("taskId", "")))
        if task is None:
            return wire.refused("task does not exist")
        answer = self.tasks.answer(task.id) if task.state == wire.FINISHED else None
        keys = body.get("keys")
        return wire.accepted(wire.task_detail(task, answer, time.time(), keys if isinstance(keys, list) else ()))

    def _cancelTask(self, body: dict[str, Any]) -> dict[str, Any]:
        name = str(body.get("taskId", ""))
        if not self.tasks.cancel(name):
            return wire.refused("the task cannot be cancelled")
        self._tell(f"task {name[:8]}: cancelled")
        return wire.accepted(None)

    def _bestQubitBlocks(self, body: dict[str, Any]) -> dict[str, Any]:
        name = str(body.get("chipId", ""))
        snapshot = self.snapshot(name)
        size, count = int(body.get("qubitNum", 1)), int(body.get("qubitBlockNum", 1))
        if not 1 <= size <= len(snapshot.qubits) or not 1 <= count <= _MOST_BLOCKS:
            raise InputError(f"there are no {str(count)[:9]} blocks of {str(size)[:9]} qubits")
        blocks: list[list[int]] = []
        for _ in range(count):
            blocks.append(list(best_place(snapshot, size, {qubit for block in blocks for qubit in block})))
        return wire.accepted(
            {
                "ChipID": name,
                "QubitNum": size,
                "Label": int(body.get("label", 1)),
                "QubitBlockNum": count,
                "QubitBlocks": blocks,
            }
        )

    def _work_off(self) -> None:
        while True:
            with self._work:
                task = None
                while not self._stopping.is_set() and (task := self.tasks.start_next()) is None:
                    self._work.wait()
            if task is None:
                return
            try:
                self._compute(task)
            except sqlite3.Error as error:  # a full disk: the task stays open and is computed after a restart
                self._tell(f"task {task.id[:8]}: its result cannot be kept: {error}")

    def _compute(self, task: Task) -> None:
        ends = time.monotonic() + self._seconds(task) / self.speed
        request = self.tasks.request(task.id)
        words = hashlib.sha256(f"{self._seed} {task.number}".encode()).digest()
        seed = int.from_bytes(words[:8], "little") >> 1
        try:
            rows = run_programs(self.chips[task.chip], request["programs"], request["shots"], request, seed)
        except QPeftError as error:
            self.tasks.end(task.id, None, str(error))
            self._tell(f"task {task.id[:8]}: failed: {error}")
            return
        except Exception:
            logger.exception("task %s", task.id)
            self.tasks.end(task.id, None, "internal error of the service")
            return
        if self._stopping.wait(max(0.0, ends - time.monotonic())):
            return  # left as computing: a server on the same folder computes it again
        self.tasks.end(task.id, wire.answer_of(rows, request))
        self._tell(f"task {task.id[:8]}: finished")

    @staticmethod
    def _seconds(task: Task) -> float:
        """What the real service would take."""
        return wire.PREPARING_SECONDS + task.n_programs * task.shots * wire.SECONDS_PER_SHOT
