"""All commands, gathered. Each command's module is imported when the command runs, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qpeft.cli import cloud, qpu
from qpeft.cli.console import be_quiet
from qpeft.errors import InputError
from qpeft.version import __version__

app = typer.Typer(
    name="qpeft",
    help="Quantum-enhanced parameter-efficient fine-tuning of language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(qpu.app)
app.add_typer(cloud.app)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Overrides such as training.learning_rate=2e-4.")]
Executor = Annotated[
    str | None, typer.Option(help="Where circuits run: exact, virtual-wukong, origin, qiskit, qbraid.")
]
Chip = Annotated[str | None, typer.Option(help="Which chip of that executor.")]
Shots = Annotated[int | None, typer.Option(help="Shots of every circuit.")]
Tokens = Annotated[str | None, typer.Option(help="Whose circuits go there: all, last, 'every 8', pooled.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in the folder.")]


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


@app.command()
def demo(
    output: Annotated[Path | None, typer.Option(help="Folder [default: runs/demo or runs/demo-quick].")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer steps and problems, same path (about 3 minutes).")
    ] = False,
    published: Annotated[bool, typer.Option("--published", help="Add an arm with the published sizes.")] = False,
    executor: Annotated[
        str | None, typer.Option(help="virtual-wukong: run the trained adapter on a noisy chip instead.")
    ] = None,
    chip: Chip = None,
    shots: Annotated[int, typer.Option(min=100, max=10_000, help="Shots of every circuit on the chip.")] = 1000,
    limit: Annotated[int | None, typer.Option(min=1, help="Problems that are solved on the chip.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fine-tune a small real model with QTHA and with LoRA, and show side by side what each gained."""
    from qpeft.cli import demo as command
    from qpeft.cli import demo_chip

    _speak(quiet, json)
    trained = Path("runs/demo-quick" if quick else "runs/demo")
    if executor is None:
        command.run(output or trained, quick, published, overwrite, json)
    else:
        folder = output or Path("runs/demo-chip-quick" if quick else "runs/demo-chip")
        demo_chip.run(folder, trained / "qtha", executor, chip, shots, limit, quick, overwrite, json)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe (YAML), a run folder, or demo-qtha, demo-lora.")],
    overrides: Overrides = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    overwrite: Overwrite = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, write nothing.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Fine-tune a model by a recipe."""
    from qpeft.cli import train as command

    _speak(quiet, json)
    command.run(recipe, overrides or [], resume, overwrite, dry_run, json)


#: TRL's parser reads the words of these commands
_TRL: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
_TrlQuiet = Annotated[bool, typer.Option("--quiet", help="Print the result only.")]


@app.command(context_settings=_TRL)
def sft(context: typer.Context, quiet: _TrlQuiet = False, json: Json = False) -> None:
    """Fine-tune on texts or answers with TRL's trainer, keys and files."""
    _trl("sft", context.args, quiet, json)


@app.command(context_settings=_TRL)
def dpo(context: typer.Context, quiet: _TrlQuiet = False, json: Json = False) -> None:
    """Learn from pairs of a chosen and a rejected answer with TRL's trainer, keys and files."""
    _trl("dpo", context.args, quiet, json)


@app.command(context_settings=_TRL)
def grpo(context: typer.Context, quiet: _TrlQuiet = False, json: Json = False) -> None:
    """Learn from rewards of the model's own answers with TRL's trainer, keys and files."""
    _trl("grpo", context.args, quiet, json)


def _trl(kind: str, arguments: list[str], quiet: bool, json: bool) -> None:
    from qpeft.cli import trl_commands as command

    _speak(quiet, json)
    command.run(kind, arguments, json)


