"""Axolotl's hooks for `adapter: qtha`: which keys there are, that the name exists, and how its model is made.

Axolotl asks a plugin for the adapter in `load_adapter`, with `config_only` where a trainer of TRL puts the adapter on
the model itself (DPO and its relatives). Nothing of axolotl is replaced.
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import AdapterCapabilities, BasePlugin
from peft import PeftModel, get_peft_model

from qpeft import QTHAConfig  # importing qpeft registers the method with peft

NAME = "qtha"


class QTHAPlugin(BasePlugin):
    """Quantum tensor hybrid adaptation as an adapter of axolotl."""

    def get_input_args(self) -> str:
        return "qpeft_axolotl.args.QTHAArgs"

    def get_adapter_capabilities(self) -> list[AdapterCapabilities]:
        return [AdapterCapabilities(name=NAME)]

    def load_adapter(
        self, model: Any, cfg: Any, inference: bool = False, config_only: bool = False
    ) -> tuple[Any, QTHAConfig] | None:
        """Put the adapter of `cfg` on a model; `None` where another one is asked for."""
        if cfg.adapter != NAME:
            return None
        config = QTHAConfig(task_type=_task_of(model), **dict(cfg.qtha or {}))
        if config_only:
            return None, config
        if cfg.lora_model_dir:
            adapted = PeftModel.from_pretrained(model, str(cfg.lora_model_dir), is_trainable=not inference)
            return adapted, adapted.peft_config["default"]
        adapted = get_peft_model(model, config)
        adapted.print_trainable_parameters()
        return adapted, config


def _task_of(model: Any) -> str:
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return "SEQ_CLS"
    return "TOKEN_CLS" if name.endswith("ForTokenClassification") else "CAUSAL_LM"
