"""The keys that the plugin adds to axolotl's YAML: one section `qtha`, with the fields of `qpeft.QTHAConfig`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field, field_validator, model_validator

from qpeft.training.recipe import AdapterSection

#: axolotl's keys for LoRA, which would have no effect here
LORA_KEYS = (
    "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "lora_target_parameters", "lora_target_linear",
    "lora_layers_to_transform", "lora_fan_in_fan_out", "lora_modules_to_save", "lora_rank_pattern",
    "lora_alpha_pattern", "lora_mlp_kernel", "lora_qkv_kernel", "lora_o_kernel", "loraplus_lr_ratio", "peft_use_dora",
    "peft_use_rslora", "peft_init_lora_weights", "relora",
)  # fmt: skip
#: keys of a recipe's adapter section that are no fields of the config
_OF_RECIPES = ("method", "start_from", "initial_gain")


class QTHAArgs(BaseModel):
    """Mixed into axolotl's config class."""

    qtha: dict[str, Any] | None = Field(default=None, description="fields of qpeft.QTHAConfig, for adapter: qtha")

    @field_validator("qtha")
    @classmethod
    def _is_a_config(cls, fields: dict[str, Any] | None) -> dict[str, Any] | None:
        if fields is not None:
            for key in _OF_RECIPES:
                if key in fields:
                    raise ValueError(f"qtha.{key} is a key of qpeft's recipes, and not of the adapter: leave it out")
            try:
                AdapterSection(method="qtha", **fields).build()
            except ValueError as error:
                raise ValueError(str(error).replace("adapter.", "qtha.")) from error
        return fields

    @model_validator(mode="before")
    @classmethod
    def _keys_have_an_effect(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if data.get("adapter") == "qtha":
            for key in LORA_KEYS:
                if data.get(key):
                    raise ValueError(
                        f"{key} belongs to adapter: lora and has no effect on adapter: qtha: leave it out; the "
                        "adapter's own settings stand under qtha"
                    )
        elif data.get("qtha") is not None:
            raise ValueError(f"the section qtha has no effect on adapter: {data.get('adapter')}: write adapter: qtha")
        return data
