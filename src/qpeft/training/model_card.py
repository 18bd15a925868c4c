"""The model card of a run: how to load the adapter, what it is, what it measured, and the recipe that repeats it.

It is written from the files of a run folder alone, so that it can be written anew when an evaluation has added its
numbers. What is said of circuits follows the adapter's configuration and the run's record of where they were executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from peft import PeftConfig

from qpeft.adapters import QTHAConfig
from qpeft.training.recipe import Recipe, load_recipe
from qpeft.training.run_folder import RunFolder, write_text

#: packages whose versions decide the result
_PACKAGES = ("torch", "transformers", "peft", "trl")


def write_run_card(folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Write `README.md` beside the trained adapter of a run.

    Args:
        folder: Holds recipe, versions and adapter.
        result: What `result.json` holds, or will hold.
    """
    recipe = load_recipe(folder.recipe)
    versions = json.loads(folder.versions.read_text(encoding="utf-8"))
    config = PeftConfig.from_pretrained(str(folder.adapter))
    used = {"qpeft": versions["qpeft"], **versions["packages"]}
    data = "generated arithmetic problems" if recipe.data.train == "arithmetic" else recipe.data.train
    parts = [
        f"A {recipe.adapter.method} adapter for {recipe.model.name}, fine-tuned on {data} "
        f"({', '.join(f'{name} {used[name]}' for name in ('qpeft', *_PACKAGES))}).",
        loading(config, folder.path.name),
        nature(config, result.get("execution")),
        f"## Trained parameters\n\n{table(result['training']['parameters'])}",
        f"## Results\n\n{table(_training_numbers(result['training']))}",
        _evaluation(result.get("evaluation")),
        _execution(result.get("execution")),
        f"## Recipe\n\n```yaml\n{_recipe(recipe)}```",
    ]
    tags = ["qpeft", recipe.adapter.method]
    write_text(folder.adapter / "README.md", card(folder.path.name, recipe.model.name, tags, parts))


def card(name: str, base: str, tags: list[str], parts: list[str]) -> str:
    """A model card: what the hub reads, the title, the parts that are not empty."""
    base_model = None if Path(base).expanduser().is_dir() else base  # the hub takes names, and a path is nobody's
    front = ModelCardData(library_name="peft", tags=tags, base_model=base_model)
    text = "\n\n".join([f"# {name}", *filter(None, parts)])
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n{text}\n"))


def loading(config: PeftConfig, name: str) -> str:
    """How to load the adapter; peft knows ours only once qpeft has been imported."""
    if isinstance(config, QTHAConfig):
        lines = f'import qpeft  # before peft.PeftModel.from_pretrained too\n\nmodel = qpeft.load("{name}")'
    else:
        kind = "SequenceClassification" if config.task_type == "SEQ_CLS" else "CausalLM"
        lines = f'from peft import AutoPeftModelFor{kind}\n\nmodel = AutoPeftModelFor{kind}.from_pretrained("{name}")'
    return f"```python\n{lines}\n```"


def nature(config: PeftConfig, execution: Mapping[str, Any] | None = None) -> str:
    """What kind of update the adapter is, and where its circuits were executed in training."""
    if not isinstance(config, QTHAConfig):
        return ""
    architecture = config.architecture
    if architecture.branch == "circuit":
        place = "computed exactly on a classical simulator"
        if execution is not None:
            shares = f", where {execution['circuits']:,} circuits were asked for" if "circuits" in execution else ""
            place = f"executed on {execution['executor']}{shares}, and computed on a classical simulator elsewhere"
        return (
            f"Each adapted layer holds a parametrised quantum circuit of {config.r} qubits (`arch: "
            f"{architecture.name}`): the update is quantum-parametrised. In training the circuits were {place}. The "
            "update depends on the input, so that it does not merge into the base."
        )
    if architecture.branch is None:
        return (
            f"The adapter holds no circuit (`arch: {architecture.name}`): its update is a fixed matrix, which merges "
            "into the base and exports to LoRA exactly."
        )
    return (
        f"The adapter holds a classical non-linear branch in place of a circuit (`arch: {architecture.name}`). Its "
        "update depends on the input, so that it does not merge into the base."
    )


def table(values: Mapping[str, float | str]) -> str:
    """Names and values in two columns."""
    rows = [f"| {key.replace('_', ' ')} | {_number(value)} |" for key, value in values.items()]
    return "\n".join(["| | |", "| --- | ---: |", *rows])


def yaml_text(values: Mapping[str, Any]) -> str:
    """A mapping as YAML, without the values of fields that hold credentials."""
    return str(yaml.safe_dump(_without_secrets(values), sort_keys=False, allow_unicode=True))


def is_secret(key: str) -> bool:
    """Whether a field of that name holds a credential: cards are made to be published."""
    return key.lower().endswith(("token", "key", "secret", "password"))


def _training_numbers(training: Mapping[str, Any]) -> dict[str, float | str]:
    values: dict[str, float | str] = {"steps": training["steps"], "examples": training["samples"]}
    values["train loss"] = training["train_loss"]
    if training["eval_loss"] is not None:
        values["validation loss"] = training["eval_loss"]
    values["tokens per second"] = training["tokens_per_second"]
    values["seconds"] = training["seconds"]
    values["peak memory"] = f"{training['peak_memory_bytes'] / 2**30:.2f} GiB"
    return values


def _evaluation(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return ""
    rows: dict[str, float | str] = {"test examples": evaluation["n"]}
    for name, metric in evaluation["metrics"].items():
        low, high = metric["low"], metric["high"]
        interval = "" if low is None or high is None else f" (95 % interval {low:.4g} to {high:.4g})"
        rows[name] = "no number" if metric["value"] is None else f"{metric['value']:.4g}{interval}"
    return f"## Evaluation: {evaluation['task']}\n\n{table(rows)}"


def _execution(execution: Mapping[str, Any] | None) -> str:
    if execution is None:
        return ""
    plain = {key: value for key, value in execution.items() if isinstance(value, str | int | float) and value != ""}
    return f"## Circuits\n\n{table(plain)}"


def _recipe(recipe: Recipe) -> str:
    return yaml_text({key: value for key, value in recipe.model_dump().items() if key != "output"})


def _without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_secrets(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if not is_secret(str(key)) or value is None
    }


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
