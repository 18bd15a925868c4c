"""`qpeft export`: a linear adapter as a plain LoRA, merged into its base, or as GGUF; exactly, or not at all."""

from __future__ import annotations

from pathlib import Path

from qpeft.cli.console import Steps, calm_libraries, results
from qpeft.errors import InputError

#: what each format is called when it is there
FORMATS = {
    "lora": "a LoRA",
    "merged": "a merged model",
    "gguf": "a merged model for llama.cpp",
    "gguf-lora": "a LoRA for llama.cpp",
}


def run(target: str, output: Path, format: str, converter: Path | None = None, outtype: str | None = None) -> None:
    _check(output, format, converter, outtype)
    with Steps() as say:
        say("starting")
        calm_libraries()
        from qpeft.export import find_converter, save_as_lora, save_gguf, save_lora_gguf, save_merged
        from qpeft.export.gguf import LORA_CONVERTER, MODEL_CONVERTER, check_target
        from qpeft.training.target import open_target

        if format.startswith("gguf"):  # whether it can be written is known before the model is loaded
            outtype = outtype or ("f32" if format == "gguf-lora" else "f16")
            check_target(output, outtype)
            converter = find_converter(LORA_CONVERTER if format == "gguf-lora" else MODEL_CONVERTER, converter)
        opened = open_target(target, say=say, quantized=False)  # sums are rounded once, to the base's own precision
        if not hasattr(opened.model, "peft_config"):
            raise InputError(f"{target} is a base model without an adapter: give a run folder or an adapter folder")
        say(f"writing {FORMATS[format]}")
        if format == "gguf":
            save_gguf(opened.model, opened.tokenizer, output, converter, str(outtype))
        elif format == "gguf-lora":
            save_lora_gguf(opened.model, output, converter, str(outtype))
        else:
            if format == "lora":
                save_as_lora(opened.model, output)
            else:
                save_merged(opened.model, output)
            opened.tokenizer.save_pretrained(output)
    results.print(f"{target} is in {output} as {FORMATS[format]}")


def _check(output: Path, format: str, converter: Path | None, outtype: str | None) -> None:
    if format not in FORMATS:
        raise InputError(f"there is no format {format!r}: choose one of {', '.join(FORMATS)}")
    if format.startswith("gguf"):
        return
    if converter is not None or outtype is not None:
        raise InputError(f"--converter and --outtype belong to gguf and gguf-lora, not to {format}: leave them out")
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise InputError(f"{output} is not an empty folder: give a new one")
