"""`qpeft qpu`: jobs on quantum computers, as the ledgers of run folders have them; each command imports its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpeft.cli.console import be_quiet

app = typer.Typer(
    name="qpu",
    help="Jobs on quantum computers: what was sent, answered, paid, and what is still open.",
    no_args_is_help=True,
)

Run = Annotated[Path, typer.Argument(help="Run folder (it holds ledger.sqlite).")]
Job = Annotated[str, typer.Argument(help="Number of the job in the ledger, the vendor's id, or the token.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]


@app.command(name="list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Folder that is searched for runs.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Runs that used a quantum computer: circuits, jobs, what is open or unknown."""
    from qpeft.cli import qpu_jobs as command

    command.list_runs(folder, json)


@app.command()
def show(run: Run, events: Annotated[bool, typer.Option("--events", help="Every event too.")] = False,
         json: Json = False) -> None:  # fmt: skip
    """Batches and jobs of a run, and what has to be done about them."""
    from qpeft.cli import qpu_jobs as command

    command.show(run, events, json)


@app.command()
def cost(run: Run, json: Json = False) -> None:
    """What a run has used: jobs, circuits, shots, seconds, money, also what may have been paid twice."""
    from qpeft.cli import qpu_jobs as command

    command.cost(run, json)


@app.command()
def export(
    run: Run,
    output: Annotated[Path, typer.Argument(help="File to write; its ending, .jsonl or .csv, chooses the format.")],
    what: Annotated[str, typer.Option(help="circuits (with counts), jobs or events.")] = "circuits",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Write circuits with their counts, jobs or events to a file."""
    from qpeft.cli import qpu_jobs as command

    command.export(run, output, what, overwrite)


@app.command()
def resume(
    run: Run,
    timeout: Annotated[float | None, typer.Option(min=0.0, help="Seconds to wait for open jobs.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fetch the answers of open jobs. Nothing new is sent."""
    from qpeft.cli import qpu_control as command

    be_quiet(quiet or json)
    command.resume(run, timeout, json)


@app.command()
def resolve(
    run: Run,
    job: Job,
    lost: Annotated[bool, typer.Option("--lost", help="The vendor does not have it: it may be sent again.")] = False,
    job_id: Annotated[str | None, typer.Option(help="The vendor has it, under this id.")] = None,
) -> None:
    """Settle a job of which nobody knows whether the vendor took it."""
    from qpeft.cli import qpu_control as command

    command.resolve(run, job, lost, job_id)


@app.command()
def cancel(
    run: Run,
    job: Annotated[str | None, typer.Argument(help="One job: its number, vendor's id or token.")] = None,
    all_jobs: Annotated[bool, typer.Option("--all", help="Every open job.")] = False,
    json: Json = False,
) -> None:
    """Ask the vendor to stop open jobs; one that is done first counts as done."""
    from qpeft.cli import qpu_control as command

    command.cancel(run, job, all_jobs, json)


@app.command()
def layout(
    chip: Annotated[str, typer.Option(help="Name of a preset, or a chip file (JSON).")] = "wukong-72",
    qubits: Annotated[int, typer.Option(min=1, max=20, help="Qubits of the circuit.")] = 4,
    layers: Annotated[int, typer.Option(min=1, help="Layers of the circuit.")] = 1,
    ansatz: Annotated[str, typer.Option(help="qtha (a ring) or chain.")] = "qtha",
    buffer: Annotated[int, typer.Option(min=0, help="Idle qubits between two blocks.")] = 0,
    min_fidelity: Annotated[float, typer.Option(min=0.0, max=1.0, help="Least expected fidelity of a block.")] = 0.0,
    solver: Annotated[str, typer.Option(help="greedy or exact.")] = "greedy",
    output: Annotated[Path | None, typer.Option(help="Picture of the chip to write (.png, .svg, .pdf).")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Show where copies of a circuit fit on a chip side by side, and how good they are there."""
    from qpeft.cli import qpu_layout as command

    be_quiet(quiet or json)
    command.run(chip, qubits, layers, ansatz, buffer, min_fidelity, solver, output, json)
