"""Base models and tokenizers, loaded from wherever their name leads.

Whatever goes wrong with the files is told in one sentence, and what transformers only warns about is checked: a causal
model whose checkpoint lacks weights would run with random ones, and a tokenizer without padding cannot form a batch.
"""

import contextlib
import logging
import textwrap
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any, Literal, cast

from qpeft.errors import InputError
from qpeft.models.progress import Progress, report
from qpeft.models.quantization import keep_differentiable, quantization_config
from qpeft.models.resolve import ResolvedModel, resolve_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Task = Literal["causal-lm", "sequence-classification"]

_TASKS = ("causal-lm", "sequence-classification")
_DTYPES = ("auto", "float32", "bfloat16", "float16")


def load_model(
    source: str | ResolvedModel,
    *,
    task: Task = "causal-lm",
    dtype: str = "auto",
    device: str = "auto",
    num_labels: int | None = None,
    quantization: str | None = None,
    progress: Progress | None = None,
) -> "PreTrainedModel":
    """Load a base model, in evaluation mode.

    Args:
        source: A folder, GGUF file, hub name or known alias (see `resolve_model`), or what `resolve_model` returned.
        task: "causal-lm", or "sequence-classification", which puts a new head on an encoder or on a causal model.
        dtype: "float32", "bfloat16", "float16", or "auto" for the one the weights are stored in.
        device: "cpu", "cuda", "cuda:1", or "auto" for the GPU if there is one.
        num_labels: Number of classes, for "sequence-classification" only; by default what the model's config says.
        quantization: "8bit" or "4bit" (:mod:`qpeft.models.quantization`); by default none.
        progress: Receives one sentence a step.

    Returns:
        The model. Its `name_or_path` is the name to load it by again, not the cache folder, so that adapters trained
        on it record something that means the same on another machine; its config has a `pad_token_id`.

    Raises:
        InputError: An option has no such value, or the model cannot be found, read, or used for this task.
        MissingDependencyError: The package that quantises is not installed.
    """
    if task not in _TASKS:
        raise InputError(f"task must be one of {', '.join(_TASKS)} (got '{task}')")
    if dtype not in _DTYPES:
        raise InputError(f"dtype must be one of {', '.join(_DTYPES)} (got '{dtype}')")
    if num_labels is not None and (task == "causal-lm" or num_labels < 1):
        raise InputError(
            f"num_labels must be a positive number for task sequence-classification and absent for causal-lm "
            f"(got {num_labels} for {task})"
        )
    place = _device(device)
    resolved = source if isinstance(source, ResolvedModel) else resolve_model(source, progress=progress)
    report(progress, f"loading {resolved.reference}")
    if quantization is not None and task != "causal-lm":
        raise InputError(f"quantization is for task causal-lm (got {task}): leave model.quantization out")
    model, loading = _from_pretrained(resolved, task, dtype, num_labels, place, quantization)
    _check_shapes(resolved, loading["mismatched_keys"])
    _check_complete(resolved, task, model, set(loading["missing_keys"]))
    model.name_or_path = model.config.name_or_path = resolved.reference
    if model.config.get_text_config().pad_token_id is None:
        _set_pad_id(model, resolved)
    return model if quantization is not None else cast(Any, model).to(place)