@app.command(name="eval")
def evaluate(
    target: Annotated[str, typer.Argument(help="Run folder, adapter folder, or base model.")],
    overrides: Overrides = None,
    recipe: Annotated[Path | None, typer.Option(help="Take data and evaluation settings from this recipe.")] = None,
    task: Annotated[
        str | None, typer.Option(help="arithmetic, gsm8k, mawps, perplexity, dialogue, classification.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="Test set: JSON lines file or hub name.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Use at most so many examples.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Examples generated at once.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer.")] = None,
    seed: Annotated[int, typer.Option(help="Of generated problems.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Where to write the JSON result with every answer.")] = None,
    harness: Annotated[
        str | None, typer.Option(help="Tasks of lm-evaluation-harness instead, as gsm8k,hellaswag.")
    ] = None,
    harness_folder: Annotated[Path | None, typer.Option(help="Folder with task files (YAML) of your own.")] = None,
    shots_in_prompt: Annotated[
        int | None, typer.Option("--fewshot", min=0, help="Examples in the harness's prompts.")
    ] = None,
    chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask the harness's questions through the chat template.")
    ] = False,
    executor: Executor = None,
    chip: Chip = None,
    shots: Shots = None,
    tokens: Tokens = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Measure a trained run, an adapter, or a base model."""
    _speak(quiet, json)
    execution = {"executor": executor, "chip": chip, "shots": shots, "tokens": tokens}
    only = {"--harness-folder": harness_folder, "--fewshot": shots_in_prompt, "--chat-template": chat_template or None}
    other = {"--task": task, "--data": data}
    for option, value in (only if harness is None else other).items():
        if value is not None:
            raise InputError(f"{option} {'needs' if harness is None else 'does not go with'} --harness")
    if harness is not None:
        from qpeft.cli import harness as by_harness

        by_harness.run(
            target, overrides or [], recipe, harness, harness_folder, shots_in_prompt, chat_template, limit,
            batch_size, max_new_tokens, seed, output, json, execution,
        )  # fmt: skip
        return
    from qpeft.cli import evaluate as command

    command.run(
        target, overrides or [], recipe, task, data, limit, batch_size, max_new_tokens, seed, output, json, execution
    )


@app.command()
def estimate(
    target: Annotated[Path, typer.Argument(help="Recipe (YAML) or run folder.")],
    overrides: Overrides = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of the evaluation.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Say what fits: an amount such as 8GB, or a device such as a100.")
    ] = None,
    executor: Executor = None,
    chip: Chip = None,
    shots: Shots = None,
    tokens: Tokens = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Say what a run takes: memory and time here, or with --executor what it would use of a chip. Nothing is sent."""
    from qpeft.cli import estimate as command

    _speak(quiet, json)
    execution = {"executor": executor, "chip": chip, "shots": shots, "tokens": tokens}
    command.run(target, overrides or [], limit, memory, execution, json)


@app.command()
def compare(
    plan: Annotated[Path, typer.Argument(help="Plan (YAML), or the folder of a comparison.")],
    overrides: Overrides = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trainings at once.")] = 1,
    engine: Annotated[str, typer.Option(help="local: processes of this machine; ray: a Ray cluster.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster [default: one on this machine].")] = None,
    report: Annotated[bool, typer.Option("--report", help="Only write the report of what is done.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the plan, write nothing.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier comparison.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare an adapter with LoRA, with methods of the same size, and with itself without its parts."""
    from qpeft.cli import compare as command

    _speak(quiet, json)
    command.run(plan, overrides or [], jobs, engine, address, report, dry_run, overwrite, json)


@app.command()
def chat(
    target: Annotated[str, typer.Argument(help="Run folder, adapter folder, or base model.")],
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the likeliest token.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling.")] = 0,
) -> None:
    """Talk to a trained run."""
    from qpeft.cli import chat as command

    command.run(target, system, max_new_tokens, temperature, seed)


@app.command()
def serve(
    targets: Annotated[
        list[str], typer.Argument(help="Runs or adapters on one base (name=folder renames one), or a base model.")
    ],
    base: Annotated[str | None, typer.Option(help="Use this base instead of the one the adapters name.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
    queue: Annotated[int, typer.Option(min=1, help="Most requests that wait; others are told to come again.")] = 64,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Most requests for one model that are answered together [default: 8].")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer to a chat that names no limit.")] = 512,
    dtype: Annotated[
        str | None,
        typer.Option(help="Precision of the base: float32 (the default, unless it is quantised), bfloat16, float16."),
    ] = None,
    executor: Executor = None,
    chip: Chip = None,
    shots: Shots = None,
    tokens: Tokens = None,
    quiet: Quiet = False,
) -> None:
    """Serve models over HTTP in the form of OpenAI's API, adapters that do not merge too."""
    from qpeft.cli import serve as command

    _speak(quiet, False)
    execution = {"executor": executor, "chip": chip, "shots": shots, "tokens": tokens}
    command.run(targets, base, host, port, queue, batch, max_new_tokens, dtype, execution)


@app.command()
def export(
    target: Annotated[str, typer.Argument(help="Run folder or adapter folder.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; for gguf and gguf-lora a file.gguf.")],
    format: Annotated[
        str, typer.Option(help="lora, merged (a whole model), gguf (the same for llama.cpp), gguf-lora.")
    ] = "lora",
    converter: Annotated[Path | None, typer.Option(help="Folder of llama.cpp, for gguf; or set LLAMA_CPP.")] = None,
    outtype: Annotated[str | None, typer.Option(help="Numbers of a gguf file: f32, f16, bf16, q8_0.")] = None,
    quiet: Quiet = False,
) -> None:
    """Turn an adapter that is a fixed matrix into a plain LoRA, or merge it into its base, exactly."""
    from qpeft.cli import export as command

    _speak(quiet, False)
    command.run(target, output, format, converter, outtype)


@app.command()
def doctor(json: Json = False) -> None:
    """Say what is installed, what works here, and what is missing."""
    from qpeft.cli import doctor as command

    command.run(json)


def _speak(quiet: bool, json: bool) -> None:
    be_quiet(quiet or json)
