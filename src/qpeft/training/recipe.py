"""The recipe: one YAML file that says everything about a run, read into validated values.

Keys are strict: an unknown key is an error that names the nearest right one. `key=value` pairs given on the command
line override the file (`training.learning_rate=2e-4`). The resolved recipe is saved in the run folder, so a run can
be repeated from its folder alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator, model_validator
from pydantic.errors import PydanticSchemaGenerationError

from qpeft.errors import InputError
from qpeft.training.amounts import bytes_of
from qpeft.training.execution import ExecutionSection
from qpeft.training.keys import nearest
from qpeft.training.yaml_files import StrictLoader, read_yaml

Layout = Literal["auto", "messages", "gsm8k", "mawps", "classified", "pair"]
Task = Literal["causal-lm", "sequence-classification"]
EvaluationTask = Literal["arithmetic", "gsm8k", "mawps", "perplexity", "dialogue", "classification"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class ModelSection(_Section):
    """Which base model, and in which precision it is held while training."""

    name: str = Field("smollm2-135m-instruct", description="hub name, folder, .gguf file, or a short name")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("bfloat16", description="precision of the base")
    quantization: Literal["8bit", "4bit"] | None = Field(
        None, description="holds the base in 8 or 4 bits, by bitsandbytes"
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    task: Task = Field("causal-lm", description="sequence-classification puts a new head on the model")
    num_labels: int = Field(2, ge=2, description="classes, for sequence-classification")


#: fields of adapter configs that the run, and not the recipe, decides
_NOT_FOR_RECIPES = frozenset({
    "auto_mapping", "base_model_name_or_path", "format_version", "inference_mode", "peft_type", "peft_version",
    "qpeft_version", "revision", "task_type",
})  # fmt: skip


class AdapterSection(BaseModel):
    """`method` names a PEFT method (qtha, lora, ...); all other keys are fields of that method's config."""

    model_config = ConfigDict(extra="allow")

    method: str = Field("qtha", description="qtha, or any method of the installed peft")
    start_from: str | None = Field(
        None, description="run or adapter folder whose trained numbers this run starts from"
    )
    initial_gain: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="lora: multiplies A's random start; 2.449 draws it as QTHA's"
    )

    @property
    def fields(self) -> dict[str, Any]:
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _fields_exist(self) -> AdapterSection:
        known = {field.name for field in dataclasses.fields(adapter_config_class(self.method))} - _NOT_FOR_RECIPES
        for key in self.fields:
            if key not in known:
                raise ValueError(
                    f"unknown key adapter.{key} for method {self.method}{nearest(key, known, 'adapter.')}"
                )
        return self

    @model_validator(mode="after")
    def _gain_has_a_start_to_act_on(self) -> AdapterSection:
        if self.initial_gain is None:
            return self
        drawn = self.fields.get("init_lora_weights", True)
        if self.method.lower() != "lora" or not (isinstance(drawn, bool) or drawn == "gaussian"):
            what = f"method {self.method}" if self.method.lower() != "lora" else f"init_lora_weights={drawn}"
            raise ValueError(
                f"adapter.initial_gain multiplies the randomly drawn A of method lora, and does not go with {what}: "
                "leave it out"
            )
        return self

    def build(self) -> Any:
        """Make the `PeftConfig` of this section."""
        config_class = adapter_config_class(self.method)
        try:
            return config_class(**self.fields)
        except InputError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(self.explain(error)) from error

    def explain(self, error: Exception) -> str:
        """One sentence for what a method made of the fields: peft checks few types, and fails wherever one matters."""
        hints = get_type_hints(adapter_config_class(self.method))
        for key, value in self.fields.items():
            try:
                TypeAdapter(hints[key]).validate_python(value)
            except ValidationError as wrong:
                return f"adapter.{key} cannot be {_shown(value)}: {_lower(wrong.errors()[0]['msg'])}"
            except PydanticSchemaGenerationError:
                continue
        return f"the adapter section is not usable: {error}"


