"""Origin's quantum cloud (Wukong and its successors), or a loopback cloud that speaks the same language.

A submission becomes one task of at most 200 OriginIR programs, each with many blocks side by side on physical qubits
(:mod:`origin_program`), with mapping, optimisation and readout correction of the cloud switched off, so that blocks
stay where their calibration holds and answers are counts. ``pyqpanda3`` runs in a process of its own
(:mod:`origin_process`).

Handing in a task is not idempotent at Origin: there is no retry token, and no way to list one's tasks. What happened
to a submission that failed is therefore told apart by what proves it:

=====================================================  ===========================================================
nothing was sent: no such host, refused, TLS, 4xx      :class:`NotAcceptedError`
the cloud said no (``success: false``)                 :class:`NotAcceptedError`
time limit, 5xx, connection lost, worker killed        :class:`UnknownOutcome`: the cloud may hold the task
=====================================================  ===========================================================
"""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit

from qpeft.chips import ChipSnapshot
from qpeft.errors import InputError
from qpeft.qpu.protocol import (
    Caps,
    Counts,
    JobState,
    NotAcceptedError,
    ProviderError,
    RawAnswer,
    Submission,
    UnknownOutcome,
)
from qpeft.qpu.providers.origin_answer import (
    failure_of,
    parse_answer,
    read_raw,
    says_what_ran,
    state_of,
    usage_of,
)
from qpeft.qpu.providers.origin_process import (
    DEAD_END,
    HTTP_VARIABLE,
    CallFailed,
    OriginProcess,
    WorkerLost,
    is_loopback,
    scrub,
)
from qpeft.qpu.providers.origin_program import packed_program

URL_VARIABLE = "QPEFT_ORIGIN_URL"
MAX_CIRCUITS = 200
SHOTS = (100, 10_000)

_ANSWER_FIELDS = ["probCount", "taskResult", "mappingQProg", "mappingQubit"]
_STATUS = re.compile(r"failed with status (\d{3})", re.IGNORECASE)
# What libcurl says: before a request has left, and where that is not sure.
_CURL = "curl_easy_perform failed"
_NEVER_SENT = re.compile(
    r"could(n.t| not) (resolve|connect)|failed to connect|certificate|ssl routines|ssl connect error"
    r"|unsupported protocol|malformed|bad/illegal format",
    re.IGNORECASE,
)
_MAYBE_SENT = re.compile(r"ssl_read|ssl_write|\beof\b|timed? ?out|recv|send", re.IGNORECASE)
# What the client's reader of JSON says about an answer it cannot read; all other texts are the cloud's own.
_UNREADABLE = re.compile(
    r"^value is not |^key: |, not found|^cannot take size|^the document |^miss(ing)? a?"
    r"|^invalid (value|encoding in|escape)|^unspecific |^terminate parsing|^number too big|^the surrogate"
    r"|^incorrect hex|obj is null|^unknown error|basic_string|vector::|std::|bad_alloc",
    re.IGNORECASE,
)


