"""`qpeft qpu resume|resolve|cancel`: fetch, settle and stop the jobs of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from qpeft.cli.console import notes, print_json, results
from qpeft.cli.qpu_jobs import advice
from qpeft.errors import InputError
from qpeft.qpu.schema import HELD, OPEN, State
from qpeft.qpu.storage import FILE

if TYPE_CHECKING:
    from qpeft.qpu.ledger import Ledger
    from qpeft.qpu.protocol import Provider
    from qpeft.qpu.reading import Job


@contextmanager
def _ledger(folder: Path) -> Iterator[Ledger]:
    from qpeft.qpu.ledger import Ledger

    if not (folder / FILE).is_file():
        raise InputError(f"{folder} holds no {FILE}: give a run folder that used a quantum computer.")
    with Ledger(folder) as ledger:
        yield ledger


def _open(ledger: Ledger, name: str) -> Provider:
    """The provider that a run used, opened as the run did; credentials come from the environment, as ever."""
    from qpeft.qpu.providers import open_provider

    opened = ledger.last_opened(name)
    if opened is None:
        raise InputError(f"the run does not say how {name} was opened: go on with the command that started it.")
    provider = open_provider(opened[0], **opened[1])
    if provider.name != name:
        provider.close()
        raise InputError(f"{opened[0]} is now {provider.name}, not {name}: the environment has changed since the run.")
    return provider


def resume(folder: Path, timeout: float | None, as_json: bool) -> None:
    from qpeft.qpu.broker import Broker

    over: list[Job] = []
    with _ledger(folder) as ledger:
        names = sorted({job.provider for job in ledger.jobs(State.UNKNOWN, *OPEN)})
        for name in names:
            with Broker(_open(ledger, name), ledger, say=notes.print) as broker:
                over += broker.resume(timeout)
    _report(over, as_json, "no job was open")
    for sentence in advice(folder, [job for job in over if job.state in HELD]):
        notes.print(f"[yellow]{sentence}[/]")


def cancel(folder: Path, wanted: str | None, all_jobs: bool, as_json: bool) -> None:
    if (wanted is None) == (not all_jobs):
        raise InputError("name a job or give --all, one of them.")
    stopped: list[Job] = []
    with _ledger(folder) as ledger:
        jobs = ledger.jobs(State.SUBMITTED) if wanted is None else [ledger.job(wanted)]
        for job in jobs:
            if job.state is not State.SUBMITTED:
                raise InputError(f"job {job.id} is {job.state.value}: only jobs at the vendor can be cancelled.")
        for name in sorted({job.provider for job in jobs}):
            provider = _open(ledger, name)
            try:
                stopped += [_cancel(ledger, provider, job) for job in jobs if job.provider == name]
            finally:
                provider.close()
    _report(stopped, as_json, "no job was open")


def _cancel(ledger: Ledger, provider: Provider, job: Job) -> Job:
    """Ask for it and look what came of it: a job may be done before it is stopped."""
    from qpeft.qpu.desk import Desk
    from qpeft.qpu.policy import Policy

    assert job.job is not None
    agreed = provider.cancel(job.job)
    ledger.tell("cancel", "asked: the vendor agreed" if agreed else "asked: the vendor did not agree", job)
    return Desk(provider, ledger, Policy()).ask(job)


def resolve(folder: Path, wanted: str, lost: bool, job_id: str | None) -> None:
    if lost == (job_id is not None):
        raise InputError("say either --lost (the vendor does not have it) or --job-id ID (it has it).")
    with _ledger(folder) as ledger:
        job = ledger.job(wanted)
        if job_id is not None:
            if job.state not in (State.UNKNOWN, State.ABANDONED):
                raise InputError(f"job {job.id} is {job.state.value}: only an unknown one can be given an id.")
            taken = [other for other in ledger.jobs(provider=job.provider) if other.job == job_id]
            if taken:
                raise InputError(f"job {taken[0].id} has the id {job_id} already: look again at the vendor's list.")
            ledger.move(job, State.SUBMITTED, f"the user found it as {job_id}", vendor_id=job_id)
            notes.print(f"job {job.id} is {job_id}; fetch its answer with: qpeft qpu resume {folder}")
            return
        if job.state in (State.UNKNOWN, State.ABANDONED):
            ledger.move(job, State.NOT_TAKEN, "the user says that the vendor does not have it")
        elif job.state in (State.FETCHED, State.QUARANTINED):
            ledger.move(job, State.FAILED, "the user gave its answer up")
        elif job.state is State.SUBMITTED:
            ledger.move(job, State.FAILED, "the user gave it up")
        else:
            raise InputError(f"job {job.id} is {job.state.value}: there is nothing to settle.")
        notes.print(f"job {job.id} is settled; its circuits are sent again when the run goes on")


def _report(jobs: list[Any], as_json: bool, nothing: str) -> None:
    if as_json:
        print_json([{"job": job.id, "vendor_id": job.job, "state": job.state.value, "note": job.note} for job in jobs])
        return
    if not jobs:
        notes.print(nothing)
        return
    table = Table()
    for head in ("job", "vendor's id", "state", "note"):
        table.add_column(head)
    for job in jobs:
        table.add_row(str(job.id), job.job or "", job.state.value, job.note)
    results.print(table)