class DataSection(_Section):
    """What to train on: `arithmetic` (problems made from the seed), JSON lines files, or hub names."""

    train: str = Field("arithmetic", description="arithmetic, a JSON lines file, or a hub name (owner/set:config)")
    validation: str | None = Field(None, description="as train; without it a part of train is kept aside")
    test: str | None = Field(None, description="what the evaluation uses; not needed for arithmetic")
    layout: Layout = Field("auto", description="how a line becomes a conversation")
    prompt_field: str | None = Field(None, description="name of the question field, for layout pair")
    answer_field: str | None = Field(None, description="name of the answer field, for layout pair")
    keep_calculator_marks: bool = Field(False, description="keep the <<48/2=24>> of GSM8K in the solutions")
    max_steps: int = Field(3, ge=1, le=3, description="arithmetic: the longest solution, in steps")
    min_steps: int = Field(1, ge=1, le=3, description="arithmetic: the shortest solution, in steps")
    largest: int = Field(200, ge=5, description="arithmetic: the largest number in a problem or its solution")
    train_samples: int | None = Field(None, ge=1, description="use at most so many; arithmetic makes so many")
    validation_samples: int | None = Field(None, ge=1, description="use at most so many; arithmetic makes so many")
    validation_fraction: float = Field(0.05, gt=0, lt=1, description="share of train kept aside for validation")
    seed: int = Field(0, description="of the split and of generated problems")
    format: Literal["auto", "chat", "plain"] = Field("auto", description="the chat template, or plain text")
    system: str | None = Field(None, description="system message; null leaves the template's own")
    max_length: int = Field(1024, ge=8, description="tokens; see too_long")
    too_long: Literal["drop", "truncate", "error"] = Field("drop", description="what happens to longer examples")


class TrainingSection(_Section):
    """How to train. Names and meanings are those of transformers and TRL; any other of theirs goes under `trl`."""

    learning_rate: float = Field(1e-3, gt=0)
    angle_learning_rate: float | None = Field(
        None, ge=0, description="for circuit angles; null means learning_rate, 0 leaves them as they start"
    )
    num_train_epochs: float = Field(1.0, gt=0)
    max_steps: int = Field(-1, ge=-1, description="if positive, overrides num_train_epochs")
    per_device_train_batch_size: int = Field(8, ge=1)
    per_device_eval_batch_size: int = Field(16, ge=1)
    gradient_accumulation_steps: int = Field(1, ge=1)
    gradient_checkpointing: bool = False
    lr_scheduler_type: str = "cosine"
    warmup_steps: float = Field(0.1, ge=0, description="steps, or a share of all steps when below 1")
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    seed: int = 0
    logging_steps: int = Field(1, ge=1)
    eval_steps: int | None = Field(None, ge=1, description="validation loss every so many steps; null: at the end")
    save_steps: int = Field(50, ge=1)
    save_total_limit: int = Field(2, ge=1)
    tensorboard: bool = True
    report_to: list[str] = Field(default_factory=list, description="trackers as well: wandb, trackio, mlflow, ...")
    memory_check: bool = Field(True, description="refuse, before the base is loaded, a run that would not fit")
    diagnostics_steps: int | None = Field(
        None, ge=1, description="measure the adapters every so many steps; null: never"
    )
    cache_activations: str | None = Field(
        None, description="disk space (2GB) to keep activations below the adapted layers; null: compute them each step"
    )
    trl: dict[str, Any] = Field(default_factory=dict, description="any other field of trl.SFTConfig")

    @field_validator("cache_activations")
    @classmethod
    def _amount(cls, text: str | None) -> str | None:
        if text is not None and bytes_of(text) is None:
            raise ValueError(f"training.cache_activations must be an amount of disk space such as 2GB (got {text!r})")
        return text

    @property
    def activation_bytes(self) -> int | None:
        """The bound of `cache_activations` in bytes."""
        amount = None if self.cache_activations is None else bytes_of(self.cache_activations)
        return None if amount is None else int(amount)


class EvaluationSection(_Section):
    """What is measured after training (and by `qpeft eval` on the run folder without flags)."""

    task: EvaluationTask | None = Field(None, description="null: no evaluation after training")
    limit: int | None = Field(200, ge=1, description="use at most so many test examples; null: all")
    batch_size: int = Field(50, ge=1)
    max_new_tokens: int = Field(64, ge=1)


class Recipe(_Section):
    """A whole run. `output` is the run folder; everything needed to repeat the run is written there."""

    output: str = Field(..., description="run folder")
    model: ModelSection = Field(default_factory=lambda: ModelSection())
    adapter: AdapterSection = Field(default_factory=lambda: AdapterSection())
    data: DataSection = Field(default_factory=lambda: DataSection())
    training: TrainingSection = Field(default_factory=lambda: TrainingSection())
    evaluation: EvaluationSection = Field(default_factory=lambda: EvaluationSection())
    execution: ExecutionSection = Field(default_factory=lambda: ExecutionSection())

    def to_yaml(self) -> str:
        return yaml.safe_dump(self.model_dump(), sort_keys=False, allow_unicode=True)