class OriginProvider:
    """A chip of Origin's cloud.

    The key comes from ``QPEFT_ORIGIN_KEY`` or ``ORIGIN_API_KEY`` in the environment, or from the system's keyring
    (service ``qpeft``, user ``origin``); it is handed to the worker process and kept nowhere.

    Args:
        chip: Name of the chip at Origin: ``"72"`` (Wukong), ``"WK_C180"``, ...
        url: Of the service; default ``QPEFT_ORIGIN_URL`` in the environment, else the one that the key names.
        timeout: Seconds that one call may take; the client itself gives up after 60.
        point_label: Working area of the chip.
        allow_http: Let the key travel unencrypted; default ``QPEFT_ORIGIN_ALLOW_HTTP=1`` in the environment, else not.
            To this machine it always may.

    Raises:
        InputError: A URL that is none, or one that would send the key unencrypted to another machine.
    """

    def __init__(
        self,
        chip: str = "72",
        url: str | None = None,
        timeout: float = 75.0,
        point_label: int = 1,
        allow_http: bool | None = None,
    ) -> None:
        self._chip = str(chip)
        self._url = (url or os.environ.get(URL_VARIABLE) or "").rstrip("/") or None
        allowed = os.environ.get(HTTP_VARIABLE) == "1" if allow_http is None else allow_http
        _check_url(self._url, allowed)
        if not timeout > 0:
            raise InputError(f"timeout must be a positive number of seconds (got {timeout!r}).")
        self._point_label = point_label
        self._process = OriginProcess(self._chip, self._url, timeout, allowed)
        self._snapshot: ChipSnapshot | None = None

    def __repr__(self) -> str:
        return f"OriginProvider(chip={self._chip!r}, url={self._url!r})"

    @property
    def name(self) -> str:
        where = f"@{urlsplit(self._url).hostname}" if self._url else ""  # another service, another ledger
        return f"origin:{self._chip}{where}"

    def caps(self) -> Caps:
        """200 programs a task, 100 to 10,000 shots; jobs cannot be found again by their token; no price is known."""
        low, high = SHOTS
        return Caps(MAX_CIRCUITS, low, high, packs=True, finds=False, paid=True, price=None, seconds_per_job=3.0)

    def snapshot(self) -> ChipSnapshot:
        """The chip as ``chipInfo`` describes it now."""
        try:
            self._snapshot = self._read_chip()
        except (CallFailed, WorkerLost) as error:
            raise ProviderError(f"{self.name}: the state of the chip cannot be read: {self._said(error)}.") from None
        return self._snapshot

    def _read_chip(self) -> ChipSnapshot:
        info = self._process.call("chip_info")
        try:
            return ChipSnapshot.from_origin(info)
        except InputError as error:
            raise ProviderError(f"{self.name}: the cloud's description of the chip cannot be used: {error}") from error

    def submit(self, submission: Submission) -> str:
        programs = self._programs(submission)
        try:
            job = self._process.call(
                "submit",
                programs=programs,
                shots=submission.shots,
                token=submission.token,
                options={
                    "amend_flag": 0,
                    "use_cz_pattern": False,
                    "mapping": False,
                    "optimization": False,
                    "point_label": self._point_label,
                    "is_prob_counts": True,  # adds counts to the frequencies
                    "specified_block": [],
                },
            )
        except WorkerLost as error:
            raise UnknownOutcome(
                f"{self.name}: {error} while a task was handed in; the cloud may have taken it."
            ) from None
        except CallFailed as error:
            raise self._classified(error) from None
        if not isinstance(job, str) or not job:
            raise UnknownOutcome(
                f"{self.name}: the cloud answered without the number of a task; it may have taken it."
            )
        return job

    def poll(self, job: str) -> JobState:
        return state_of(read_raw(self._query(job), job))

    def fetch(self, job: str) -> RawAnswer:
        text = scrub(self._query(job, _ANSWER_FIELDS), self._url)
        task = read_raw(text, job)
        state = state_of(task)
        if state is not JobState.DONE:
            raise ProviderError(f"{self.name}: task {job} is {state.value}, not finished; {failure_of(task)}.")
        usage = {**usage_of(task), "mapping_checked": says_what_ran(task)}
        return RawAnswer(text.encode(), usage, job)

    def parse(self, answer: RawAnswer, submission: Submission) -> Counts:
        """Counts from a raw answer; needs neither network nor client nor key."""
        return parse_answer(answer.data, answer.job, submission)

    def cancel(self, job: str) -> bool:
        try:
            return bool(self._process.call("cancel", job=job))
        except (CallFailed, WorkerLost) as error:
            raise ProviderError(f"{self.name}: task {job} was not cancelled: {self._said(error)}") from None

    def find(self, token: str) -> str | None:
        raise ProviderError(f"{self.name} cannot look for a task by its token; see its list on Origin's web page.")

    def close(self) -> None:
        self._process.close()

    def _programs(self, submission: Submission) -> list[str]:
        """What is sent, checked beforehand: the client checks nothing, and the cloud bills."""
        low, high = SHOTS
        if not 1 <= len(submission.circuits) <= MAX_CIRCUITS:
            raise NotAcceptedError(
                f"a task of {self.name} holds 1 to {MAX_CIRCUITS} circuits (got {len(submission.circuits)}); "
                f"hand them in in groups.",
                lasting=True,
            )
        if not low <= submission.shots <= high:
            raise NotAcceptedError(
                f"{self.name} takes {low} to {high} shots (got {submission.shots}); choose a number in between.",
                lasting=True,
            )
        if self._snapshot is None:
            try:
                self._snapshot = self._read_chip()
            except CallFailed as error:
                said = self._said(error)
                lasting = _is_lasting(said) or not error.sent
                raise NotAcceptedError(f"{self.name}: {said}", lasting=lasting) from None
            except WorkerLost as error:
                raise NotAcceptedError(f"{self.name}: nothing was handed in: {error}") from None
        try:
            return [packed_program(submission, blocks, len(self._snapshot.qubits)) for blocks in submission.circuits]
        except InputError as error:
            raise NotAcceptedError(f"{self.name}: {error}", lasting=True) from error

    def _query(self, job: str, keys: list[str] | None = None) -> str:
        try:
            return str(self._process.call("query", job=job, keys=keys or []))
        except (CallFailed, WorkerLost) as error:
            raise ProviderError(f"{self.name}: task {job} cannot be asked for now: {self._said(error)}") from None

    def _classified(self, error: CallFailed) -> ProviderError:
        """What a failed submission proves."""
        said = self._said(error)
        status = _STATUS.search(said)
        code = int(status[1]) if status else None
        if not error.sent:
            return NotAcceptedError(f"{self.name}: {said}", lasting=True)
        if code == 429:
            return NotAcceptedError(f"{self.name}: too many requests; {said}")
        if code in (401, 403):
            return NotAcceptedError(f"{self.name}: the key is not accepted; {said}", lasting=True)
        if _is_lasting(said) and code is not None:
            return NotAcceptedError(f"{self.name}: the request was refused; {said}", lasting=True)
        if DEAD_END in said and not is_loopback(self._url):
            return NotAcceptedError(f"{self.name}: {said}", lasting=True)
        if code is None and _CURL in said and _NEVER_SENT.search(said) and not _MAYBE_SENT.search(said):
            return NotAcceptedError(f"{self.name} cannot be reached: {said}")
        if code is None and _CURL not in said and not _UNREADABLE.search(said):
            return NotAcceptedError(f"{self.name}: the task was refused: {said}", lasting=True)
        return UnknownOutcome(f"{self.name}: {said}; the cloud may have taken the task.")

    def _said(self, error: Exception) -> str:
        said = scrub(str(error), self._url).rstrip(".")
        if DEAD_END in said and not is_loopback(self._url):
            said = (
                f"without {URL_VARIABLE} the client would send this key unencrypted, so nothing was sent; "
                f"set {URL_VARIABLE} to an https:// address, or {HTTP_VARIABLE}=1 to allow it ({DEAD_END})"
            )
        return said


def _is_lasting(said: str) -> bool:
    """Whether a request that changes nothing would fail likewise the next time."""
    status = _STATUS.search(said)
    if status is None:
        return _CURL not in said and not _UNREADABLE.search(said)
    return 400 <= int(status[1]) < 500 and int(status[1]) not in (408, 429)


def _check_url(url: str | None, allow_http: bool) -> None:
    if url is None:
        return
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{url!r} is not the URL of a cloud; write https://host or http://127.0.0.1:port.")
    if parts.username or parts.password:
        raise InputError(f"the URL holds a name or a password; put the key into {URL_VARIABLE[:-3]}KEY instead.")
    if parts.scheme == "http" and not is_loopback(url) and not allow_http:
        raise InputError(f"{url} would send the key unencrypted; use https://, or set {HTTP_VARIABLE}=1.")
