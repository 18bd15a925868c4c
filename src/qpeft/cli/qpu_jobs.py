"""`qpeft qpu list|show|cost|export`: what the ledgers of runs say. Only reads; no provider is opened."""

from __future__ import annotations

import csv
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from qpeft.cli.console import notes, print_json, results
from qpeft.cli.tables import number
from qpeft.errors import InputError
from qpeft.qpu.reading import LedgerReader
from qpeft.qpu.schema import HELD, State
from qpeft.qpu.storage import FILE

_SHOWN = 20


def list_runs(folder: Path, as_json: bool) -> None:
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}: give the folder that holds your runs.")
    found = []
    for path in sorted(folder.rglob(FILE)):
        with LedgerReader(path.parent) as ledger:
            found.append(_summary(ledger))
    if as_json:
        print_json(found)
        return
    if not found:
        notes.print(f"no run under {folder} has used a quantum computer")
        return
    table = _table("run", "providers", "circuits >", "jobs >", "open >", "unknown >", "last used")
    for run in found:
        states = run["jobs"]
        table.add_row(
            run["run"],
            ", ".join(run["providers"]),
            number(run["circuits"]),
            number(sum(states.values())),
            number(sum(states.get(state.value, 0) for state in HELD if state is not State.UNKNOWN)),
            number(states.get(State.UNKNOWN.value, 0)),
            run["last"],
        )
    results.print(table)


def _summary(ledger: LedgerReader) -> dict[str, Any]:
    events = ledger.store.rows("SELECT MAX(at) last FROM events")
    return {
        "run": str(ledger.folder),
        "providers": ledger.providers(),
        "circuits": sum(ledger.answered_by().values()),
        "jobs": dict(Counter(job.state.value for job in ledger.jobs())),
        "last": _when(events[0]["last"]),
    }


def show(folder: Path, events: bool, as_json: bool) -> None:
    with LedgerReader(folder) as ledger:
        batches, jobs = ledger.table("batches"), ledger.jobs()
        happened = ledger.events() if events else []
        summary = _summary(ledger)
    todo = advice(folder, [job for job in jobs if job.state in HELD])
    if as_json:
        record = {**summary, "batches": [_readable(batch) for batch in batches], "advice": todo}
        record["submissions"] = [asdict(job) for job in jobs]
        if events:
            record["events"] = happened
        print_json(record)
        return
    table = _table("batch >", "purpose", "asked >", "shots >", "created", title=str(folder))
    for batch in batches[-_SHOWN:]:
        table.add_row(
            str(batch["id"]), batch["purpose"], number(batch["asked"]), number(batch["shots"]), _when(batch["created"])
        )
    results.print(table)
    table = _table("job >", "batch >", "state", "circuits >", "tries >", "vendor's id", "provider", "note")
    shown = {job.id for job in jobs[-_SHOWN:]}
    for job in jobs:
        if job.id not in shown and job.state is State.DONE:
            continue
        table.add_row(
            str(job.id), str(job.batch), job.state.value, number(len(job.positions)), str(job.attempts),
            job.job or "", job.provider, job.note,
        )  # fmt: skip
    results.print(table)
    if max(len(batches), len(jobs)) > _SHOWN:
        notes.print(f"the last {_SHOWN} batches and jobs, and jobs that are not done; --json shows all")
    for event in happened:
        job = "" if event["submission"] is None else f" job {event['submission']}"
        results.print(f"{_when(event['at'])}{job} {event['kind']}: {event['detail']}", markup=False)
    for sentence in todo:
        notes.print(f"[yellow]{sentence}[/]")


def advice(folder: Path, held: list[Any]) -> list[str]:
    """What a user can do about jobs that are not over."""
    sentences = []
    for job in held:
        if job.state is State.UNKNOWN:
            sentences.append(
                f"job {job.id}: nobody knows whether {job.provider} took it. Look for it in the vendor's list of your "
                f"jobs, then: qpeft qpu resolve {folder} {job.id} --lost (or --job-id ID)"
            )
    n = sum(job.state not in (State.UNKNOWN, State.INTENT) for job in held)
    if n:
        sentences.append(f"{n} job{'s are' if n != 1 else ' is'} open: qpeft qpu resume {folder}")
    return sentences


