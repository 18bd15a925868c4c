"""`qpeft estimate`: what a run on a chip would use, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from qpeft.cli.console import Steps, calm_libraries, notes, print_json, results
from qpeft.cli.tables import number
from qpeft.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from qpeft.circuits import Circuit
    from qpeft.qpu.protocol import Provider
    from qpeft.qpu.settings import ExecutionSettings


def run(target: Path, overrides: list[str], limit: int | None, execution: Mapping[str, Any], as_json: bool) -> None:
    with Steps() as say:
        say("starting")
        from qpeft.training.recipe import load_recipe
        from qpeft.training.workload import workload

    own = target / "recipe.yaml"
    given = [f"execution.{key}={value}" for key, value in execution.items() if value is not None]
    recipe = load_recipe(own if own.is_file() else target, [*overrides, *given])
    settings = recipe.execution.settings
    if settings.executor == "exact":
        raise InputError("the simulator costs nothing: name a chip with --executor, as origin or virtual-wukong")
    calm_libraries()
    with Steps() as say:
        calls = workload(recipe, limit, say)
        say("planning")
        provider = _open(settings)
        parts, advice = _price(calls, settings, provider, recipe)
    total = parts[0][1]
    for _, part in parts[1:]:
        total += part
    if as_json:
        print_json({"parts": [{"what": what, **asdict(part)} for what, part in parts], "total": asdict(total),
                    "executor": provider.name, "advice": advice})  # fmt: skip
        return
    table = Table(caption=f"{provider.name}, {settings.shots} shots, tokens: {settings.tokens}, at most")
    for head in ("", "circuits", "packed", "jobs", "time of the chip", "price"):
        table.add_column(head, justify="right" if head else "left")
    for what, part in [*parts, ("in all", total)]:
        table.add_row(what, *_cells(part))
    results.print(table)
    results.print("\n".join(advice))


def _cells(part: Any) -> tuple[str, ...]:
    from qpeft.qpu.estimate import duration

    price = "unknown" if part.price is None else f"{part.price:,.2f} {part.currency}".strip()
    return (number(part.circuits), number(part.packed), number(part.jobs), duration(part.chip_seconds), price)


def _open(settings: ExecutionSettings) -> Provider:
    """The provider; where it cannot be asked without an account, the virtual chip, whose limits are Origin's."""
    from qpeft.qpu.protocol import ProviderError
    from qpeft.qpu.providers import open_provider

    try:
        provider = open_provider(settings.executor, **settings.provider_settings)
        provider.snapshot()
        return provider
    except (InputError, MissingDependencyError, ProviderError) as error:
        if settings.executor != "origin":
            raise
        notes.print(f"[yellow]{error} So this is estimated with the virtual chip wukong-72, which has its limits.[/]")
        return open_provider("virtual-wukong")


def _price(
    calls: list[Any], settings: ExecutionSettings, provider: Provider, recipe: Any
) -> tuple[list[tuple[str, Any]], list[str]]:
    """An estimate for every kind of call, and sentences about layout and signal."""
    from qpeft.adapters import QTHAConfig
    from qpeft.chips.packing import plan_layout
    from qpeft.circuits import qtha_block
    from qpeft.qpu.estimate import estimate
    from qpeft.qpu.signal import advise, expected_signals

    caps, snapshot = provider.caps(), provider.snapshot()
    layout = {**settings.layout, **({} if caps.packs else {"max_blocks": 1})}

    @lru_cache
    def plan(circuit: Circuit, most: int | None = layout["max_blocks"]) -> Any:
        return plan_layout(circuit, snapshot, **{**layout, "max_blocks": most})

    parts = [
        (
            call.what,
            estimate(call.rows, settings.shots, caps, snapshot, circuits_per_row=call.circuits_per_row,
                     blocks=plan(call.circuit).n_blocks, batches=call.times),
        )
        for call in calls
    ]  # fmt: skip
    config = recipe.adapter.build()
    sentences = []
    for circuit in dict.fromkeys(call.circuit for call in calls):
        found = plan(circuit)
        sentences.append(
            f"{found.n_blocks} circuits of {circuit.n_qubits} qubits stand side by side on {snapshot.name}; expected "
            f"fidelity of a block {min(found.scores):.2f} to {max(found.scores):.2f}."
        )
        if isinstance(config, QTHAConfig):

            def signal(n: int, n_layers: int) -> float:
                best = plan(qtha_block(n, n_layers, gate_order=config.gate_order), 1).templates[0]
                signals = expected_signals(best, snapshot)
                return math.fsum(signals) / len(signals)

            advice = advise(signal, circuit.n_qubits, config.depth, settings.shots, caps.max_shots)
            sentences.append(("" if advice.survives else "warning: ") + advice.sentence() + ".")
    return parts, sentences
