"""Shapes of well-known models, so that their size and cost can be told without their files.

Only what decides memory and work is here: widths, depths, heads, vocabulary, and whether input and output embeddings
are one matrix. The numbers are those of the models' published `config.json`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "tie_word_embeddings",
)

#: by hub name: architecture, then `_FIELDS`
_SHAPES = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 49152, 576, 1536, 30, 9, 3, True),
    "HuggingFaceTB/SmolLM2-360M-Instruct": ("llama", 49152, 960, 2560, 32, 15, 5, True),
    "Qwen/Qwen2.5-0.5B-Instruct": ("qwen2", 151936, 896, 4864, 24, 14, 2, True),
    "meta-llama/Llama-3.2-1B-Instruct": ("llama", 128256, 2048, 8192, 16, 32, 8, True),
    "Qwen/Qwen2.5-1.5B-Instruct": ("qwen2", 151936, 1536, 8960, 28, 12, 2, True),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ("llama", 49152, 2048, 8192, 24, 32, 32, True),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B": ("qwen2", 151936, 1536, 8960, 28, 12, 2, False),
    "Qwen/Qwen2.5-3B-Instruct": ("qwen2", 151936, 2048, 11008, 36, 16, 2, True),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 128256, 3072, 8192, 28, 24, 8, True),
    "Qwen/Qwen2.5-7B-Instruct": ("qwen2", 152064, 3584, 18944, 28, 28, 4, False),
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B": ("qwen2", 152064, 3584, 18944, 28, 28, 4, False),
    "meta-llama/Llama-3.1-8B-Instruct": ("llama", 128256, 4096, 14336, 32, 32, 8, False),
    "Qwen/Qwen2.5-14B-Instruct": ("qwen2", 152064, 5120, 13824, 48, 40, 8, False),
    "Qwen/Qwen2.5-32B-Instruct": ("qwen2", 152064, 5120, 27648, 64, 40, 8, False),
    "meta-llama/Llama-3.1-70B-Instruct": ("llama", 128256, 8192, 28672, 80, 64, 8, False),
    "Qwen/Qwen2.5-72B-Instruct": ("qwen2", 152064, 8192, 29568, 80, 64, 8, False),
}

#: hub names of the models whose shape is known, smallest first
KNOWN_SHAPES = tuple(_SHAPES)


def known_shape(name: str) -> PreTrainedConfig | None:
    """The config of a well-known model, whatever the case of its letters; `None` for any other name.

    The owner may be left out, and `-Instruct` too, which changes no shape.

    Example:
        >>> from qpeft.models.shapes import known_shape
        >>> known_shape("qwen2.5-1.5b").hidden_size
        1536
    """
    from transformers import AutoConfig

    wanted = _plain(name)
    for known, shape in _SHAPES.items():
        if wanted in (_plain(known), _plain(known.split("/")[1])):
            values = dict(zip(_FIELDS, shape[1:], strict=True))
            return AutoConfig.for_model(shape[0], name_or_path=known, **values)
    return None


def _plain(name: str) -> str:
    return name.casefold().removesuffix("-instruct")