def load_tokenizer(source: str | ResolvedModel, *, progress: Progress | None = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a base model, ready to pad.

    Args:
        source: As for `load_model`.
        progress: Receives one sentence a step.

    Returns:
        The tokenizer. Where it has no padding token, its end-of-sequence token pads: the vocabulary, and with it the
        model's embedding, keeps its size. The side of the padding is left as the model's authors set it.

    Raises:
        InputError: The model has no tokenizer, or one that has neither a padding nor an end token.
    """
    from transformers import AutoTokenizer

    resolved = source if isinstance(source, ResolvedModel) else resolve_model(source, progress=progress)
    if not _has_tokenizer(resolved):
        raise InputError(
            f"model '{resolved.reference}' has no tokenizer; save one next to its weights with save_pretrained"
        )
    with _explained(resolved, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(resolved.folder)
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                f"the tokenizer of '{resolved.reference}' has neither a padding nor an end-of-sequence token; "
                "set its pad_token and save it next to the weights"
            )
        tokenizer.pad_token = tokenizer.eos_token
        logger.info("the tokenizer of %s has no padding token; %r pads", resolved.reference, tokenizer.eos_token)
    tokenizer.name_or_path = resolved.reference
    return tokenizer


def _device(device: str) -> "torch.device":
    import torch

    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"device must be auto, cpu, cuda or cuda:<number> (got '{device}')") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device '{device}' is not there ({torch.cuda.device_count()} GPUs found); use device=\"cpu\""
        )
    return place


def _from_pretrained(
    resolved: ResolvedModel,
    task: str,
    dtype: str,
    num_labels: int | None,
    place: "torch.device",
    quantization: str | None,
) -> tuple["PreTrainedModel", dict[str, Any]]:
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    auto: Any = AutoModelForCausalLM if task == "causal-lm" else AutoModelForSequenceClassification
    options: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    if quantization is not None:
        computed = torch.bfloat16 if dtype == "auto" else getattr(torch, dtype)
        config = quantization_config(quantization, computed, place)
        options |= {"quantization_config": config, "device_map": {"": place}}
    with _explained(resolved, "model"), _quiet():
        model, loading = auto.from_pretrained(
            resolved.folder,
            dtype=dtype if dtype == "auto" else getattr(torch, dtype),
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are refused below, by name; the error would point to a printed table
            **options,
        )
    if quantization is not None:
        keep_differentiable(model)
    return model, loading


def _check_shapes(resolved: ResolvedModel, mismatched: Collection[tuple[str, Any, Any]]) -> None:
    if mismatched:
        key, stored, expected = sorted(mismatched)[0]
        raise InputError(
            f"'{resolved.reference}' holds {len(mismatched)} tensors of another shape than its config.json"
            f" (or num_labels) asks for, {key} with {list(stored)} instead of {list(expected)} among them; "
            "use the files of one model, and the number of classes it was trained for"
        )


def _check_complete(resolved: ResolvedModel, task: str, model: Any, missing: set[str]) -> None:
    """Refuse a model that would run with random weights where trained ones belong; a new head may be random."""
    body = {key for key in missing if key.startswith(f"{model.base_model_prefix}.")}
    if task == "sequence-classification":
        # Encoders are often published without the pooling layer, which is then learned along with the head.
        missing = {key for key in body if ".pooler." not in key}
    if missing:
        example = sorted(missing)[0]
        hint = "use the files of one model" if body else "use task sequence-classification"
        raise InputError(
            f"'{resolved.reference}' cannot serve as {type(model).__name__}: it has no weights for "
            f"{len(missing)} tensors, {example} among them; {hint}, or give another model"
        )


def _set_pad_id(model: Any, resolved: ResolvedModel) -> None:
    """Pad with what the tokenizer pads with: a classifier on a causal model reads the last token that is not."""
    config = model.config.get_text_config()
    if _has_tokenizer(resolved):
        config.pad_token_id = load_tokenizer(resolved).pad_token_id
    elif config.eos_token_id is not None:
        end = config.eos_token_id
        config.pad_token_id = end[0] if isinstance(end, list) else end
    generation = getattr(model, "generation_config", None)
    if generation is not None and generation.pad_token_id is None:
        generation.pad_token_id = config.pad_token_id


def _has_tokenizer(resolved: ResolvedModel) -> bool:
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt", "spiece.model")
    return any((resolved.folder / name).is_file() for name in names)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Switch off transformers' progress bars, which would tear through ours, and its table of missing tensors.

    The table also lists a new classification head, which is meant to be missing; what is not gets an error of ours.
    """
    from transformers.utils import logging as transformers_logging

    def is_no_table(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in record.getMessage()

    bars = transformers_logging.is_progress_bar_enabled()
    speaker = logging.getLogger("transformers.modeling_utils")
    speaker.addFilter(is_no_table)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        speaker.removeFilter(is_no_table)
        if bars:
            transformers_logging.enable_progress_bar()


@contextlib.contextmanager
def _explained(resolved: ResolvedModel, what: str) -> Iterator[None]:
    """Turn what transformers can dislike about the files into one sentence."""
    try:
        yield
    except Exception as error:  # a wrong value in a config fails in whatever line of transformers meets it first
        nothing_about_the_files = isinstance(error, MemoryError | RuntimeError) and "PytorchStreamReader" not in str(
            error
        )
        if nothing_about_the_files:  # but the machine: out of memory and the like
            raise
        reason = textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" ...").rstrip(".")
        raise InputError(
            f"the {what} of '{resolved.reference}' cannot be loaded ({reason}); "
            "check that its files are complete and of a kind the installed transformers knows"
        ) from error
