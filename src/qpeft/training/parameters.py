"""Trainable numbers of a model, by what they are."""

from __future__ import annotations

from peft import PeftModel

from qpeft.adapters import QTHAConfig, count_parameters


def parameter_table(model: PeftModel) -> dict[str, int]:
    """Trainable numbers by kind; `total` counts everything that is trained."""
    total = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not isinstance(model.active_peft_config, QTHAConfig):
        return {"total": total}
    count = count_parameters(model)
    angles = [value for name, value in model.named_parameters() if ".qtha_circuit." in name and value.requires_grad]
    return {
        "total": total,
        "tensor_network": count.tensor_network,
        "linear": count.linear,
        "angles": sum(value.numel() for value in angles),
        "classical": count.classical,
        "lora_equivalent": count.lora_equivalent,
    }
