"""Whether a run will fit into memory, asked before its base is loaded.

    need = weights + 16 bytes a trained number + max(kept activations + logits, most of a backward pass)

as :mod:`qpeft.training.footprint` estimates it for the largest batch, and what there is: :mod:`qpeft.training.memory`.
Estimates were 5 to 8 % below what was measured. So a run is refused only where the need is more than a tenth above
what there is, and told as tight where it is above it. What cannot be sized is left to show by itself.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc
import torch

from qpeft.errors import InputError
from qpeft.models.quantization import BYTES, quantized_weights
from qpeft.training import labelled_loss, ranks
from qpeft.training.footprint import Sizes, model_config, sizes_of
from qpeft.training.memory import available_bytes
from qpeft.training.recipe import Recipe
from qpeft.training.trace import meta_model

logger = logging.getLogger(__name__)

_MARGIN = 1.1


def check_memory(recipe: Recipe, train: Any, place: str, say: Callable[[str], None], loaded: bool = False) -> None:
    """Refuse a run that would not fit.

    Args:
        recipe: The run.
        train: The encoded training set; some batch holds its longest example and is padded to that length.
        place: Where the base goes, as `model.device` says it.
        say: Told, in a sentence, where it will be tight.
        loaded: Whether the base is in memory already.

    Raises:
        InputError: The run needs over a tenth more than there is.
    """
    device = "cuda" if place == "auto" and torch.cuda.is_available() else place.replace("auto", "cpu")
    if not recipe.training.memory_check or recipe.model.task != "causal-lm" or not device.startswith(("cpu", "cuda")):
        return
    if ranks.asks_for_shards():  # no process holds all of it
        return
    longest = pc.max(pc.list_value_length(train.data.column("input_ids"))).as_py()
    batch = min(recipe.training.per_device_train_batch_size, len(train))
    have = available_bytes(device)
    try:
        config = model_config(recipe.model.name)
        if _ceiling(config, batch * longest) * _sharers(device) <= have:
            return
        sizes = sizes_of(recipe, longest, config)
    except InputError:  # loading the model tells it better
        return
    except Exception as error:  # a trace runs foreign code on tensors without numbers, which some of it cannot do
        logger.info("the memory of %s cannot be estimated (%s)", recipe.model.name, error)
        return
    need = _need(sizes, batch, device, loaded)
    if need <= have:
        return
    told = f"the run needs about {need / 1e9:.2f} GB of memory, and {have / 1e9:.2f} GB are free on {device}"
    if need <= _MARGIN * have:
        say(f"{told}: this will be tight")
        return
    way = _way_out(recipe, sizes, batch, have, device, loaded)
    raise InputError(f"{told}; {way} (training.memory_check=false starts it all the same)")


def check_weights(name: str, adapter: Any, dtype: str, quantization: str | None = None) -> None:
    """Refuse a run whose weights alone would not fit into the main memory, where steps cannot be sized.

    Args:
        name: Base model.
        adapter: The adapter's config.
        dtype: Precision of the base, or `auto` for the stored one.
        quantization: Of the base.

    Raises:
        InputError: They need over a tenth more than there is.
    """
    try:
        config = model_config(name)
        stored = getattr(config, "dtype", None) or torch.float32
        exact = stored if dtype == "auto" else getattr(torch, dtype)
        model = meta_model(config, adapter, exact)
    except InputError:  # loading the model tells it better
        return
    except Exception as error:  # foreign code on tensors without numbers
        logger.info("the memory of %s cannot be estimated (%s)", name, error)
        return
    frozen = float(sum(part.numel() * part.element_size() for part in model.parameters() if not part.requires_grad))
    if quantization is not None:
        frozen += sum(quantized_weights(model)) * (BYTES[quantization] - exact.itemsize)
    trained = 16 * sum(part.numel() for part in model.parameters() if part.requires_grad)
    need, have = frozen + _sharers("cpu") * trained, available_bytes("cpu")
    if need > _MARGIN * have:
        raise InputError(
            f"the weights alone need about {need / 1e9:.2f} GB of memory, and {have / 1e9:.2f} GB are free: take a "
            "smaller model, another dtype, or a machine with more memory"
        )


def _ceiling(config: Any, tokens: int) -> float:
    """Bytes that a step stays below, by a wide margin, without the seconds that a trace takes; else infinity."""
    text = config.get_text_config()
    width, inner = text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    if any("expert" in key for key in text.to_dict()):
        return float("inf")
    # all in float32, twice; a layer keeps its inputs, queries, keys, values, scores of attention and gates
    weights = text.num_hidden_layers * (4 * width**2 + 3 * width * inner) + 2 * text.vocab_size * width
    activations = tokens * text.num_hidden_layers * (16 * width + 8 * inner)
    return 8.0 * (weights + activations + min(tokens * text.vocab_size, 2 * labelled_loss.LOGITS + text.vocab_size))


def _need(sizes: Sizes, batch: int, device: str, loaded: bool) -> float:
    """Bytes that all processes on this machine, or the one on this GPU, have to come by."""
    part = sizes.footprint(batch * sizes.length)
    own = part.peak - part.libraries - part.weights
    return (0.0 if loaded else part.weights) + _sharers(device) * own


def _way_out(recipe: Recipe, sizes: Sizes, batch: int, have: float, device: str, loaded: bool) -> str:
    """What would fit, by the same estimate."""
    section, length = recipe.training, sizes.length
    own = (have - (0.0 if loaded else sizes.weights)) / _sharers(device)
    tokens = sizes.most_tokens(sizes.libraries + sizes.weights + own)
    ways = []
    if tokens >= length:
        ways.append(f"training.per_device_train_batch_size={tokens // length}")
    if tokens >= 8 * batch:
        ways.append(f"data.max_length={tokens // batch}")
    if not section.gradient_checkpointing:
        changed = section.model_copy(update={"gradient_checkpointing": True})
        saving = recipe.model_copy(update={"training": changed})
        if _need(sizes_of(saving, length), batch, device, loaded) <= have:
            ways.append("training.gradient_checkpointing=true")
    if not ways:
        return "not one example fits: take a smaller model, or a machine with more memory"
    return f"what would fit: {', or '.join(ways)}"


def _sharers(device: str) -> int:
    """Processes that take their own part of this memory; they map their weights from one file, and share those."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if ranks.world_size() > 1 and device == "cpu" else 1
