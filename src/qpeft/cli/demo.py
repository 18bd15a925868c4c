"""`qpeft demo`: the main job on a small real model, from nothing to a report, in minutes.

It runs the commands that a user would type, each in a process of its own: measure the frozen base, train and measure
QTHA, train and measure LoRA. So peak memory is each arm's own, and a demo that was interrupted goes on at the arm and
step where it stopped.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from qpeft.cli.console import Steps, notes, print_json, results
from qpeft.cli.tables import memory, number
from qpeft.errors import InputError, Interrupted, QPeftError

MODEL = "smollm2-135m-instruct"
BASE = "base, before fine-tuning"
#: folder of an arm -> its name in tables and plots; the recipe of an arm is called demo-FOLDER
ARMS = {"qtha": "QTHA, r = 4 (4 qubits)", "lora": "LoRA, r = 4"}
#: the arm of `--published`
PUBLISHED = {"qtha-published": "QTHA, r = 4, published sizes"}
QUICK = [
    "training.max_steps=20",
    "training.eval_steps=20",
    "training.save_steps=20",
    "data.train_samples=320",
    "data.validation_samples=32",
    "evaluation.limit=40",
    "evaluation.batch_size=40",
]
TITLES = {"answer_accuracy": "right answer", "strict_accuracy": "strict: answer, form and steps"}


def run(
    output: Path,
    quick: bool,
    published: bool,
    overwrite: bool,
    as_json: bool,
    model: str = MODEL,
    changes: Sequence[str] = (),
) -> None:
    """Run what is not done yet, then draw and report; `changes` are further overrides of all recipes."""
    started = time.monotonic()
    arms = ARMS | (PUBLISHED if published else {})
    _open_folder(output, quick, overwrite)
    overrides = [*(QUICK if quick else []), *([f"model.name={model}"] if model != MODEL else []), *changes]
    stages = {
        "base": ["eval", model, "--recipe", "demo-qtha", *overrides, "--output", str(output / "base/result.json")]
    }
    stages |= {name: ["train", f"demo-{name}", f"output={output / name}", *overrides] for name in arms}
    for place, (name, command) in enumerate(stages.items(), start=1):
        title = f"{place}/{len(stages)}  {arms.get(name, BASE)}"
        if finished(output / name):
            notes.print(f"[dim]{title}: done before[/]")
            continue
        notes.print(f"\n[bold]{title}[/]\n[dim]qpeft {escape(shlex.join(command))}[/]")
        again = f"qpeft demo --output {output}" + (" --quick" if quick else "")
        run_part([*command, "--resume"] if (output / name / "recipe.yaml").exists() else command, again)
    with Steps() as say:
        say("drawing")
        summary = _summarise(output, arms, ["qpeft " + shlex.join(command) for command in stages.values()])
    if as_json:
        print_json(summary)
        return
    results.print(_table(summary))
    results.print("\n".join(summary["sentences"]))
    notes.print(
        f"\nreport: {output / 'report.html'}   plots: {output / 'plots'}   "
        f"{(time.monotonic() - started) / 60:.1f} minutes\ntalk to it: qpeft chat {output / 'qtha'}"
    )


def _open_folder(output: Path, quick: bool, overwrite: bool) -> None:
    if overwrite and (output / "demo.json").exists():  # only what a demo made is ever removed
        shutil.rmtree(output)
    kind = {"quick": quick}
    try:
        output.mkdir(parents=True, exist_ok=True)
        if not (output / "demo.json").exists():
            if any(output.iterdir()):
                raise InputError(f"{output} holds something else than a demo: choose another folder with --output")
            (output / "demo.json").write_text(json.dumps(kind), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{output} cannot be written ({error.strerror}): choose another folder with --output"
        ) from error
    if read_json(output / "demo.json") != kind:
        raise InputError(
            f"{output} holds a demo {'without' if quick else 'with'} --quick: use --overwrite, or another --output"
        )


def finished(folder: Path) -> bool:
    """Whether a part was trained and measured."""
    return "evaluation" in (read_json(folder / "result.json") or {})


def read_json(path: Path) -> dict[str, Any] | None:
    """An object from a file, or nothing where there is none or a broken one."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def run_part(command: list[str], again: str) -> None:
    """Run a command of ours; its notes and progress go to the terminal, its table is left out.

    Args:
        command: Without ``qpeft``.
        again: The command that goes on after an interruption.
    """
    quiet = ["--quiet"] if notes.quiet else []
    # In a process group of its own, so that a Ctrl-C of the terminal reaches it once, handed on from here: twice would
    # keep it from saving.
    own_group: dict[str, Any] = {"process_group": 0} if os.name == "posix" else {}
    process = subprocess.Popen(
        [sys.executable, "-m", "qpeft", *command, *quiet], stdout=subprocess.DEVNULL, **own_group
    )
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill, too, is handed on
    try:
        code = _wait(process)
    finally:
        signal.signal(signal.SIGTERM, previous)
    if code in (130, -signal.SIGINT):
        raise Interrupted(f"what is done is saved; go on with: {again}")
    if code == 2:
        raise InputError(f"the demo cannot run here, for the reason above; then: {again}")
    if code != 0:
        raise QPeftError(f"a part of the demo failed (code {code}), for the reason above; go on with: {again}")


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Its exit code; every Ctrl-C is handed on, and after one the code is never that of a success."""
    interrupted = False
    while True:
        try:
            return process.wait() or (130 if interrupted else 0)
        except KeyboardInterrupt:
            interrupted = True
            if os.name == "posix":  # elsewhere the console has told both of us
                process.send_signal(signal.SIGINT)


def _summarise(output: Path, names: dict[str, str], commands: list[str]) -> dict[str, Any]:
    """Read the arms, draw the plots, write `report.html` and `summary.json`."""
    from qpeft.compare import plot_accuracy, plot_losses, read_arm, write_report
    from qpeft.training.run_folder import versions, write_json

    arms = [read_arm(BASE, output / "base"), *(read_arm(label, output / name) for name, label in names.items())]
    losses = plot_losses(arms, output / "plots" / "loss.png")
    accuracy = plot_accuracy(arms, output / "plots" / "accuracy.png", TITLES)
    made_on = versions()
    summary: dict[str, Any] = {
        "arms": [
            {
                "name": arm.name,
                "training": arm.training,
                "metrics": {key: vars(share) for key, share in arm.accuracy.items()},
            }
            for arm in arms
        ],
        "versions": made_on,
    }
    summary["sentences"] = _sentences(summary)
    write_json(output / "summary.json", summary)
    heads, *rows = _rows(summary)
    write_report(
        output / "report.html",
        title="QTHA and LoRA on arithmetic word problems",
        summary=[
            f"The frozen model {MODEL} was fine-tuned twice with the same problems and the same number of steps, each "
            "time at the learning rate that a sweep on a validation split had chosen: with small quantum circuits "
            "inside tensor-network adapters (QTHA), and with LoRA. The circuits were computed exactly on this "
            "machine; no quantum computer took part.",
            *summary["sentences"],
        ],
        heads=heads,
        rows=rows,
        notes=[
            "Brackets: 95 % intervals (Wilson). Strict: the number is right, it stands in the required form, and "
            "every step is there and right. Train loss: mean of the last tenth of the steps. Test problems share no "
            "pair of story and numbers with the training problems; some stories occur only in the test.",
            "One seed. Intervals say how well the problems measure these two adapters, not how much another training "
            "seed would change them.",
        ],
        pictures=[
            (losses, "Loss per answer token; points: validation."),
            (accuracy, "Held-out problems solved."),
            *_diagnostics(output, names),
        ],
        examples=_examples(output, names),
        commands="\n".join(commands),
        made_on=f"qpeft {made_on['qpeft']}, torch {made_on['packages']['torch']}, transformers "
        f"{made_on['packages']['transformers']}, peft {made_on['packages']['peft']}, Python {made_on['python']}; "
        f"{made_on['processor']}, {made_on['threads']} threads",
    )
    return summary


_HEADS = ("", "trained parameters", "tensor network + linear + angles", "train loss", "eval loss", "right answer, %",
          "strict, %", "tokens/s", "peak memory")  # fmt: skip


def _rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """The table, an arm a column, which fits a terminal and a page; the first row holds the heads."""
    columns: list[tuple[str, ...]] = [_HEADS]
    for arm in summary["arms"]:
        training, metrics = arm["training"], arm["metrics"]
        accuracies = tuple(
            f"{100 * metrics[key]['value']:.1f} [{100 * metrics[key]['low']:.0f}, {100 * metrics[key]['high']:.0f}]"
            for key in TITLES
        )
        if not training:
            columns.append((arm["name"], "0", "", "", "", *accuracies, "", ""))
            continue
        parameters = training["parameters"]
        kinds = [number(parameters[kind]) for kind in ("tensor_network", "linear", "angles") if kind in parameters]
        columns.append(
            (
                arm["name"],
                number(parameters["total"]),
                " + ".join(kinds),
                f"{training['train_loss']:.3f}",
                f"{training['eval_loss']:.3f}",
                *accuracies,
                f"{training['tokens_per_second']:.0f}",
                memory(training["peak_memory_bytes"]),
            )
        )
    return list(zip(*columns, strict=True))


def _table(summary: dict[str, Any]) -> Table:
    table = Table(caption="brackets: 95 % intervals")
    heads, *lines = _rows(summary)
    for head in heads:
        table.add_column(head, justify="right" if head else "left")
    for line in lines:
        table.add_row(*line)
    return table


def _sentences(summary: dict[str, Any]) -> list[str]:
    """What the table says, in words that the numbers decide."""
    from qpeft.evaluation import difference, wilson

    base, qtha, lora = summary["arms"][:3]
    fewer = qtha["training"]["parameters"]["total"] / lora["training"]["parameters"]["total"]
    before, ours, theirs = (arm["metrics"]["strict_accuracy"] for arm in (base, qtha, lora))
    gap, low, high = difference(*(wilson(round(arm["value"] * arm["n"]), arm["n"]) for arm in (ours, theirs)))
    span = f"difference {100 * gap:+.1f} points [{100 * low:+.0f}, {100 * high:+.0f}]"
    if low <= 0 <= high:
        verdict = f"{span}, so this run does not tell the two apart"
    else:
        verdict = f"{span}, so {'QTHA' if gap > 0 else 'LoRA'} is better in this run"
    return [
        f"QTHA trained {100 * fewer:.1f} % of LoRA's parameters.",
        f"Strict accuracy: {100 * before['value']:.1f} % before; {100 * ours['value']:.1f} % with QTHA and "
        f"{100 * theirs['value']:.1f} % with LoRA ({ours['n']} problems): {verdict}.",
    ]


def _diagnostics(output: Path, names: dict[str, str]) -> list[tuple[Path, str]]:
    """Pictures of the arms that were measured while they were trained (training.diagnostics_steps)."""
    found = [(output / name / "plots" / "diagnostics.png", label) for name, label in names.items()]
    return [(picture, f"{label}: what the adapters did.") for picture, label in found if picture.exists()]


def _examples(output: Path, names: dict[str, str], n: int = 4) -> list[dict[str, Any]]:
    """The first problems with the answer of every arm."""
    base = json.loads((output / "base" / "result.json").read_text(encoding="utf-8"))["evaluation"]["records"]
    answers = {BASE: base}
    for name, label in names.items():
        lines = (output / name / "answers.jsonl").read_text(encoding="utf-8").splitlines()
        answers[label] = [json.loads(line) for line in lines]
    return [
        {
            "question": base[place]["prompt"],
            "answers": [
                (label + (" ✓" if records[place]["strict_correct"] else ""), records[place]["text"].strip())
                for label, records in answers.items()
            ],
        }
        for place in range(min(n, len(base)))
    ]
