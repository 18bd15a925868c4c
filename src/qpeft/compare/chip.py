"""A trained adapter on a chip, beside its controls: what the chip makes of <Z>, and of the answers.

If the model answers as well with its circuits switched off as with exact ones, the circuits carry nothing for the
task, and a chip could not show anything either. So held-out problems are answered four times: circuits exact, on the
chip, and replaced by 0 or by their mean over other problems.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from qpeft.adapters.execution import run_on
from qpeft.chips.layout_plot import plot_layout
from qpeft.chips.packing import plan_layout
from qpeft.compare.plots import plot_fidelity
from qpeft.data.masking import encode
from qpeft.evaluation import Settings, run_task
from qpeft.evaluation.chip_fidelity import catch_rows, measure_fidelity
from qpeft.evaluation.generation import Progress
from qpeft.qpu.chips import open_chip
from qpeft.qpu.settings import ExecutionSettings, open_executor
from qpeft.qpu.signal import advise, expected_signals
from qpeft.training.datasets import held_out_examples
from qpeft.training.target import Target

ARMS = {
    "exact": "circuits exact",
    "chip": "circuits on the chip",
    "off": "circuits off (q = 0)",
    "mean": "circuits off (q = mean)",
}


def study_chip(target: Target, settings: ExecutionSettings, layers: list[str] | None, plots: Path) -> dict[str, Any]:
    """Where a model's circuits stand on a chip, and ideal against measured <Z>.

    Args:
        target: A finished run.
        settings: The chip.
        layers: Whose circuits are compared; ``None`` for all.
        plots: Folder for ``chip.png`` and ``fidelity.png``.

    Returns:
        ``blocks``, ``scores``, ``advice`` (a sentence), and of values as they come (``none``) and with readout errors
        inverted (``tensored``) the :meth:`~qpeft.evaluation.chip_fidelity.Fidelity.summary`.
    """
    plots.mkdir(parents=True, exist_ok=True)
    rows = catch_rows(target.model, _texts(target, 8, seed=1), n_rows=48, layers=layers)
    snapshot, circuit = open_chip(settings.chip), rows[0].circuit
    layout = plan_layout(circuit, snapshot, **settings.layout)
    plot_layout(layout, snapshot, plots / "chip.png")
    signals = [signal for template in layout.templates for signal in expected_signals(template, snapshot)]
    expected = sum(signals) / len(signals)
    study: dict[str, Any] = {
        "blocks": layout.n_blocks,
        "scores": list(layout.scores),
        "advice": advise(lambda n, L: expected, circuit.n_qubits, 1, settings.shots, settings.shots, ()).sentence(),
    }
    series = {}
    for title, mitigation in (("as it comes", "none"), ("readout errors inverted", "tensored")):
        executor = open_executor(replace(settings, mitigation=mitigation))
        try:
            found = measure_fidelity(rows, executor, settings.shots)
        finally:
            executor.close()
        study[mitigation] = found.summary()
        series[f"{title}: slope {found.slope:.2f}, rms {found.rms:.2f}"] = (
            found.ideal.flatten().tolist(),
            found.measured.flatten().tolist(),
        )
    plot_fidelity(series, plots / "fidelity.png")
    return study


def solve(
    target: Target,
    settings: ExecutionSettings,
    limit: int,
    done: Mapping[str, dict[str, Any] | None],
    keep: Callable[[str, dict[str, Any]], None],
    counting: Callable[[str], AbstractContextManager[Progress]],
) -> None:
    """Answer the same held-out problems once for every one of :data:`ARMS`.

    Args:
        target: A finished run on arithmetic problems.
        settings: The chip.
        limit: How many problems.
        done: Arms that need not be run again.
        keep: Is given the name and result of every arm as soon as it is there.
        counting: Shows progress under a title.
    """
    assert target.recipe is not None
    section, data = target.recipe.evaluation, target.recipe.data
    examples = held_out_examples(data.model_copy(update={"test": "arithmetic"}), limit, 0)
    how = Settings(section.max_new_tokens, section.batch_size, max_length=data.max_length, format=data.format,
                   system=data.system)  # fmt: skip
    for name, title in ARMS.items():
        if done.get(name):
            continue
        executor = open_executor(settings) if name == "chip" else None
        ways: dict[str, dict[str, Any]] = {
            "exact": {},
            "chip": {"executor": executor, "tokens": settings.tokens},
            "off": {"branch": "off"},
            "mean": {"branch": "mean", "reference": _texts(target, 16, seed=2)},
        }
        try:
            with run_on(target.model, **ways[name]) if ways[name] else nullcontext() as run, counting(title) as say:
                found = run_task("arithmetic", target.model, target.tokenizer, examples, how, say).to_dict()
                if run is not None and executor is not None:
                    found["execution"] = asdict(run.report())
        finally:
            if executor is not None:
                executor.close()
        keep(name, found)


def _texts(target: Target, n: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Problems with their solutions as inputs of the model, one a batch."""
    assert target.recipe is not None
    data = target.recipe.data
    encoded = [
        encode(example, target.tokenizer, data.max_length, data.format, data.system)
        for example in held_out_examples(data.model_copy(update={"test": "arithmetic"}), n, seed)
    ]
    return [{"input_ids": torch.tensor([each["input_ids"]])} for each in encoded if each is not None]
