"""`qpeft demo --executor virtual-wukong`: the demo's adapter on a (virtual) chip, and a few steps of training there.

The held-out problems are solved four times with the same adapter: circuits exact, on the noisy virtual chip, and
switched off in two ways (their output 0, and their mean over other problems). If the last two do as well as the first,
the circuits carry nothing for this task, and a chip could not show anything either. Then the adapter is trained on for
a few steps with parameter-shift gradients that come from the chip, through the loopback cloud and the vendor's own
client. Every part is kept when it is done, so an interrupted demo goes on.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from qpeft.cli import demo
from qpeft.cli.console import Steps, calm_libraries, notes, print_json, results
from qpeft.cli.progress import counting
from qpeft.cli.tables import execution_table, number
from qpeft.errors import InputError

if TYPE_CHECKING:
    from qpeft.qpu.settings import ExecutionSettings
    from qpeft.training.target import Target

EXECUTOR = "virtual-wukong"
CHIP = "wukong-72"
#: layers whose circuits are compared, the last of which is trained on the chip
LAYERS = ("layers.0.self_attn.q_proj", "layers.14.self_attn.q_proj", "layers.29.self_attn.v_proj")
STEPS = 3


def run(
    output: Path,
    source: Path,
    executor: str,
    chip: str | None,
    shots: int,
    limit: int | None,
    quick: bool,
    overwrite: bool,
    as_json: bool,
    changes: Sequence[str] = (),
) -> None:
    """Run what is not done yet, then draw and report; `changes` are further overrides of all recipes."""
    from qpeft.qpu.settings import ExecutionSettings

    if executor != EXECUTOR:
        raise InputError(
            f"the demo runs on {EXECUTOR} (got {executor!r}); for a real chip: "
            f"qpeft eval {source} --executor {executor} --limit 20"
        )
    calm_libraries()
    chip = chip or CHIP
    settings: dict[str, Any] = {"chip": chip, "shots": shots, "limit": limit or (8 if quick else 50), "quick": quick}
    _open_folder(output, settings, overwrite)
    execution = ExecutionSettings(EXECUTOR, chip=chip, shots=shots, tokens="last")
    if not demo.finished(source):
        train = ["train", "demo-qtha", f"output={source}", *(demo.QUICK if quick else []), *changes]
        notes.print(f"\n[bold]1/4  an adapter to run on the chip[/]\n[dim]qpeft {escape(shlex.join(train))}[/]")
        demo.run_part([*train, "--resume"] if (source / "recipe.yaml").exists() else train, _again(output, quick))
    notes.print("\n[bold]2/4  the chip, and what it makes of <Z>[/]")
    study = _study(output, source, execution)
    notes.print("\n[bold]3/4  held-out problems[/]")
    arms = _solve(output, source, execution, settings["limit"])
    notes.print("\n[bold]4/4  a few steps of training with gradients from the chip[/]")
    tuned = _tune(output, source, settings, study["layers"][-1], changes)
    with Steps() as say:
        say("drawing")
        summary = _report(output, settings, study, arms, tuned)
    if as_json:
        print_json(summary)
        return
    results.print(_arm_table(arms))
    results.print(execution_table(arms["chip"]["execution"]))
    results.print(execution_table(tuned["execution"]))
    results.print("\n".join(summary["sentences"]))
    notes.print(
        f"\nreport: {output / 'report.html'}   plots: {output / 'plots'}\n"
        f"jobs of the training: qpeft qpu show {output / 'tuned'}"
    )


def _again(output: Path, quick: bool) -> str:
    return f"qpeft demo --executor {EXECUTOR} --output {output}" + (" --quick" if quick else "")


def _open_folder(output: Path, settings: dict[str, Any], overwrite: bool) -> None:
    mark = output / "demo-chip.json"
    if overwrite and mark.exists():  # only what a demo made is ever removed
        shutil.rmtree(output)
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not mark.exists():
            if any(output.iterdir()):
                raise InputError(f"{output} holds something else than this demo: choose another folder with --output")
            mark.write_text(json.dumps(settings), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{output} cannot be written ({error.strerror}): choose another folder with --output"
        ) from error
    before = demo.read_json(mark)
    if before != settings:
        raise InputError(f"{output} holds a demo with other settings ({before}): use --overwrite, or another --output")


def _study(output: Path, source: Path, settings: ExecutionSettings) -> dict[str, Any]:
    """Done once; then from its file."""
    from qpeft.adapters.execution import quantum_layers
    from qpeft.compare.chip import study_chip
    from qpeft.training.run_folder import write_json

    done = demo.read_json(output / "study.json")
    if done is not None:
        notes.print("[dim]done before[/]")
        return done
    target = _open(source)
    names = list(quantum_layers(target.model))
    layers = [layer for layer in LAYERS if any(f".{layer}." in name for name in names)] or [names[0], names[-1]]
    study = {"layers": layers, **study_chip(target, settings, layers, output / "plots")}
    write_json(output / "study.json", study)
    return study


def _open(source: Path) -> Target:
    from qpeft.training.target import open_target

    with Steps() as say:
        return open_target(str(source), say=say)


def _solve(output: Path, source: Path, settings: ExecutionSettings, limit: int) -> dict[str, dict[str, Any]]:
    """Every arm's evaluation; those that were done before come from their files."""
    from qpeft.compare.chip import ARMS, solve
    from qpeft.training.run_folder import write_json

    arms = {name: demo.read_json(output / f"{name}.json") for name in ARMS}

    def keep(name: str, found: dict[str, Any]) -> None:
        arms[name] = found
        write_json(output / f"{name}.json", found)

    if all(arms.values()):
        notes.print("[dim]done before[/]")
    else:
        solve(_open(source), settings, limit, arms, keep, counting)
    return {name: arm for name, arm in arms.items() if arm}


