"""Faults of a cloud, by script: which request goes wrong, and how.

A script is a list; each entry names an endpoint, which of its requests are meant (counted from 1), and what happens:

```yaml
- {at: submit, requests: [1], fault: status, code: 503}             # not accepted, answered with an error
- {at: submit, requests: [2], fault: status, code: 429, retry_after: 3}
- {at: submit, requests: [3], fault: drop}                          # ACCEPTED, then the connection is cut
- {at: taskDetail, requests: "5-7", fault: silence, seconds: 90}    # handled, but never answered in time
- {at: taskDetail, requests: all, fault: state, state: 6}
```

==========  =======================================================================================================
fault       what happens
==========  =======================================================================================================
status      HTTP status ``code`` (default 503), with ``retry_after`` seconds; the request is not handled
refuse      HTTP 200 with ``success: false`` and ``message``; the request is not handled
drop        the request is handled, then the connection is closed without an answer
cut         the connection is closed before the request is handled
silence     the request is handled, its answer waits ``seconds`` (default 60)
late_error  the request is handled, then answered with HTTP status ``code`` (default 502)
twice       the request is handled twice, as by a proxy that repeats it; the second answer is sent
garbage     the answer is not JSON
no_id       the answer to ``submit`` lacks the number of the task
state       finished tasks are reported with ``state`` (default 6)
partial     only the first ``keep`` (default 0) results of a finished task
duplicate   the first result occurs twice, and the last is missing if ``same_length`` (default true)
shuffle     results and programs of a finished task in another order
wrong_bits  a bit string of the first result is longer than what was measured
wrong_sum   a shot of the first result is lost
nan         a value of the first result is NaN
moved       the program that ran stands on other qubits
other_task  the answer is about another task
skew        all times lie ``seconds`` (default 86400) in the past
==========  =======================================================================================================
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qpeft.errors import InputError

ENDPOINTS = ("getResourceList", "chipInfo", "submit", "taskDetail", "cancelTask", "bestQubitBlocks")

_SETTINGS: dict[str, dict[str, Any]] = {
    "status": {"code": 503, "retry_after": None},
    "refuse": {"message": "the request was refused"},
    "drop": {},
    "cut": {},
    "silence": {"seconds": 60.0},
    "late_error": {"code": 502},
    "twice": {},
    "garbage": {},
    "no_id": {},
    "state": {"state": 6},
    "partial": {"keep": 0},
    "duplicate": {"same_length": True},
    "shuffle": {},
    "wrong_bits": {},
    "wrong_sum": {},
    "nan": {},
    "moved": {},
    "other_task": {},
    "skew": {"seconds": 86400.0},
}
"""Fault -> its settings with their defaults."""


@dataclass(frozen=True)
class Fault:
    """One entry of a script.

    Args:
        at: Endpoint: the last part of its path without ``.json``.
        fault: What happens; see the module.
        requests: Numbers of the endpoint's requests, from 1; ``None`` means all.
        settings: Of this fault.

    Raises:
        InputError: Unknown endpoint, fault or setting.
    """

    at: str
    fault: str
    requests: frozenset[int] | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.at not in ENDPOINTS:
            raise InputError(f"unknown endpoint {self.at!r} in a fault; they are {', '.join(ENDPOINTS)}.")
        if self.fault not in _SETTINGS:
            raise InputError(f"unknown fault {self.fault!r}; the faults are {', '.join(_SETTINGS)}.")
        known = _SETTINGS[self.fault]
        unknown = set(self.settings) - set(known)
        if unknown:
            takes = ", ".join(known) or "no settings"
            raise InputError(f"fault {self.fault!r} has no setting {min(unknown)!r}; it takes {takes}.")
        for name, value in self.settings.items():
            wanted = type(known[name]) if known[name] is not None else float
            if wanted in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise InputError(f"setting {name!r} of fault {self.fault!r} must be a number (got {value!r}).")
        object.__setattr__(self, "settings", {**known, **self.settings})


class FaultScript:
    """Faults by endpoint and number of the request.

    Example:
        >>> script = FaultScript([Fault("submit", "status", frozenset({2}), {"code": 429})])
        >>> [[fault.fault for fault in script.next("submit")] for _ in range(3)]
        [[], ['status'], []]
    """

    def __init__(self, faults: Iterable[Fault] = ()) -> None:
        self._faults = tuple(faults)
        self._requests: Counter[str] = Counter()
        self._lock = threading.Lock()

    def next(self, endpoint: str) -> tuple[Fault, ...]:
        """Faults of the next request to an endpoint."""
        with self._lock:
            self._requests[endpoint] += 1
            number = self._requests[endpoint]
        return tuple(f for f in self._faults if f.at == endpoint and (f.requests is None or number in f.requests))

    def requests(self, endpoint: str) -> int:
        """How many requests an endpoint has had."""
        return self._requests[endpoint]

    @classmethod
    def load(cls, file: Path) -> FaultScript:
        """Read a script from a YAML or JSON file.

        Raises:
            InputError: No such file, or an entry that cannot be meant.
        """
        import yaml

        try:
            text = file.read_text(encoding="utf-8")
            entries = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"the fault script {file} cannot be read: {error}") from error
        except (ValueError, yaml.YAMLError) as error:
            raise InputError(f"the fault script {file} is not YAML or JSON: {error}") from error
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"the fault script {file} must be a list of entries like {{at: submit, fault: drop}}.")
        return cls(_entry(dict(entry)) for entry in entries)


def _entry(entry: dict[str, Any]) -> Fault:
    at, fault, requests = str(entry.pop("at", "")), str(entry.pop("fault", "")), entry.pop("requests", "all")
    return Fault(at, fault, _numbers(requests), entry)


def _numbers(requests: Any) -> frozenset[int] | None:
    """``all``, ``3``, ``[1, 4]`` or ``"5-7"``."""
    if requests == "all":
        return None
    wrong = InputError(f"requests {requests!r} of a fault must be all, a number, a list of numbers or '5-7'.")
    if isinstance(requests, str):
        first, dash, last = requests.partition("-")
        if not (dash and first.strip().isdigit() and last.strip().isdigit()) or int(last) - int(first) > 1_000_000:
            raise wrong
        return frozenset(range(int(first), int(last) + 1))
    numbers = requests if isinstance(requests, list) else [requests]
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in numbers):
        raise wrong
    return frozenset(numbers)
