"""`qpeft estimate`: memory and time of a run, or what it would use of a chip, before anything is sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.table import Table

from qpeft.cli.console import Steps, calm_libraries, notes, print_json, results
from qpeft.cli.tables import number
from qpeft.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from qpeft.chips import ChipSnapshot
    from qpeft.circuits import Circuit
    from qpeft.qpu.protocol import Caps
    from qpeft.qpu.settings import ExecutionSettings
    from qpeft.training.recipe import Recipe


def run(
    target: Path,
    overrides: list[str],
    limit: int | None,
    memory: str | None,
    execution: Mapping[str, Any],
    as_json: bool,
) -> None:
    with Steps() as say:
        say("starting")
        from qpeft.training.recipe import load_recipe
        from qpeft.training.run import planned_calls, prepare
        from qpeft.training.workload import evaluation_calls, price

    own = target / "recipe.yaml"
    given = [f"execution.{key}={value}" for key, value in execution.items() if value is not None]
    recipe = load_recipe(own if own.is_file() else target, [*overrides, *given])
    settings, evaluation = recipe.execution.settings, recipe.evaluation
    calm_libraries()
    if settings.executor == "exact":
        from qpeft.cli import estimate_training

        estimate_training.run(recipe, memory, as_json)
        return
    with Steps() as say:
        ready = prepare(recipe, say)
        # a run that is trained has only its evaluation to come
        calls = [] if (target / "result.json").is_file() else planned_calls(recipe, ready)
        report = ready.data.report
        if evaluation.task is not None:
            examples = limit or evaluation.limit or report.kept
            prompt = max(1, round((report.tokens - report.labelled_tokens) / max(report.kept, 1)))
            sizes = (evaluation.batch_size, evaluation.max_new_tokens, prompt)
            calls += evaluation_calls(recipe.execution, ready.model, examples, *sizes)
        if not calls:
            raise InputError("the run is trained and its recipe names no evaluation: add evaluation.task=arithmetic")
        say("planning")
        chip = _ask(settings)
        parts = price(calls, settings, chip.caps, chip.snapshot)
        advice = _advice(calls[0].circuit, recipe, chip)  # an adapter has one circuit
    total = parts[0][1]
    for _, part in parts[1:]:
        total += part
    if as_json:
        print_json({"parts": [{"what": what, **asdict(part)} for what, part in parts], "total": asdict(total),
                    "executor": chip.name, "advice": advice})  # fmt: skip
        return
    table = Table(caption=f"{chip.name}, {settings.shots} shots, tokens: {settings.tokens}, at most")
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


class _Chip(NamedTuple):
    """What the estimate needs to know of a provider."""

    name: str
    caps: Caps
    snapshot: ChipSnapshot


def _ask(settings: ExecutionSettings) -> _Chip:
    """Limits and state of the chip. Origin's cannot be asked without a key, and then the preset has to do."""
    from qpeft.chips import load_chip
    from qpeft.qpu.protocol import ProviderError
    from qpeft.qpu.providers import open_provider

    provider = open_provider(settings.executor, **settings.provider_settings)
    try:
        return _Chip(provider.name, provider.caps(), provider.snapshot())
    except (InputError, MissingDependencyError, ProviderError) as error:
        if settings.executor != "origin":
            raise
        notes.print(f"[yellow]{error} Until then the state of the chip is that of the preset wukong-72.[/]")
        return _Chip(provider.name, provider.caps(), load_chip("wukong-72"))
    finally:
        provider.close()


def _advice(circuit: Circuit, recipe: Recipe, chip: _Chip) -> list[str]:
    """Sentences about layout and signal."""
    from qpeft.adapters import QTHAConfig
    from qpeft.chips.packing import plan_layout
    from qpeft.circuits import qtha_block
    from qpeft.qpu.signal import advise, expected_signals
    from qpeft.training.workload import layout_of

    _, caps, snapshot = chip
    settings = recipe.execution.settings
    found = layout_of(circuit, settings, caps, snapshot)
    sentences = [
        f"{found.n_blocks} circuits of {circuit.n_qubits} qubits stand side by side on {snapshot.name}; expected "
        f"fidelity of a block {min(found.scores):.2f} to {max(found.scores):.2f}."
    ]
    config = recipe.adapter.build()
    if isinstance(config, QTHAConfig):

        def signal(n: int, n_layers: int) -> float:
            other = qtha_block(n, n_layers, gate_order=config.gate_order, entanglement=config.entanglement)
            # others on the best place alone: quicker
            places = found if other == circuit else plan_layout(other, snapshot, max_blocks=1)
            signals = [s for template in places.templates for s in expected_signals(template, snapshot)]
            return math.fsum(signals) / len(signals)

        advice = advise(signal, circuit.n_qubits, config.depth, settings.shots, caps.max_shots)
        sentences.append(("" if advice.survives else "warning: ") + advice.sentence() + ".")
    return sentences
