"""The broker: gives circuits to a provider so that nothing is lost and nothing is paid twice unasked.

A batch of circuits has a key: the SHA-256 of templates, angles (8 decimals), shots, provider, state of the chip,
options, purpose, and how often the same batch was asked before in this run. The ledger keeps every batch under its
key. A run that was killed and is started again asks the same batches in the same order, gets the recorded answers,
waits for the jobs that are still at the vendor, and sends only what is missing.

What is sent goes in jobs of at most ``caps.circuits_per_job`` circuits, several at once. Before each job its intent
is committed. Refused jobs are tried again; a job that the vendor may or may not have is looked up by its token, and
where the vendor cannot say, the run stops and the user decides (``qpeft qpu resolve``). Answers are kept as they come
before they are read, and checked for completeness; wrong ones are quarantined and asked for again.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.errors import InputError, Interrupted
from qpeft.qpu.budget import Budget, BudgetSpent, Spend
from qpeft.qpu.desk import Desk, VendorDown
from qpeft.qpu.doubt import look_up, settle
from qpeft.qpu.ledger import Ledger
from qpeft.qpu.policy import Policy
from qpeft.qpu.protocol import Block, Counts, Provider, ProviderError
from qpeft.qpu.reading import Batch, Job
from qpeft.qpu.request import Request
from qpeft.qpu.schema import OPEN, State
from qpeft.qpu.watching import Watches

logger = logging.getLogger(__name__)

REMIND = 600.0
"""Seconds after which the user is told what is waited for."""


class Broker:
    """Runs batches of circuits on a provider.

    Args:
        provider: Where circuits go.
        ledger: The ledger of the run, or its folder.
        budget: Upper limits for this provider over the whole ledger, restarts included.
        policy: Patience, and what to do where nobody knows.
        opened: Name and settings with which :func:`qpeft.qpu.providers.open_provider` made the provider; kept, so
            that ``qpeft qpu resume`` can make it again. Never credentials.
        fallback: A twin that answers in the provider's place once that was given up; what it answered is marked in
            the ledger and in :meth:`report`. Without it the run stops.
        say: Told, in sentences, what the user should know; by default the log.

    Raises:
        InputError: The ledger is used by another process, or the settings hold a credential.
        LedgerError: The ledger cannot be read or written.

    Example:
        >>> broker = Broker(provider, "runs/chip", budget=Budget(circuits=5000))  # doctest: +SKIP
        >>> counts = broker.run(layout.templates, circuits, 1000, purpose="evaluation")  # doctest: +SKIP
    """

    def __init__(
        self,
        provider: Provider,
        ledger: Ledger | str | Path,
        *,
        budget: Budget | None = None,
        policy: Policy | None = None,
        opened: tuple[str, dict[str, Any]] | None = None,
        fallback: Provider | None = None,
        say: Callable[[str], None] = logger.warning,
    ) -> None:
        self.policy = policy or Policy()
        self.budget = budget or Budget()
        self.ledger = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
        self._owns_ledger = not isinstance(ledger, Ledger)
        self._desk = Desk(provider, self.ledger, self.policy)
        self._fallback = Desk(fallback, self.ledger, self.policy) if fallback is not None else None
        self._opened = opened
        self._say = say
        self._asked: Counter[str] = Counter()
        self._chip: ChipSnapshot | None = None
        self._run: int | None = None

    @property
    def provider(self) -> Provider:
        """Where circuits go."""
        return self._desk.provider

    def run(
        self,
        templates: Sequence[NativeTemplate],
        circuits: Iterable[Sequence[Block]],
        shots: int,
        *,
        purpose: str,
        seed: int = 0,
        options: dict[str, Any] | None = None,
    ) -> Counts:
        """Counts of every circuit; only what the ledger does not have is sent.

        Equal circuits within a batch are sent once for ``"evaluation"`` and ``"calibration"``. For every other
        purpose, ``"forward"`` and ``"gradient"`` above all, each copy gets shots of its own: one sample of shot
        noise used twice would correlate the errors of a training step, which its averages count on being independent.

        Args:
            templates: What blocks refer to.
            circuits: Blocks side by side, on disjoint qubits.
            shots: Of every circuit.
            purpose: ``"forward"``, ``"gradient"``, ``"evaluation"``, ``"calibration"`` or another word.
            seed: For simulated chips, which repeat themselves for equal seeds; part of the key only there.
            options: Further settings for the provider (JSON values).

        Returns:
            ``[circuit][block]`` -> int64 ``(2**k,)``, each with the sum ``shots``.

        Raises:
            InputError: The provider cannot run such circuits.
            BudgetSpent: The batch does not fit the budget; nothing was sent. Or less is left than its next job needs.
            ProviderError: A job failed, an answer is wrong, or nobody knows whether a job was taken; what to do is
                said, and what was answered is kept.
            Interrupted: Ctrl-C; the same command goes on later.
            LedgerError: The ledger cannot be written; what is safe is said.
        """
        with self.ledger.lock:
            try:
                chip = self._begin()
                request = Request.of(
                    templates, circuits, shots, purpose, seed, options or {}, self._desk.caps, self._desk.name,
                    chip.id,
                )  # fmt: skip
                if not request.places:
                    return []
                batch = self._batch(request)
                self._answer(batch)
                # only now: who asks again after a failure asks for the same batch
                self._asked[request.content] += 1
                return request.spread(self.ledger.counts(batch.id))
            except KeyboardInterrupt:
                raise Interrupted(self._interrupted()) from None

    def check(self, planned: Spend) -> None:
        """Refuse a whole run beforehand, if it would not fit what is left of the budget.

        Raises:
            InputError: It does not fit.
        """
        excess = self.budget.excess(self.ledger.spent(self._desk.name) + planned)
        if excess:
            raise InputError(f"the run would use {excess}: nothing was sent; raise the budget or ask for less.")

    def resume(self, timeout: float | None = None) -> list[Job]:
        """Fetch the answers of open jobs of all batches; nothing is sent.

        Args:
            timeout: Seconds to wait for jobs that are not done, or ``None`` to wait for all.

        Returns:
            The jobs that were open or UNKNOWN, as they are now.

        Raises:
            VendorDown: The vendor cannot be asked.
            Interrupted: Ctrl-C.
        """
        with self.ledger.lock:
            desk = self._desk
            numbers = [job.id for job in self.ledger.jobs(State.UNKNOWN, *OPEN, provider=desk.name)]
            try:
                for job in self.ledger.jobs(State.UNKNOWN, provider=desk.name):
                    if desk.caps.finds:
                        look_up(desk, job)
                watches = Watches(desk, self._say)
                watches.attach()
                deadline = float("inf") if timeout is None else time.monotonic() + timeout
                for _ in range(len(watches)):
                    watches.ask(strict=False)
                while watches and watches.due < deadline:
                    time.sleep(max(0.0, watches.due - time.monotonic()))
                    watches.ask(strict=False)
            except KeyboardInterrupt:
                raise Interrupted(self._interrupted()) from None
            return [self.ledger.job(number) for number in numbers]

    def report(self) -> dict[str, Any]:
        """What this ledger holds so far: circuits answered by each provider, the fallback's share, what was spent.

        ``at_risk`` is what may have been paid twice: jobs that were sent again although nobody knows whether the
        vendor took them.
        """
        answered = self.ledger.answered_by()
        twin = answered.get(self._fallback.name, 0) if self._fallback else 0
        return {
            "provider": self._desk.name,
            "answered_by": answered,
            "fallback_share": twin / max(sum(answered.values()), 1),
            "spent": self.ledger.spent(self._desk.name),
            "at_risk": self.ledger.spent(self._desk.name, State.ABANDONED),
        }

    def close(self) -> None:
        """Let go of the providers, and of the ledger if the broker opened it."""
        for desk in filter(None, (self._desk, self._fallback)):
            desk.provider.close()
        if self._owns_ledger:
            self.ledger.close()

    def __enter__(self) -> Broker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _begin(self) -> ChipSnapshot:
        """The chip; at the first batch it is asked for, and that a run begins is written down."""
        if self._chip is None:
            chip = self.provider.snapshot()
            before = self.ledger.start_run(self._desk.name, self._opened, chip.id)
            self._chip, self._run = chip, self.ledger.run
            if before not in (None, chip.id):
                self._say(f"{self._desk.name} has changed since this run used it: its batches are asked anew.")
        self.ledger.run = self._run  # several brokers may share a ledger
        return self._chip

    def _batch(self, request: Request) -> Batch:
        """The batch in the ledger, written there if it is new."""
        wanted = request.batch(self._asked[request.content])
        known = self.ledger.find_batch(wanted.key)
        if known is not None:
            return known
        return self.ledger.add_batch(wanted, request.template_texts, request.circuits, len(request.places))

    def _answer(self, batch: Batch) -> None:
        """Get counts for every circuit of a batch, from the provider or, if it is given up, from the fallback."""
        try:
            self._complete(self._desk, batch)
        except VendorDown as error:
            if self._fallback is None:
                raise ProviderError(
                    f"{error} What was answered is kept, and jobs at the vendor stay there: start the same command "
                    "again later."
                ) from error
            self._say(f"{error} {self._fallback.name} answers in its place, and the report says so.")
            self.ledger.tell("fallback", f"batch {batch.id}: {error}")
            self._complete(self._fallback, batch)

    def _complete(self, desk: Desk, batch: Batch) -> None:
        """Wait for the jobs of a batch that are open, send what no job holds, until every circuit has counts."""
        if not self.ledger.unanswered(batch.id):
            return
        self.ledger.forget_intents()
        for job in self.ledger.jobs(State.UNKNOWN, provider=desk.name):
            self._settle(desk, job)
        watches = Watches(desk, self._say)
        watches.attach(batch.id)
        groups = self._groups(desk, batch)
        self._check_budget(desk, batch, groups)
        began = may_send = time.monotonic()
        remind = began + REMIND
        refused: Job | None = None
        spent: BudgetSpent | None = None
        while groups or watches:
            now = time.monotonic()
            if self.policy.timeout is not None and now - began > self.policy.timeout:
                raise ProviderError(
                    f"the batch was not answered within {self.policy.timeout:g} s (at {desk.name}: {watches.names}). "
                    "Open jobs stay there; start the same command again, or fetch them with: qpeft qpu resume "
                    f"{self.ledger.folder}"
                )
            if now >= remind:
                self._say(f"still waiting for {desk.name}: {watches.names}. Ctrl-C stops; the same command goes on.")
                remind = now + REMIND
            room = bool(groups) and len(watches) < self.policy.in_flight
            if room and now >= may_send:
                try:
                    job = self._send(desk, batch, groups[0], refused)
                except BudgetSpent as error:
                    # what is at the vendor is paid: its answers are waited for
                    spent, groups = error, deque()
                    continue
                refused = job if job.state is State.NOT_TAKEN else None
                may_send = time.monotonic() + (desk.wait if refused else 0.0)
                if job.state is State.SUBMITTED:
                    groups.popleft()
                    watches.add(job)
                continue
            due = watches.due
            if room and may_send < due:
                time.sleep(may_send - now)
                continue
            time.sleep(max(0.0, due - now))
            if watches.ask(strict=True):
                groups, refused = self._groups(desk, batch), None
        if spent is not None:
            raise spent

    def _groups(self, desk: Desk, batch: Batch) -> deque[list[int]]:
        """Circuits that are to be sent, job by job; the same circuits make the same jobs after a restart."""
        size = desk.caps.circuits_per_job(batch.shots)
        groups: dict[int, list[int]] = {}
        for position in self.ledger.unheld(batch.id, desk.name):
            groups.setdefault(position // size, []).append(position)
        return deque(groups.values())

    def _check_budget(self, desk: Desk, batch: Batch, groups: Iterable[list[int]]) -> None:
        """Refuse what does not fit; the fallback is a simulator and costs nothing."""
        if desk is not self._desk:
            return
        total = self.ledger.spent(desk.name)
        for positions in groups:
            total += self._expected(desk, batch, positions)
        excess = self.budget.excess(total)
        if excess:
            raise BudgetSpent(
                f"the budget for {desk.name} does not cover what is next, {excess}: it was not sent. What was "
                "answered is kept; raise the budget and start the same command again."
            )

    def _expected(self, desk: Desk, batch: Batch, positions: Sequence[int]) -> Spend:
        assert self._chip is not None
        return desk.expected(len(positions), batch.shots, self._chip.repetition_us)

    def _send(self, desk: Desk, batch: Batch, positions: list[int], refused: Job | None) -> Job:
        """Write the intent of a job and hand it in: SUBMITTED, NOT_TAKEN (to be tried again) or ABANDONED."""
        self._check_budget(desk, batch, [positions])
        time.sleep(desk.bucket.wait())
        if refused is not None:
            job = self.ledger.move(refused, State.INTENT, "tried again")
        else:
            price = desk.caps.price
            expected = self._expected(desk, batch, positions)
            seed = Request.seed_of(batch.key, positions)
            job = self.ledger.intend(batch, desk.name, positions, seed, expected, price.currency if price else None)
        job = desk.hand_in(job)
        return self._settle(desk, job) if job.state is State.UNKNOWN else job

    def _settle(self, desk: Desk, job: Job) -> Job:
        expected = self._expected(desk, self.ledger.batch(job.batch), job.positions)
        return settle(desk, job, expected, self._say)

    def _interrupted(self) -> str:
        n = len(self.ledger.open_jobs())
        jobs = f"{n} job{'s are' if n != 1 else ' is'} open at {self._desk.name}" if n else "no job is open"
        return (
            f"stopped; {jobs}, and what was answered is kept. The same command goes on; or fetch open jobs with: "
            f"qpeft qpu resume {self.ledger.folder}"
        )
