"""Base weights in 8 or 4 bits, through transformers and bitsandbytes.

    8bit    LLM.int8(): a byte a weight and a scale a row; activations are rounded to 8 bits as well, outliers apart
            (Dettmers et al., 2208.07339)
    4bit    NF4 with scales that are themselves in 8 bits: 0.516 bytes a weight (Dettmers et al., QLoRA, 2305.14314)

The matrices of the layers are quantised; embeddings, norms and the head stay as they are. They are dequantised, one
at a time, while they are used.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from qpeft.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    import torch

Quantization = Literal["8bit", "4bit"]

#: bytes of a weight; the scales of 8 bits, one a row, are too few to count
BYTES = {"8bit": 1.0, "4bit": 0.5 + (1 + 4 / 256) / 64}

_KINDS = ("8bit", "4bit")


def quantization_config(kind: str, dtype: torch.dtype, device: torch.device) -> Any:
    """What transformers takes to quantise a model while it is loaded.

    Args:
        kind: ``"8bit"`` or ``"4bit"``.
        dtype: In which matrices are used.
        device: Where the model goes.

    Raises:
        InputError: There is no such kind, or it does not work on that device.
        MissingDependencyError: bitsandbytes is not installed.
    """
    if kind not in _KINDS:
        raise InputError(f"quantization must be one of {', '.join(_KINDS)}, or nothing (got {kind!r})")
    if device.type not in ("cpu", "cuda"):
        raise InputError(
            f"quantization {kind} works on cpu and cuda (got {device.type}): leave model.quantization out"
        )
    if find_spec("bitsandbytes") is None:
        raise MissingDependencyError(f"quantization {kind} needs bitsandbytes: pip install bitsandbytes")
    from transformers import BitsAndBytesConfig

    if kind == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def keep_differentiable(model: Any) -> None:
    """Keep 4-bit matrices on a processor from being packed for inference.

    Where the processor has AVX-512 for bfloat16, bitsandbytes packs a matrix in its first pass without gradients, as
    in a validation. The packed product has no derivative, and says so nowhere: training went on with none.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def beside_parameters(model: Any) -> list[Any]:
    """What quantised layers hold beside their parameters, for other layers that share it.

    In its first pass an 8-bit layer takes the numbers out of its weight, and a second layer with that weight would
    find none: so they are taken out here.
    """
    held: list[Any] = []
    for module in model.modules():
        if hasattr(module, "init_8bit_state"):
            if module.weight.CB is not None:
                module.init_8bit_state()
            held += [module.state.CB, module.state.SCB]
        elif getattr(module, "quant_state", None) is not None:
            held.append(module.quant_state)
    return held


def quantized_weights(model: Any) -> list[int]:
    """Sizes of the matrices of a model that would be quantised: of its frozen linear layers, but not of its head."""
    from torch import nn

    head = model.get_output_embeddings()
    return [
        module.weight.numel()
        for module in model.modules()
        if isinstance(module, nn.Linear) and module is not head and not module.weight.requires_grad
    ]
