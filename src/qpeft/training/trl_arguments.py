"""The keys of `qpeft sft|dpo|grpo`: all of TRL's, read by TRL's own parser, and the adapter's.

`--config FILE` gives defaults in YAML and flags override them, as in TRL's commands. The adapter is a section of the
file (`adapter: {method: qtha, r: 4}`) or flags of the form `--method qtha --adapter.r 4`; its keys are those of a
recipe's adapter section. Values of the file are checked against the types of TRL's fields, which TRL leaves undone.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import torch
import trl
import yaml
from pydantic import PydanticUserError, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from transformers.utils import is_torch_bf16_gpu_available
from trl.scripts.grpo import GRPOScriptArguments

from qpeft.errors import InputError
from qpeft.training.keys import nearest
from qpeft.training.recipe import AdapterSection
from qpeft.training.trl_data import Kind
from qpeft.training.yaml_files import StrictLoader, read_yaml


@dataclass
class OwnArguments:
    """Keys that TRL's commands do not have."""

    system: str | None = field(
        default=None, metadata={"help": "System message of prompts made from question and answer."}
    )
    arithmetic_problems: int = field(default=2000, metadata={"help": "dataset_name arithmetic: how many problems."})
    arithmetic_steps: int = field(default=3, metadata={"help": "dataset_name arithmetic: longest solution, 1 to 3."})
    arithmetic_largest: int = field(default=200, metadata={"help": "dataset_name arithmetic: largest number."})

    def __post_init__(self) -> None:
        if self.arithmetic_problems < 1:
            raise InputError(f"arithmetic_problems must be at least 1 (got {self.arithmetic_problems})")
        if not 1 <= self.arithmetic_steps <= 3:
            raise InputError(f"arithmetic_steps must be between 1 and 3 (got {self.arithmetic_steps})")


@dataclass(frozen=True)
class TrlArguments:
    """A command's arguments, read.

    Attributes:
        kind: `sft`, `dpo` or `grpo`.
        script: TRL's arguments of the data set and, for GRPO, of the rewards.
        training: `SFTConfig`, `DPOConfig` or `GRPOConfig`.
        model: TRL's arguments of the base model.
        mixture: TRL's arguments of a mixture of data sets.
        own: The keys that TRL does not have.
        adapter: The adapter's section.
    """

    kind: Kind
    script: Any
    training: Any
    model: trl.ModelConfig
    mixture: trl.DatasetMixtureConfig
    own: OwnArguments
    adapter: AdapterSection


class _Parser(trl.TrlParser):
    """TRL's parser, which says what is wrong and leaves the ending of the process to its caller."""

    def error(self, message: str) -> NoReturn:
        raise InputError(message.removeprefix("argument "))


_CONFIGS: dict[Kind, str] = {"sft": "SFTConfig", "dpo": "DPOConfig", "grpo": "GRPOConfig"}


def help_text(kind: Kind) -> str:
    """All keys of a command with their meanings and defaults."""
    parser = _Parser(_classes(kind), prog=f"qpeft {kind}", allow_abbrev=False, add_help=False)
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file of defaults: any key here, and an adapter section."
    )
    parser.add_argument("--method", default="qtha", help="PEFT method of the adapter: qtha, lora, ...")
    parser.add_argument("--adapter.KEY", metavar="VALUE", help="Field of the method's config, such as --adapter.r 4.")
    return parser.format_help()


def read_arguments(kind: Kind, arguments: Sequence[str]) -> TrlArguments:
    """Read a command line and the file it names.

    Raises:
        InputError: A key is unknown, a value has the wrong type, or TRL or the adapter refuses it.

    Example:
        >>> read = read_arguments("sft", ["--method", "lora", "--adapter.r", "4", "--learning_rate", "1e-3"])
        >>> read.adapter.method, read.adapter.fields, read.training.learning_rate
        ('lora', {'r': 4}, 0.001)
    """
    rest, file, adapter = _take_own(arguments)
    values: dict[str, Any] = {}
    if file is not None:
        values = read_yaml(Path(file), "config file", [])
        if not isinstance(values, dict):
            raise InputError(f"{file}: a config file is a mapping of keys, such as learning_rate: 1e-3")
    section = _adapter_section(values, adapter, file)
    _set_environment(values.pop("env", None), file)
    classes = _classes(kind)
    parser = _Parser(classes, prog=f"qpeft {kind}", allow_abbrev=False, add_help=False)
    if not is_torch_bf16_gpu_available():  # TRL's default, bf16 autocast, is refused without such a GPU
        parser.set_defaults(bf16=False)
    if not torch.cuda.is_available():
        parser.set_defaults(dataloader_pin_memory=False)
    parser.set_defaults_with_config(**_checked(values, classes, file))
    try:
        *read, unknown = parser.parse_args_into_dataclasses(
            rest, return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"{_CONFIGS[kind]} refuses these settings: {sentence(error)}{_way_out(error)}") from error
    if unknown:
        flag = str(unknown[0]).partition("=")[0]
        if not flag.startswith("--"):
            raise InputError(f"{flag!r} stands where a key is expected: write --key value")
        raise InputError(f"unknown key {flag}{nearest(flag, parser._option_string_actions)}")
    script, training, model, mixture, own = read
    _refuse_lora_keys(model)
    return TrlArguments(kind, script, training, model, mixture, own, section)


