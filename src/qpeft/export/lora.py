"""Exact export of linear adapters to LoRA.

An adapter without a circuit is ``dW = (MPO_B B W_c) (A MPO_A)`` times its scale: a product of a ``(d_out, r)`` and an
``(r, d_in)`` matrix, which is what LoRA stores. Both factors are written as they are, in float32; nothing is
decomposed or fitted. The rank is one integer and ``alpha`` equals it, without patterns for single modules, because
other programs (llama.cpp, vLLM) misread those.
"""

from pathlib import Path

from peft import LoraConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import save_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from qpeft.adapters.qtha import QTHAConfig, QTHALayer
from qpeft.errors import InputError


def save_as_lora(model: PeftModel, path: str | Path, adapter_name: str = "default") -> LoraConfig:
    """Write an adapter as a LoRA that computes the same, readable without this package.

    Modules trained whole and token embeddings are written along.

    Args:
        model: A model with QTHA adapters.
        path: Folder to write to; created where it does not exist.
        adapter_name: Name of the adapter.

    Returns:
        The configuration of the LoRA.

    Raises:
        InputError: The model has no such adapter.
        MergeError: The adapter is not linear on some layer.
    """
    config = model.peft_config.get(adapter_name)
    if not isinstance(config, QTHAConfig):
        raise InputError(f"the model has no QTHA adapter called {adapter_name!r}: pass the name it was added under")
    tensors: dict[str, Tensor] = {}
    names: list[str] = []
    fan_in_fan_out = config.fan_in_fan_out
    for name, layer in model.named_modules():
        if isinstance(layer, QTHALayer) and adapter_name in layer.architectures:
            lora_a, lora_b = layer.linear_factors(adapter_name)
            tensors[f"{name}.lora_A.weight"] = lora_a
            tensors[f"{name}.lora_B.weight"] = lora_b
            fan_in_fan_out |= isinstance(layer.get_base_layer(), Conv1D)
            names.append(name.removeprefix("base_model.model."))
    state = get_peft_model_state_dict(model, adapter_name=adapter_name)
    tensors |= {key: value for key, value in state.items() if f".{model.base_model.prefix}" not in key}

    # Without restrictions the short names say the same as the full ones, and every program understands them.
    if isinstance(config.target_modules, set) and not config.exclude_modules and config.layers_to_transform is None:
        names = sorted(config.target_modules)
    lora_config = LoraConfig(
        r=config.r,
        lora_alpha=config.r,
        target_modules=names,
        fan_in_fan_out=fan_in_fan_out,
        modules_to_save=config.modules_to_save,
        trainable_token_indices=config.trainable_token_indices,
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        revision=config.revision,
        inference_mode=True,
    )
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    contiguous = {key: value.detach().to("cpu", copy=True).contiguous() for key, value in tensors.items()}
    save_file(contiguous, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    lora_config.save_pretrained(str(folder))
    return lora_config
