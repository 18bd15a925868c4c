"""`qpeft export`: a linear adapter as a plain LoRA, or merged into its base; exactly, or not at all."""

from __future__ import annotations

from pathlib import Path

from qpeft.cli.console import Steps, calm_libraries, results
from qpeft.errors import InputError

FORMATS = ("lora", "merged")


def run(target: str, output: Path, format: str) -> None:
    if format not in FORMATS:
        raise InputError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder: give a new one")
    with Steps() as say:
        say("starting")
        calm_libraries()
        from qpeft.export import save_as_lora, save_merged
        from qpeft.training.target import open_target

        opened = open_target(target, say=say)
        if not hasattr(opened.model, "peft_config"):
            raise InputError(f"{target} is a base model without an adapter: give a run folder or an adapter folder")
        if format == "lora":
            save_as_lora(opened.model, output)
        else:
            save_merged(opened.model, output)
        opened.tokenizer.save_pretrained(output)
    results.print(f"{target} is in {output} as {'a LoRA' if format == 'lora' else 'a merged model'}")