def adapter_config_class(method: str) -> Any:
    """The `PeftConfig` class behind a method's name.

    Raises:
        InputError: no installed method has that name.
    """
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    import qpeft  # noqa: F401  (registers our methods with peft)

    table = {str(getattr(kind, "value", kind)).lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    if method.lower() not in table:
        near = nearest(method.lower(), table)
        raise InputError(f"unknown adapter method {method!r}{near}; there are: {', '.join(sorted(table))}")
    return table[method.lower()]


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name: `demo-qtha`, `demo-lora`."""
    return {path.stem: path for path in sorted(Path(__file__).parents[1].joinpath("recipes").glob("*.yaml"))}


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file or a packaged recipe by its name, apply `key=value` overrides, validate.

    Raises:
        InputError: the file is missing or no YAML mapping, or a key or value is wrong; the message names it.
    """
    path = Path(path)
    if not path.exists() and str(path) in packaged_recipes():
        path = packaged_recipes()[str(path)]
    values = read_yaml(path, others=packaged_recipes())
    if not isinstance(values, dict):
        raise InputError(
            f"{path}: a recipe is a mapping of sections (output, model, adapter, data, training, evaluation)"
        )
    return make_recipe(values, overrides, source=str(path))


def apply_overrides(values: Mapping[str, Any], overrides: Sequence[str], source: str) -> dict[str, Any]:
    """A copy of a mapping of sections, with `key=value` pairs put into it.

    Raises:
        InputError: A pair is no override, or the mapping contains itself.
    """
    try:
        values = _deep_copy(values)
    except RecursionError as error:
        raise InputError(f"{source}: a section contains itself; write it out") from error
    values = {key: value for key, value in values.items() if value is not None}  # a section's name and nothing below
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(
                f"{override!r} is not an override: write section.key=value, for example training.learning_rate=2e-4"
            )
        try:
            value = yaml.load(text, StrictLoader)
        except yaml.YAMLError as error:
            raise InputError(f"the value in {override!r} is not valid YAML") from error
        *sections, last = key.split(".")
        place = values
        for section in sections:
            if place.get(section) is None:
                place[section] = {}
            place = place[section]
            if not isinstance(place, dict):
                raise InputError(f"{key} cannot be set: {section} is a value, not a section")
        place[last] = value
    return values


def make_recipe(values: Mapping[str, Any], overrides: Sequence[str] = (), source: str = "the recipe") -> Recipe:
    """Validate a mapping of sections, after applying `key=value` overrides.

    Raises:
        InputError: a key is unknown, a value has the wrong type or lies outside its limits.
    """
    values = apply_overrides(values, overrides, source)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise InputError(_sentence(error, source)) from error
    try:
        _check_scheduler(recipe.training.lr_scheduler_type)
        _check_trl_fields(recipe.training.trl)
        recipe.adapter.build()
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    return recipe


#: fields of SFTConfig that the recipe's other keys, or the run folder, decide
_OWNED = frozenset({
    "output_dir", "dataset_kwargs", "max_length", "remove_unused_columns", "report_to", "packing", "save_strategy",
    "save_only_model", "logging_strategy", "logging_nan_inf_filter", "disable_tqdm", "use_cpu",
    "resume_from_checkpoint",
})  # fmt: skip


def _check_scheduler(name: str) -> None:
    from transformers import SchedulerType

    known = [kind.value for kind in SchedulerType]
    if name not in known:
        raise InputError(
            f"training.lr_scheduler_type cannot be {name!r}{nearest(name, known)}; there are: {', '.join(known)}"
        )


def _check_trl_fields(fields: Mapping[str, Any]) -> None:
    if not fields:
        return
    from trl import SFTConfig

    known = {field.name for field in dataclasses.fields(SFTConfig)}
    for key in fields:
        if key in _OWNED or key in TrainingSection.model_fields:
            raise InputError(f"training.trl.{key} is decided by the recipe's own keys; set it there, not under trl")
        if key not in known:
            raise InputError(f"unknown key training.trl.{key}: trl.SFTConfig has no such field{nearest(key, known)}")


def _sentence(error: ValidationError, source: str) -> str:
    """One sentence for the first problem pydantic found."""
    problem = error.errors()[0]
    place = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        section: Any = Recipe
        for part in problem["loc"][:-1]:
            section = section.model_fields[part].annotation
        prefix = "".join(f"{part}." for part in problem["loc"][:-1])
        near = nearest(str(problem["loc"][-1]), section.model_fields, prefix)
        return f"{source}: unknown key {place}{near or '; the keys here are: ' + ', '.join(section.model_fields)}"
    if problem["type"] == "missing":
        return f"{source}: the key {place} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] in ("value_error", "assertion_error"):
        return f"{source}: {message}"
    if problem["type"] == "model_type":
        message = "it is a section and needs keys below it"
    return f"{source}: {place} cannot be {_shown(problem['input'])}: {_lower(message)}"


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _lower(sentence: str) -> str:
    return sentence[:1].lower() + sentence[1:]


def _deep_copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _deep_copy(value) if isinstance(value, Mapping) else value for key, value in values.items()}
