"""What Origin's cloud says about a task, read without its client: state, counts of bit strings, times.

A raw answer is the JSON of ``taskDetail``; in it each circuit has a row ``{"key": ["0x0", ...], "value": [...]}`` with
counts (``probCount``) or relative frequencies (``taskResult``) of bit strings. A frequency becomes a count again,
``count = frequency * shots``, only where that is a whole number: other frequencies were corrected by the cloud and are
no shots any more. Everything is counted: rows, bits, shots. What is not whole is refused, never completed.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qpeft.qpu.protocol import Block, Counts, JobState, ProviderError, Submission
from qpeft.qpu.providers.origin_program import check_same, packed_program

_STATES = {
    "1": JobState.QUEUED,
    "2": JobState.RUNNING,
    "3": JobState.DONE,
    "4": JobState.FAILED,
    "5": JobState.QUEUED,
}
_ROUNDED = 0.02  # how far a frequency times shots may be from a whole number: clouds round frequencies


def read_raw(data: bytes | str, job: str) -> dict[str, Any]:
    """The task in a raw answer.

    Raises:
        ProviderError: It is not JSON, not an answer about a task, or one about another task.
    """
    try:
        raw = json.loads(data)
        task = raw["obj"] if isinstance(raw, dict) and "obj" in raw else raw
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"task {job}: the answer is not JSON ({error}); ask again.") from error
    if not isinstance(task, dict) or raw.get("success") is False:
        message = raw.get("message", "") if isinstance(raw, dict) else ""
        raise ProviderError(f"task {job}: the answer says nothing about a task ({message or 'no field obj'}).")
    named = task.get("taskId")
    if named is not None and str(named) != job:
        raise ProviderError(f"task {job}: the answer is about another task, {str(named)[:60]}.")
    return task


def state_of(task: dict[str, Any]) -> JobState:
    """Where a task stands; numbers that Origin does not explain (0, 6 to 13) are UNKNOWN, not failures."""
    state = _STATES.get(str(task.get("taskState", "")).strip(), JobState.UNKNOWN)
    if state is JobState.FAILED and "cancel" in failure_of(task).lower():
        return JobState.CANCELLED
    return state


def failure_of(task: dict[str, Any]) -> str:
    """Why a task failed, in the cloud's words."""
    words = [str(task[name]) for name in ("errCode", "errInfo", "errorMessage", "message") if task.get(name)]
    return ": ".join(words) or "no reason given"


def usage_of(task: dict[str, Any]) -> dict[str, Any]:
    """Times that the cloud reports, under its own names; ``seconds`` of chip time where they can be told."""
    times = {name: task[name] for name in task if "Time" in name and task[name] not in (None, "")}
    usage: dict[str, Any] = dict(times)
    measured = _number(times.get("aioMeasureTime")) or _number(times.get("qpuRunTime"))
    if measured is not None and 0 <= measured < 1e9:
        usage["seconds"] = measured / 1000  # milliseconds, as far as one knows
    return usage


def parse_answer(data: bytes, job: str, submission: Submission, size: int | None = None) -> Counts:
    """Counts of every circuit and block.

    Args:
        data: The raw answer.
        job: The task it should be about.
        submission: What was handed in.
        size: Qubits of the chip, where known.

    Raises:
        ProviderError: The answer is not whole or not right.
    """
    task = read_raw(data, job)
    state = state_of(task)
    if state is not JobState.DONE:
        raise ProviderError(f"task {job} is {state.value}, not finished; {failure_of(task)}.")
    rows = _rows(task, job)
    if len(rows) != len(submission.circuits):
        raise ProviderError(
            f"task {job}: {len(rows)} results for {len(submission.circuits)} circuits; the answer is kept, not used."
        )
    widths = [sum(len(submission.templates[b.template].qubits) for b in blocks) for blocks in submission.circuits]
    said = _decoded(task.get("measureQubitSize"))
    if isinstance(said, list) and [_number(n) for n in said] != widths:
        raise ProviderError(f"task {job}: results of {str(said)[:60]} bits, {str(widths)[:60]} were measured.")
    _check_programs(task, submission, size)
    _check_places(task, submission)
    return [
        _circuit_counts(row, blocks, submission, width, f"task {job}, circuit {number}")
        for number, (row, blocks, width) in enumerate(zip(rows, submission.circuits, widths, strict=True))
    ]


def says_what_ran(task: dict[str, Any]) -> bool:
    """Whether an answer names the programs that the cloud ran."""
    return bool(_programs(task))


def _programs(task: dict[str, Any]) -> list[Any]:
    given = _decoded(task.get("mappingQProg", task.get("mappingQprog")))
    if not given:
        return []
    return given if isinstance(given, list) else [given]


