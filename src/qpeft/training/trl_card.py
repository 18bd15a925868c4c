"""The model card of an adapter trained through TRL: how to load it, what it costs, how it was trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import TrainerState

from qpeft.training.model_card import card, is_secret, loading, nature, table, yaml_text
from qpeft.training.parameters import parameter_table
from qpeft.training.run_folder import versions, write_text
from qpeft.training.trl_arguments import TrlArguments

_TITLES = {"sft": "supervised fine-tuning", "dpo": "direct preference optimisation", "grpo": "GRPO"}
#: fields of TRL's config that say where, and not how, a run was made; those of credentials are left out by their name
_PLACES = frozenset({"output_dir", "run_name", "resume_from_checkpoint", "hub_model_id", "disable_tqdm"})


def write_card(arguments: TrlArguments, model: PeftModel, state: TrainerState, folder: Path) -> None:
    """Write `README.md` into the folder of the adapter."""
    config = model.active_peft_config
    base = config.base_model_name_or_path or arguments.model.model_name_or_path
    used = versions()["packages"]
    parts = [
        f"A {arguments.adapter.method} adapter for {base}, trained by {_TITLES[arguments.kind]} "
        f"({', '.join(f'{name} {used[name]}' for name in ('trl', 'peft', 'transformers', 'torch'))}).",
        loading(config, folder.name),
        nature(config),
        f"## Trained parameters\n\n{table(parameter_table(model))}",
        f"## Training: {state.global_step} steps\n\n{table(last_metrics(state))}",
        f"Settings that differ from TRL's defaults:\n\n```yaml\n{yaml_text(_changed(arguments))}```",
    ]
    write_text(folder / "README.md", card(folder.name, str(base), ["qpeft", "trl", arguments.kind], parts))


def last_metrics(state: TrainerState) -> dict[str, float]:
    """The last value of every number that was logged, by name."""
    last: dict[str, float] = {}
    for line in state.log_history:
        last |= {key: value for key, value in line.items() if isinstance(value, int | float)}
    return {key: value for key, value in last.items() if key not in ("step", "epoch", "total_flos")}


def _changed(arguments: TrlArguments) -> dict[str, Any]:
    adapter = arguments.adapter.model_dump(exclude_none=True)
    values: dict[str, Any] = {"adapter": adapter}
    for part in (arguments.script, arguments.training, arguments.model, arguments.own):
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            default = field.default_factory() if callable(field.default_factory) else field.default
            private = field.name in _PLACES or is_secret(field.name)
            if field.init and not private and value not in (default, None, []) and _plain(value):
                values[field.name] = getattr(value, "value", value)
    return values


def _plain(value: Any) -> bool:
    return isinstance(getattr(value, "value", value), str | int | float | bool | list)
