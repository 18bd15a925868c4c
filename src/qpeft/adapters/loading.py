"""Loading a saved adapter together with its base model."""

import json
import re
from json import JSONDecodeError
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME
from torch import nn

from qpeft.adapters.registry import QPeftType
from qpeft.errors import InputError
from qpeft.models import resolve_model

_WEIGHT_FILES = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)

_AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def load(
    path: str | Path,
    *,
    base_model: nn.Module | str | Path | None = None,
    is_trainable: bool = False,
    adapter_name: str = "default",
    **model_kwargs: Any,
) -> PeftModel:
    """Load a saved adapter and its base model.

    The adapter's numbers stay in float32, whatever the base model's dtype, which loaders that cast to the base
    model's dtype do not grant.

    Args:
        path: Run folder, folder with ``adapter_config.json``, or the name of a repository on the Hugging Face hub.
        base_model: The base model, loaded or as a folder or name (as for `qpeft.models.resolve_model`); by default
            the one named in the configuration.
        is_trainable: Whether the adapter is to be trained further.
        adapter_name: Name the adapter gets.
        **model_kwargs: Passed to the base model's ``from_pretrained``, such as ``dtype`` or ``device_map``.

    Returns:
        The model with its adapter, in evaluation mode unless trainable.

    Raises:
        InputError: There is no adapter at ``path``, it is not one of this package's, it was saved in a newer format,
            or its base model is not named or not found.

    Example:
        >>> import qpeft
        >>> model = qpeft.load("runs/gsm8k-qtha", dtype="bfloat16")  # doctest: +SKIP
    """
    if (Path(path) / "adapter" / CONFIG_NAME).is_file():  # a run folder
        path = Path(path) / "adapter"
    settings = _read_config(path)
    kind = settings.get("peft_type")
    if kind not in QPeftType.__members__:
        raise InputError(
            f"the adapter at {path} is of type {kind}, and qpeft.load reads {', '.join(QPeftType.__members__)}: load "
            "it with peft.PeftModel.from_pretrained"
        )
    if Path(path).is_dir() and not any((Path(path) / name).is_file() for name in _WEIGHT_FILES):
        raise InputError(
            f"{path} holds an adapter's configuration without its weights ({' or '.join(_WEIGHT_FILES)}): it was not "
            "saved completely; use an earlier checkpoint"
        )
    config = PeftConfig.from_pretrained(str(path))
    if not isinstance(base_model, nn.Module):
        base_model = _load_base(path, config, base_model, model_kwargs)
    model = PeftModel.from_pretrained(
        base_model, str(path), adapter_name=adapter_name, is_trainable=is_trainable, config=config
    )
    return model if is_trainable else model.eval()


def _read_config(path: str | Path) -> dict[str, Any]:
    folder = Path(path)
    file = folder / CONFIG_NAME
    if not file.is_file():
        if folder.exists():
            raise InputError(f"{path} holds no {CONFIG_NAME}: give the folder an adapter was saved to")
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
            raise InputError(f"there is no folder {path}: give the folder an adapter was saved to")
        try:
            file = Path(hf_hub_download(str(path), CONFIG_NAME))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
            raise InputError(
                f"{path} is neither a folder here nor an adapter that could be fetched from the Hugging Face hub: "
                "check the name and the network"
            ) from error
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not valid JSON ({error}): save the adapter again") from error
    if not isinstance(settings, dict):
        raise InputError(f"{file} holds no adapter configuration: save the adapter again")
    return settings


def _load_base(
    path: str | Path, config: PeftConfig, name: str | Path | None, model_kwargs: dict[str, Any]
) -> nn.Module:
    name = name or config.base_model_name_or_path
    if not name:
        raise InputError(f"the adapter at {path} does not name its base model: pass base_model=")
    try:
        resolved = resolve_model(str(name))
    except InputError as error:
        raise InputError(
            f"the base model of the adapter at {path} is not to be found ({error}): pass the folder it is in as "
            "base_model="
        ) from error
    try:
        auto_class = getattr(transformers, _auto_class_name(str(resolved.folder), config.task_type))
        return auto_class.from_pretrained(resolved.folder, **model_kwargs)
    except OSError as error:
        raise InputError(
            f"the base model {name} of the adapter at {path} could not be loaded ({str(error).splitlines()[0]}): pass "
            "the folder it is in as base_model="
        ) from error


def _auto_class_name(name: str, task_type: str | None) -> str:
    if task_type is not None:
        return _AUTO_CLASSES[task_type]
    # Trainers are often given a loaded model and no task type; the model's own configuration knows its class.
    architectures = transformers.AutoConfig.from_pretrained(name).architectures or ["AutoModel"]
    return architectures[0]