def _check_programs(task: dict[str, Any], submission: Submission, size: int | None) -> None:
    programs = _programs(task)
    if not programs:
        return
    if len(programs) != len(submission.circuits) or not all(isinstance(text, str) for text in programs):
        raise ProviderError(f"the cloud names {len(programs)} programs for {len(submission.circuits)} circuits.")
    register = size or 1 + max(q for template in submission.templates for q in template.qubits)
    for number, (ran, blocks) in enumerate(zip(programs, submission.circuits, strict=True)):
        check_same(packed_program(submission, blocks, register), ran, number)


def _check_places(task: dict[str, Any], submission: Submission) -> None:
    """Where the cloud says that qubits were: ``{"SrcQubits": [0, 1], "MappingQubits": [3, 2], ...}`` for each circuit.

    Origin numbers qubits from 0 in programs and from 1 in instructions, so a common shift by one is the same place.
    """
    given = _decoded(task.get("mappingQubit"))
    for number, place in enumerate(given if isinstance(given, list) else [given] if given else []):
        place = _decoded(place)
        if not isinstance(place, dict) or "SrcQubits" not in place or "MappingQubits" not in place:
            continue
        source, target = place["SrcQubits"], place["MappingQubits"]
        if not any(target == [qubit + shift for qubit in source] for shift in (0, 1)):
            raise ProviderError(
                f"circuit {number}: the cloud moved qubits {str(source)[:60]} to {str(target)[:60]} although mapping "
                f"was off; the counts are kept but not used."
            )


def _rows(task: dict[str, Any], job: str) -> list[Any]:
    for name in ("probCount", "taskResult"):
        given = _decoded(task.get(name))
        if given:
            rows = given if isinstance(given, list) else [given]
            return [_decoded(row) for row in rows]
    raise ProviderError(f"task {job} is finished, but its answer holds no results; ask again later.")


def _decoded(value: Any) -> Any:
    """Origin nests JSON in strings of JSON."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _circuit_counts(
    row: Any, blocks: tuple[Block, ...], submission: Submission, width: int, where: str
) -> list[Tensor]:
    if not isinstance(row, dict):
        raise ProviderError(f"{where}: the result {str(row)[:60]!r} is not a table of bit strings.")
    pairs = dict(row)
    keys, values = (
        (pairs["key"], pairs["value"]) if {"key", "value"} <= set(pairs) else (list(pairs), [*pairs.values()])
    )
    if not isinstance(keys, list) or not isinstance(values, list) or len(keys) != len(values):
        raise ProviderError(f"{where}: bit strings and their counts are not equally many.")
    strings = [_string(key, width, where) for key in keys]
    if len(set(strings)) != len(strings):
        raise ProviderError(f"{where}: a bit string occurs twice.")
    counts = _whole(values, submission.shots, where)  # (strings,)
    n_bytes = (width + 7) // 8
    packed = b"".join(string.to_bytes(n_bytes, "little") for string in strings)
    octets = np.frombuffer(packed, dtype=np.uint8).reshape(len(strings), n_bytes)
    bits = np.unpackbits(octets, axis=1, bitorder="little")  # (strings, 8 * n_bytes), classical bit 0 first
    result = []
    offset = 0
    for block in blocks:
        k = len(submission.templates[block.template].qubits)
        index = bits[:, offset : offset + k].astype(np.int64) @ (1 << np.arange(k))  # (strings,)
        vector = np.zeros(1 << k, dtype=np.int64)
        np.add.at(vector, index, counts)
        result.append(torch.from_numpy(vector))
        offset += k
    return result


def _string(key: Any, width: int, where: str) -> int:
    """A bit string as a number: ``0x1f`` or ``11111``."""
    text = str(key)
    try:
        hexadecimal = text[:2].lower() == "0x"
        number = int(text, 16) if hexadecimal else int(text, 2)
    except ValueError:
        raise ProviderError(f"{where}: {text[:40]!r} is not a bit string.") from None
    if number < 0 or number >> width or (not hexadecimal and len(text) != width):
        raise ProviderError(
            f"{where}: the bit string {text[:40]!r} does not have the {width} bits that were measured."
        )
    return number


def _whole(values: list[Any], shots: int, where: str) -> np.ndarray:
    """Counts from counts or frequencies: (strings,), int64."""
    numbers = [_number(value) for value in values]
    if any(number is None or not 0 <= number <= shots for number in numbers):
        raise ProviderError(f"{where}: a count is not a number from 0 to {shots}.")
    given = np.array(numbers, dtype=np.float64)
    total = float(given.sum())
    if abs(total - 1) < 1e-3 and shots > 1:
        given = given * shots
    counts = np.rint(given)
    if np.abs(given - counts).max(initial=0.0) > _ROUNDED:
        raise ProviderError(
            f"{where}: the frequencies are not those of {shots} shots; they were corrected by the cloud "
            f"(amendFlag) or belong to another number of shots."
        )
    if int(counts.sum()) != shots:
        raise ProviderError(f"{where}: {int(counts.sum())} shots were counted instead of {shots}.")
    return counts.astype(np.int64)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
