"""`qpeft cloud`: a quantum cloud of one's own, to try everything out before a real one is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpeft.errors import InputError

app = typer.Typer(name="cloud", help="A virtual quantum cloud on this machine.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    """Keeps `serve` a command of its own although it is the only one."""


@app.command()
def serve(
    loopback: Annotated[
        bool, typer.Option("--loopback", help="Serve the virtual chip on this machine (the only kind so far).")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 0,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    allow_remote: Annotated[
        bool, typer.Option("--allow-remote", help="Allow an address that other machines can reach.")
    ] = False,
    chip: Annotated[
        list[str] | None, typer.Option(help="Chip: a preset or a file, or name=preset [default: 72=wukong-72].")
    ] = None,
    crosstalk: Annotated[float, typer.Option(min=0.0, max=1.0, help="Noise between blocks side by side.")] = 0.0,
    faults: Annotated[Path | None, typer.Option(help="YAML or JSON script of what goes wrong.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Keep tasks here, so that the server may be restarted.")] = None,
    speed: Annotated[
        float, typer.Option(help="Times as fast as the real service; 0 means as fast as it simulates.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the shots.")] = 0,
) -> None:
    """Serve a virtual Wukong that speaks Origin's protocol, until Ctrl-C."""
    from qpeft.cli import cloud_serve as command

    if not loopback:
        raise InputError("qpeft cloud serve needs --loopback: a virtual chip on this machine is all it can serve.")
    command.run(chip or ["72=wukong-72"], host, port, allow_remote, crosstalk, faults, folder, speed, seed)
