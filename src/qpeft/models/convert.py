"""GGUF files turned into transformers folders: float32 safetensors that hold the dequantised values exactly.

float32, because a quantised value is a scale times an integer and does not fit 8 or 11 significant bits: bfloat16
would round every weight a second time. transformers does the reading, so that every architecture it knows works.
"""

import contextlib
import errno
import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qpeft.errors import InputError

logger = logging.getLogger(__name__)

# Vocabularies that were trained with every digit a word of its own; transformers' reader does not yet split them so.
_SINGLE_DIGITS = frozenset({"smollm", "starcoder", "refact", "command-r"})


def check_gguf(path: Path) -> None:
    """Refuse what is not a GGUF file at all.

    Raises:
        InputError: The file cannot be read, or does not begin as a GGUF file does.
    """
    try:
        with path.open("rb") as file:
            head = file.read(24)
    except OSError as error:
        raise InputError(
            f"GGUF file '{path}' cannot be read ({error.strerror}); check its path and permissions"
        ) from error
    if len(head) < 24 or head[:4] != b"GGUF":
        raise InputError(f"'{path}' is not a GGUF file (it does not begin with 'GGUF'); download it again")


def convert_gguf(path: Path, target: Path) -> None:
    """Write the model and tokenizer of a GGUF file into the folder `target` in the transformers format.

    Args:
        path: The GGUF file of a causal language model.
        target: An existing folder.

    Raises:
        InputError: The file is damaged, or its architecture or number format is not one transformers reads.
    """
    check_gguf(path)
    try:
        model, missing, tokenizer = _read(path)
    except Exception as error:  # on a damaged file the reader fails in whatever line meets the damage first
        if isinstance(error, OSError) and error.errno in (errno.ENOMEM, errno.EIO, errno.EACCES):
            raise
        reason = _first_line(error)
        if isinstance(error, ValueError | NotImplementedError) and "support" in reason:
            raise InputError(
                f"GGUF file '{path}' cannot be converted: {reason}; give the model's folder in the transformers format"
            ) from error
        if "Unrecognized configuration class" in reason:
            raise InputError(
                f"GGUF file '{path}' does not hold a causal language model; give one that does"
            ) from error
        raise InputError(
            f"GGUF file '{path}' is damaged or incomplete ({reason}); download it again and compare its checksum"
        ) from error
    if missing:
        raise InputError(
            f"GGUF file '{path}' lacks {len(missing)} tensors of its architecture, {sorted(missing)[0]} among them; "
            "download it again, or give the model's folder in the transformers format"
        )
    with _quiet():
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    _drop_invented_tokens(target / "tokenizer.json", model.get_input_embeddings().num_embeddings)


def _read(path: Path) -> tuple[Any, set[str], Any]:
    import torch
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        # Without it the weights come out the same, but the model calls itself quantised and refuses to be saved.
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    auto: Any = transformers.AutoModelForCausalLM
    with _quiet():
        model, loading = auto.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, output_loading_info=True, **options
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    _split_digits(tokenizer, path)
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest:
        tokenizer.model_max_length = longest  # a GGUF tokenizer does not know it: 10**30 otherwise
    return model, set(loading["missing_keys"]), tokenizer


def _split_digits(tokenizer: Any, path: Path) -> None:
    from tokenizers import pre_tokenizers

    if _pre_tokenizer_name(path) in _SINGLE_DIGITS:
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )


def _drop_invented_tokens(path: Path, n_embeddings: int) -> None:
    """Remove tokens the file does not have: transformers adds `<|endoftext|>` to every byte-level vocabulary.

    Its number would lie past the last row of the embedding, and a text that contains it would crash the model.
    """
    content = json.loads(path.read_text(encoding="utf-8"))
    kept = [token for token in content["added_tokens"] if token["id"] < n_embeddings]
    if len(kept) < len(content["added_tokens"]):
        content["added_tokens"] = kept
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _pre_tokenizer_name(path: Path) -> str | None:
    from gguf import GGUFReader

    field = GGUFReader(path).get_field("tokenizer.ggml.pre")
    return None if field is None else field.contents()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the progress bars of transformers, which know nothing of ours, out of the terminal; the log has them."""
    bars = io.StringIO()
    with contextlib.redirect_stderr(bars):
        yield
    if bars.getvalue().strip():
        logger.debug("%s", bars.getvalue().strip())


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