def sentence(error: Exception) -> str:
    """A library's message on one line, without its final stop."""
    text = " ".join(str(error).split()) or type(error).__name__
    return (text if len(text) <= 300 else text[:300] + " ...").rstrip(".")


def _way_out(error: Exception) -> str:
    if "divisible by num_generations" in str(error):
        return (
            "; generation_batch_size is per_device_train_batch_size x processes x gradient_accumulation_steps unless "
            "it is set: change one of them or num_generations"
        )
    return ""


def _classes(kind: Kind) -> tuple[Any, ...]:
    script = GRPOScriptArguments if kind == "grpo" else trl.ScriptArguments
    return script, getattr(trl, _CONFIGS[kind]), trl.ModelConfig, trl.DatasetMixtureConfig, OwnArguments


def _take_own(arguments: Sequence[str]) -> tuple[list[str], str | None, dict[str, Any]]:
    """What is left for TRL's parser, the config file, and the adapter's keys."""
    rest: list[str] = []
    file: str | None = None
    adapter: dict[str, Any] = {}
    words = list(arguments)
    while words:
        key, equals, text = words.pop(0).partition("=")
        if key not in ("--config", "--method") and not key.startswith("--adapter."):
            rest.append(key + equals + text)
            continue
        given = [text] if equals else []
        while not equals and words and not words[0].startswith("--"):
            given.append(words.pop(0))
        if not given:
            raise InputError(f"{key} needs a value")
        if key == "--config":
            if len(given) > 1:
                raise InputError(f"{given[1]!r} stands where a key is expected: write --key value")
            file = given[0]
        else:
            field_name = key.removeprefix("--").removeprefix("adapter.")
            values = [_value(key, word) for word in given]
            # peft takes a text for a pattern of whole names, where one plain name is a list of one
            several = len(values) > 1 or (field_name.endswith(("_modules", "_to_save")) and given[0].isidentifier())
            adapter[field_name] = values if several else values[0]
    return rest, file, adapter


def _value(key: str, text: str) -> Any:
    try:
        return yaml.load(text, StrictLoader)
    except yaml.YAMLError as error:
        raise InputError(f"the value of {key} is not valid YAML: {text!r}") from error


def _adapter_section(values: dict[str, Any], flags: Mapping[str, Any], file: str | None) -> AdapterSection:
    given = values.pop("adapter", None) or {}
    if not isinstance(given, dict):
        raise InputError(f"{file}: adapter is a section and needs keys below it, such as r: 4")
    if "method" in values:
        given = {**given, "method": values.pop("method")}
    try:
        section = AdapterSection.model_validate({**given, **flags})
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        raise InputError(
            message if not place else f"adapter.{place} cannot be {problem['input']!r}: {message}"
        ) from error
    section.build()
    return section


def _set_environment(variables: Any, file: str | None) -> None:
    """TRL's `env` section."""
    if variables is None:
        return
    if not isinstance(variables, dict):
        raise InputError(f"{file}: env is a mapping of environment variables")
    os.environ.update({str(key): str(value) for key, value in variables.items()})


def _checked(values: Mapping[str, Any], classes: Sequence[Any], file: str | None) -> dict[str, Any]:
    """The values of the file, each of the type of its field."""
    hints: dict[str, Any] = {}
    for cls in classes:
        known = get_type_hints(cls)
        hints |= {part.name: known[part.name] for part in dataclasses.fields(cls) if part.init}
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key not in hints:
            raise InputError(f"{file}: unknown key {key}{nearest(str(key), [*hints, 'adapter', 'method', 'env'])}")
        if value is False and key.endswith("_strategy"):  # YAML's reading of the word no
            value = "no"
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            message = error.errors()[0]["msg"]
            raise InputError(f"{file}: {key} cannot be {value!r}: {message[:1].lower()}{message[1:]}") from error
        except (PydanticSchemaGenerationError, PydanticUserError):  # a type that only its library can check
            checked[key] = value
    return checked


def _refuse_lora_keys(model: trl.ModelConfig) -> None:
    """TRL's flags of its own LoRA would be read and then not used."""
    for part in dataclasses.fields(model):
        own_lora = part.name.startswith("lora_") or part.name in ("use_peft", "use_rslora", "use_dora")
        if own_lora and getattr(model, part.name) != part.default:
            raise InputError(
                f"{part.name} belongs to TRL's own LoRA: name the method and its fields instead, for example "
                "--method lora --adapter.r 16 --adapter.lora_alpha 32"
            )