def _tune(output: Path, source: Path, settings: dict[str, Any], layer: str, changes: Sequence[str]) -> dict[str, Any]:
    """Train on the chip: `qpeft train` as a user would type it, against the loopback cloud."""
    folder = output / "tuned"
    command = [
        "train", "demo-qtha", *(demo.QUICK if settings["quick"] else []), f"output={folder}",
        f"adapter.start_from={source}", f"training.max_steps={STEPS}", "training.per_device_train_batch_size=4",
        "training.learning_rate=1e-3", "training.eval_steps=null", "training.save_steps=1", "data.train_samples=64",
        "data.validation_samples=4", "evaluation.task=null", f"execution.shots={settings['shots']}",
        "execution.tokens='every 16'", "execution.gradient=shift", f"execution.layers=[{layer}]", *changes,
    ]  # fmt: skip
    if (done := demo.read_json(folder / "result.json")) is not None:
        notes.print("[dim]done before[/]")
        return done
    again = _again(output, settings["quick"])
    resume = ["--resume"] if (folder / "recipe.yaml").exists() else []
    if importlib.util.find_spec("pyqpanda3") is None:
        notes.print(
            '[yellow]without the vendor\'s client, straight to the virtual chip: pip install "qpeft[origin]"[/]'
        )
        command += [f"execution.executor={EXECUTOR}", f"execution.chip={settings['chip']}"]
        demo.run_part([*command, *resume], again)
    else:
        with _cloud(output, settings["chip"]) as cloud:
            os.environ.setdefault("QPEFT_ORIGIN_KEY", "loopback")
            os.environ["QPEFT_ORIGIN_URL"] = cloud.url
            command += ["execution.executor=origin", "execution.chip=72"]
            notes.print(f"[dim]qpeft {escape(shlex.join(command))}[/]\nthe cloud's page: {cloud.url}")
            demo.run_part([*command, *resume], again)
    return dict(json.loads((folder / "result.json").read_text(encoding="utf-8")))


def _cloud(output: Path, chip: str) -> Any:
    from qpeft.chips import load_chip
    from qpeft.chips.virtual import VirtualChip
    from qpeft.cloud import CloudServer, TaskBook, VirtualCloud

    def tell(line: str) -> None:
        notes.print(f"[dim]cloud: {line}[/]")

    return CloudServer(VirtualCloud({"72": VirtualChip(load_chip(chip))}, TaskBook(output / "cloud"), tell=tell))


def _arm_table(arms: dict[str, dict[str, Any]]) -> Table:
    table = Table(caption="brackets: 95 % intervals")
    for head in ("", *demo.TITLES.values(), "circuits on the chip"):
        table.add_column(head, justify="right" if head else "left")
    for row in _rows(arms):
        table.add_row(*row)
    return table


def _rows(arms: dict[str, dict[str, Any]]) -> list[tuple[str, ...]]:
    from qpeft.compare.chip import ARMS

    rows = []
    for name, title in ARMS.items():
        metrics = arms[name]["metrics"]
        cells = [
            f"{100 * metrics[key]['value']:.1f} [{100 * metrics[key]['low']:.0f}, {100 * metrics[key]['high']:.0f}]"
            for key in demo.TITLES
        ]
        execution = arms[name].get("execution")
        rows.append((title, *cells, number(execution["circuits"]) if execution else ""))
    return rows