def cost(folder: Path, as_json: bool) -> None:
    with LedgerReader(folder) as ledger:
        rows = []
        for provider in ledger.providers():
            jobs = [row for row in ledger.table("submissions") if row["provider"] == provider]
            rows.append(
                {
                    "provider": provider,
                    "currency": next((row["currency"] for row in jobs if row["currency"]), ""),
                    "spent": asdict(ledger.spent(provider)),
                    "unknown": asdict(ledger.spent(provider, State.UNKNOWN)),
                    "perhaps_twice": asdict(ledger.spent(provider, State.ABANDONED)),
                    "reported": sum(row["usage"] is not None for row in jobs),
                }
            )
    if as_json:
        print_json({"run": str(folder), "providers": rows})
        return
    table = _table("", "jobs >", "circuits >", "shots >", "seconds >", "money >", title=str(folder))
    for row in rows:
        for title, key in ((row["provider"], "spent"), ("  of these unknown", "unknown"),
                           ("  perhaps paid twice", "perhaps_twice")):  # fmt: skip
            used = row[key]
            if key != "spent" and not used["jobs"]:
                continue
            money = "unknown" if used["money"] is None else f"{used['money']:,.2f} {row['currency']}".strip()
            table.add_row(
                title, number(used["jobs"]), number(used["circuits"]), number(used["shots"]),
                f"{used['seconds']:,.1f}", money,
            )  # fmt: skip
    results.print(table)
    notes.print("as the vendor reported it, else as estimated; jobs that were not taken cost nothing")


def export(folder: Path, output: Path, what: str, overwrite: bool) -> None:
    if what not in _WRITERS:
        raise InputError(f"unknown table {what!r}; choose one of {', '.join(_WRITERS)}.")
    if output.suffix not in (".jsonl", ".csv"):
        raise InputError(f"{output} ends in {output.suffix or 'nothing'}: end it in .jsonl or .csv.")
    if output.exists() and not overwrite:
        raise InputError(f"{output} is there already: choose another file, or add --overwrite.")
    with LedgerReader(folder) as ledger, open(output, "w", encoding="utf-8", newline="") as file:
        n = 0
        writer: Any = None
        for row in _WRITERS[what](ledger):
            if output.suffix == ".jsonl":
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
            else:
                if writer is None:
                    writer = csv.DictWriter(file, list(row))
                    writer.writeheader()
                writer.writerow({k: json.dumps(v) if isinstance(v, (list, dict)) else v for k, v in row.items()})
            n += 1
    notes.print(f"{number(n)} {what} in {output}")


def _circuits(ledger: LedgerReader) -> Iterator[dict[str, Any]]:
    """One row a circuit: where it stood, its angles, its counts as bit strings (wire 0 first), who answered."""
    from qpeft.qpu.records import read_counts

    jobs = {job.id: job for job in ledger.jobs()}
    chips = {row["id"]: row["snapshot"] for row in ledger.table("runs")}
    for record in ledger.table("batches"):
        batch = ledger.batch(record["id"])
        templates = ledger.templates(batch)
        circuits = ledger.circuits(batch.id)
        rows = ledger.store.rows("SELECT * FROM circuits WHERE batch = ? ORDER BY position", batch.id)
        for row in rows:
            job = jobs.get(row["submission"])
            counts = read_counts(row["counts"]) if row["counts"] is not None else None
            blocks = []
            for place, block in enumerate(circuits[row["position"]]):
                template = templates[block.template]
                entry: dict[str, Any] = {
                    "template": batch.templates[block.template][:16],
                    "qubits": list(template.qubits),
                    "angles": list(block.angles),
                }
                if counts is not None:
                    k = template.circuit.n_qubits
                    entry["counts"] = {f"{i:0{k}b}": int(n) for i, n in enumerate(counts[place].tolist()) if n}
                blocks.append(entry)
            yield {
                "batch": batch.id, "position": row["position"], "purpose": batch.purpose, "copies": row["copies"],
                "shots": batch.shots, "chip": chips.get(record["run"]), "provider": job.provider if job else None,
                "job": job.job if job else None, "digest": row["digest"], "blocks": blocks,
            }  # fmt: skip


def _jobs(ledger: LedgerReader) -> Iterator[dict[str, Any]]:
    yield from map(_readable, ledger.table("submissions"))


def _events(ledger: LedgerReader) -> Iterator[dict[str, Any]]:
    yield from ledger.events()


_WRITERS = {"circuits": _circuits, "jobs": _jobs, "events": _events}


def _readable(row: dict[str, Any]) -> dict[str, Any]:
    """A row with its JSON columns as values."""
    return {
        key: json.loads(value) if key in ("options", "positions", "usage", "templates") and value else value
        for key, value in row.items()
    }


def _when(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _table(*heads: str, title: str | None = None) -> Table:
    """A table; heads that end in `>` stand right."""
    table = Table(title=title)
    for head in heads:
        table.add_column(head.removesuffix(" >"), justify="right" if head.endswith(">") else "left")
    return table
