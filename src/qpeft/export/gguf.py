"""GGUF files for llama.cpp and what builds on it, written by llama.cpp's own converters.

    merged model  ->  convert_hf_to_gguf.py    ->  one .gguf with everything in it
    exact LoRA    ->  convert_lora_to_gguf.py  ->  a small .gguf that llama.cpp lays over the base (``--lora``)

A converter knows the tensor names and tokenizers of more architectures than is worth repeating here, and changes with
llama.cpp; so that of the user's own copy is run, in a process of its own, on a folder that is removed afterwards.
Both roads are open to adapters that are a fixed matrix, and to no others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from qpeft.errors import InputError, MissingDependencyError
from qpeft.export.lora import save_as_lora
from qpeft.export.merged import save_merged
from qpeft.models import resolve_model

#: names a folder with llama.cpp, or the converter itself
LLAMA_CPP = "LLAMA_CPP"
MODEL_CONVERTER = "convert_hf_to_gguf.py"
LORA_CONVERTER = "convert_lora_to_gguf.py"
#: number formats that both converters write
OUT_TYPES = ("f32", "f16", "bf16", "q8_0")


def find_converter(script: str = MODEL_CONVERTER, given: str | Path | None = None) -> Path:
    """Find a converter of llama.cpp: where the caller says, where `LLAMA_CPP` says, or on the `PATH`.

    Args:
        script: Name of the converter's file.
        given: The file, another file of the same folder, or the folder.

    Raises:
        InputError: It is not at the place that was named.
        MissingDependencyError: No place was named, and it is not on the `PATH`.
    """
    named = (("the converter", given), (f"the environment variable {LLAMA_CPP}", os.environ.get(LLAMA_CPP)))
    for who, place in named:
        if place:
            folder = Path(place).expanduser()
            found = (folder if folder.is_dir() else folder.parent) / script
            if not folder.exists() or not found.is_file():
                raise InputError(
                    f"{who} names {place}, and there is no {script}: name the folder of llama.cpp's sources"
                )
            return found.absolute()
    on_path = shutil.which(script)
    if on_path is None:
        raise MissingDependencyError(
            f"GGUF files are written by llama.cpp's {script}, which is not here: git clone "
            f"https://github.com/ggml-org/llama.cpp, and name its folder by --converter or {LLAMA_CPP}"
        )
    return Path(on_path).absolute()


def save_gguf(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    path: str | Path,
    converter: str | Path | None = None,
    outtype: str = "f16",
) -> None:
    """Merge the active adapter into its base and write both as one GGUF file.

    The model given is consumed, as by :func:`~qpeft.export.save_merged`.

    Args:
        model: A model with one adapter.
        tokenizer: Its tokenizer, which goes into the file.
        path: The file to write, ending in `.gguf`.
        converter: See :func:`find_converter`.
        outtype: Number format of the weights: f32, f16, bf16 or q8_0.

    Raises:
        InputError: The path, the format or the model cannot be used, or the converter fails; holds its last line.
        MergeError: The adapter is not a fixed matrix.
        MissingDependencyError: There is no converter.
    """
    script = find_converter(MODEL_CONVERTER, converter)
    file = _place(path, outtype)
    with TemporaryDirectory(dir=file.parent, prefix=".gguf-") as scratch:
        folder = Path(scratch) / file.stem  # the converter takes the model's name from it
        save_merged(model, folder)
        tokenizer.save_pretrained(folder)
        _convert(script, [str(folder)], Path(scratch) / "out.gguf", file, outtype)


def save_lora_gguf(
    model: PeftModel, path: str | Path, converter: str | Path | None = None, outtype: str = "f32"
) -> None:
    """Write an adapter as a LoRA in a GGUF file of its own, for ``llama-cli -m base.gguf --lora adapter.gguf``.

    Args:
        model: A model with a QTHA adapter called `default`.
        path: The file to write, ending in `.gguf`.
        converter: See :func:`find_converter`.
        outtype: Number format of the two factors: f32, f16, bf16 or q8_0.

    Raises:
        InputError: The path, the format or the model cannot be used, or the converter fails; holds its last line.
        MergeError: The adapter is not linear on some layer.
        MissingDependencyError: There is no converter.
    """
    script = find_converter(LORA_CONVERTER, converter)
    file = _place(path, outtype)
    with TemporaryDirectory(dir=file.parent, prefix=".gguf-") as scratch:
        folder = Path(scratch) / file.stem
        config = save_as_lora(model, folder)
        base = resolve_model(str(config.base_model_name_or_path)).folder
        _convert(script, ["--base", str(base), str(folder)], Path(scratch) / "out.gguf", file, outtype)


def check_target(path: str | Path, outtype: str) -> Path:
    """Refuse a file that cannot be written, or a format that converters do not write.

    Raises:
        InputError: It does not end in `.gguf` or exists, or there is no such format.
    """
    file = Path(path)
    if file.suffix != ".gguf" or file.exists():
        raise InputError(f"{file} {'exists' if file.exists() else 'does not end in .gguf'}: give a new file.gguf")
    if outtype not in OUT_TYPES:
        raise InputError(f"there is no outtype {outtype!r}: choose one of {', '.join(OUT_TYPES)}")
    return file


def _place(path: str | Path, outtype: str) -> Path:
    file = check_target(path, outtype)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the folder of {file} cannot be made ({error.strerror}): give another place") from error
    return file


def _convert(script: Path, arguments: Sequence[str], out: Path, file: Path, outtype: str) -> None:
    """Run a converter in this Python, which has the packages it needs, and move its whole file into place."""
    command = [sys.executable, str(script), *arguments, "--outfile", str(out), "--outtype", outtype]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not out.is_file():
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = lines[-1] if lines else f"it ended with code {done.returncode} and wrote nothing"
        missing = said.partition("No module named ")[2].strip("'\"")
        way_out = f"pip install {missing}" if missing else f"see what {script} supports"
        raise InputError(f"{script.name} could not write {file} ({said}): {way_out}")
    out.replace(file)
