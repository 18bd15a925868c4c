"""QTHA as one of LLaMA-Factory's methods, in the table that its new trainers (`llamafactory.v1`) look names up in.

The older trainers know a fixed list of `finetuning_type`s and have no such table; they cannot be given a method from
outside.
"""

from __future__ import annotations

from typing import Any

from llamafactory.v1.plugins.model_plugins.peft import PeftPlugin
from peft import PeftModel, get_peft_model

from qpeft.errors import InputError
from qpeft.training.recipe import AdapterSection

#: keys of a recipe's adapter section that are no fields of the config
_OF_RECIPES = frozenset({"method", "start_from", "initial_gain"})


@PeftPlugin("qtha").register()
def get_qtha_model(model: Any, peft_config: dict[str, Any], is_train: bool = False) -> PeftModel:
    """Put a QTHA adapter on a model.

    Args:
        model: The base model, loaded.
        peft_config: `name`, the fields of `qpeft.QTHAConfig`, and `adapter_name_or_path` for the folder of a trained
            adapter, to go on from it or to use it.
        is_train: Whether the adapter is to be trained.

    Raises:
        InputError: There is no such field, or it cannot have that value.
    """
    fields = {key: value for key, value in peft_config.items() if key != "name"}
    trained = fields.pop("adapter_name_or_path", None)
    for key in fields:
        if key in _OF_RECIPES:
            raise InputError(f"peft_config.{key} is a key of qpeft's recipes, and not of the adapter: leave it out")
    try:
        config = AdapterSection(method="qtha", **fields).build()
    except ValueError as error:
        raise InputError(_sentence(error).replace("adapter.", "peft_config.")) from error
    if trained is not None:
        if fields:
            raise InputError(
                f"peft_config names a trained adapter, which has its own settings, and {sorted(fields)[0]}: give "
                "adapter_name_or_path alone"
            )
        folders = [trained] if isinstance(trained, str) else list(trained)
        if len(folders) != 1:
            raise InputError(f"peft_config.adapter_name_or_path takes one folder (got {len(folders)})")
        return PeftModel.from_pretrained(model, folders[0], is_trainable=is_train)
    name = type(model).__name__
    config.task_type = "TOKEN_CLS" if name.endswith("ForTokenClassification") else "CAUSAL_LM"
    adapted = get_peft_model(model, config)
    if is_train:
        adapted.print_trainable_parameters()
    return adapted


def _sentence(error: ValueError) -> str:
    """What went wrong, without pydantic's frame around it."""
    problems = getattr(error, "errors", None)
    return problems()[0]["msg"].removeprefix("Value error, ") if problems else str(error)
