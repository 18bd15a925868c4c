"""Tables for the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from qpeft.qpu.estimate import duration
from qpeft.qpu.report import RowCount


def number(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def memory(n_bytes: float) -> str:
    return f"{n_bytes / 2**30:.2f} GiB"


def share(metric: dict[str, Any]) -> str:
    """A share with its interval: `54 % [47, 61]`."""
    if metric.get("value") is None:
        return "-"
    if metric.get("low") is None:
        return number(metric["value"])
    return f"{100 * metric['value']:.1f} % [{100 * metric['low']:.0f}, {100 * metric['high']:.0f}]"


def parameter_lines(parameters: dict[str, int]) -> list[tuple[str, str]]:
    """Trainable numbers by kind, for a table."""
    lines = [("trainable parameters", number(parameters["total"]))]
    for key in ("tensor_network", "linear", "angles", "classical"):
        if parameters.get(key):
            lines.append((f"  {key.replace('_', ' ')}", number(parameters[key])))
    if parameters.get("lora_equivalent"):
        percent = 100 * parameters["total"] / parameters["lora_equivalent"]
        lines.append(("  of LoRA's at the same rank", f"{percent:.1f} %"))
    return lines


def metric_lines(evaluation: dict[str, Any]) -> list[tuple[str, str]]:
    """Measured values, for a table; accuracies in percent with their 95 % intervals."""
    return [
        (
            name.replace("_", " "),
            share(metric) if name.endswith(("accuracy", "templates")) else number(metric["value"] or float("nan")),
        )
        for name, metric in evaluation["metrics"].items()
    ]


def _two_columns(title: str) -> Table:
    table = Table(title=title, show_header=False, min_width=len(title))
    table.add_column()
    table.add_column(justify="right")
    return table


def evaluation_table(target: str, evaluation: dict[str, Any]) -> Table:
    table = _two_columns(f"{Path(target).name}: {evaluation['task']}, {evaluation['n']} items")
    for name, value in metric_lines(evaluation):
        table.add_row(name, value)
    return table


def execution_table(execution: dict[str, Any]) -> Table:
    """What ran on a chip."""
    rows = [RowCount(**count) for count in execution["layers"].values()]
    table = _two_columns(f"executed on {execution['executor']}")
    table.add_row("circuits", number(execution["circuits"]))
    table.add_row("  side by side in", number(execution["packed_circuits"]))
    table.add_row("jobs", number(execution["jobs"]))
    table.add_row("shots", number(execution["shots"]))
    table.add_row("time of the chip", duration(execution["chip_seconds"]))
    cost = "unknown" if execution["cost"] is None else f"{execution['cost']:,.2f} {execution['currency']}".strip()
    table.add_row("cost", cost)
    if rows:
        table.add_row("share of the tokens' circuits", f"{100 * sum(rows, RowCount()).share:.0f} %")
    return table


def training_table(summary: dict[str, Any]) -> Table:
    training = summary["training"]
    table = _two_columns(Path(summary["run"]).name)
    for name, value in parameter_lines(training["parameters"]):
        table.add_row(name, value)
    table.add_row("steps", number(training["steps"]))
    table.add_row("train loss", f"{training['train_loss']:.4f}")
    if training["eval_loss"] is not None:
        table.add_row("validation loss", f"{training['eval_loss']:.4f}")
    table.add_row("tokens per second", f"{training['tokens_per_second']:.0f}")
    table.add_row("time", f"{training['seconds']:.0f} s")
    table.add_row("peak memory", memory(training["peak_memory_bytes"]))
    for name, value in metric_lines(summary["evaluation"]) if "evaluation" in summary else []:
        table.add_row(name, value)
    return table


def trl_table(result: dict[str, Any]) -> Table:
    """A run through one of TRL's trainers."""
    table = _two_columns(Path(result["output"]).name)
    for name, value in parameter_lines(result["parameters"]):
        table.add_row(name, value)
    table.add_row("steps", number(result["steps"]))
    for key in ("train_loss", "reward", "rewards/accuracies", "rewards/margins", "eval_loss", "eval_reward"):
        if key in result["metrics"]:
            table.add_row(key.replace("_", " ").replace("/", " "), f"{result['metrics'][key]:.4f}")
    table.add_row("time", f"{result['seconds']:.0f} s")
    return table