def _sentences(study: dict[str, Any], arms: dict[str, dict[str, Any]], tuned: dict[str, Any]) -> list[str]:
    """What was found, in words that the numbers decide."""
    from qpeft.evaluation import difference, wilson
    from qpeft.qpu.estimate import duration

    def share(name: str) -> Any:
        metric, n = arms[name]["metrics"]["strict_accuracy"], arms[name]["n"]
        return wilson(round(metric["value"] * n), n)

    raw, mended = study["none"], study["tensored"]
    sentences = [
        f"{study['blocks']} circuits stand side by side on the chip, expected fidelity {min(study['scores']):.2f} to "
        f"{max(study['scores']):.2f}; {study['advice']}.",
        f"Of <Z> the chip returns {100 * raw['slope']:.0f} %, {100 * mended['slope']:.0f} % with readout errors "
        f"inverted; a value is off by {mended['rms']:.2f} rms, of which shots alone would make "
        f"{mended['shot_noise']:.2f}.",
    ]
    for name, other, text in (
        ("chip", "exact", "On the chip instead of exact"), ("exact", "off", "Circuits exact instead of off"),
        ("chip", "mean", "On the chip instead of switched to their mean"),
    ):  # fmt: skip
        gap, low, high = difference(share(name), share(other))
        told = "which this run cannot tell from none" if low <= 0 <= high else "more than chance explains"
        sentences.append(
            f"{text}: strict accuracy {100 * gap:+.1f} points [{100 * low:+.0f}, {100 * high:+.0f}], {told}."
        )
    execution = tuned["execution"]
    sentences.append(
        f"{STEPS} step{'s' * (STEPS != 1)} with parameter-shift gradients took {execution['circuits']:,} circuits in "
        f"{execution['jobs']} jobs ({execution['circuits'] / max(execution['jobs'], 1):,.0f} a job), "
        f"{duration(execution['chip_seconds'])} of chip time on {execution['executor']}."
    )
    return sentences


def _report(
    output: Path, settings: dict[str, Any], study: dict[str, Any], arms: dict[str, Any], tuned: dict[str, Any]
) -> dict[str, Any]:
    from qpeft.compare import write_report
    from qpeft.compare.chip import ARMS
    from qpeft.training.run_folder import versions, write_json

    made_on = versions()
    summary = {
        "settings": settings,
        "study": study,
        "arms": {name: {key: arm[key] for key in arm if key != "records"} for name, arm in arms.items()},
        "tuned": tuned,
        "sentences": _sentences(study, arms, tuned),
        "versions": made_on,
    }
    write_json(output / "summary.json", summary)
    records = {title: arms[name]["records"] for name, title in ARMS.items()}
    examples = [
        {
            "question": arms["exact"]["records"][place]["prompt"],
            "answers": [
                (title + (" ✓" if own[place]["strict_correct"] else ""), own[place]["text"].strip())
                for title, own in records.items()
            ],
        }
        for place in range(min(4, arms["exact"]["n"]))
    ]
    write_report(
        output / "report.html",
        title="A QTHA adapter on the virtual Wukong",
        summary=[
            "One trained adapter, the same held-out problems four times. The chip is a simulation of a noisy 72-qubit "
            "chip; where its numbers come from stands in its preset, and what nobody has published is marked there as "
            "inferred. No quantum computer took part.",
            *summary["sentences"],
        ],
        heads=("", *(f"{title}, %" for title in demo.TITLES.values()), "circuits on the chip"),
        rows=_rows(arms),
        notes=[
            f"Brackets: 95 % intervals (Wilson). The circuit of the last token of each text ran on the chip, with "
            f"{settings['shots']} shots and inverted readout errors; those of the other tokens of a prompt were "
            "computed exactly. The mean was taken over other problems.",
            "One adapter, one seed of the chip.",
        ],
        pictures=[
            (output / "plots" / "chip.png", "The chip and the circuits on it."),
            (output / "plots" / "fidelity.png", "Expectations of the model's own circuits."),
        ],
        examples=examples,
        commands=_again(output, settings["quick"]),
        made_on=f"qpeft {made_on['qpeft']}, torch {made_on['packages']['torch']}, Python {made_on['python']}; "
        f"{made_on['processor']}, {made_on['threads']} threads",
    )
    return summary
