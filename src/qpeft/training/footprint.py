"""Memory and time of a training run, told from its recipe and the model's config alone.

    peak = libraries + weights + 16 bytes a trained number + max(kept activations + logits, most of a backward pass)

A trained number is held in float32 with its gradient and AdamW's two moments. What activations take comes from a trace
(:mod:`qpeft.training.trace`); logits are computed in parts (:mod:`qpeft.training.labelled_loss`). Time is the trace's
count of operations and bytes, divided by rates that are measured here within a second.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import psutil
import torch

from qpeft.errors import InputError
from qpeft.models.empty import model_config
from qpeft.models.quantization import BYTES, quantized_weights
from qpeft.training import labelled_loss
from qpeft.training.amounts import bytes_of
from qpeft.training.parameters import parameter_table
from qpeft.training.recipe import Recipe
from qpeft.training.trace import Plane, meta_model, trace

#: of a logit while the loss is computed: 4 in float32, twice 2 in the head's precision, and what the library of matrix
#: products takes besides, which grows with the model: 2 lies between what small and large ones were measured to need
_LOGIT_BYTES = 10

#: memory of well-known accelerators, in bytes
DEVICES = {
    "t4": 16e9, "l4": 24e9, "a10": 24e9, "rtx-3090": 24e9, "rtx-4090": 24e9, "rtx-5090": 32e9, "l40s": 48e9,
    "a100-40gb": 40e9, "a100": 80e9, "h100": 80e9, "h200": 141e9,
}  # fmt: skip


@dataclass(frozen=True)
class Footprint:
    """Bytes of a training process at its peak, by what they are for; they sum to `peak`."""

    libraries: float
    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def peak(self) -> float:
        return sum(vars(self).values())


class Sizes:
    """What the memory and work of a causal language model with an adapter depend on.

    Args:
        config: The model's config.
        adapter: The adapter's config.
        dtype: Precision of the base weights.
        length: Tokens of a sequence.
        checkpointing: Whether activations are computed again in the backward pass.
        libraries: Bytes of the process before a model is loaded; by default what this process holds now.
        quantization: Of the base: ``"8bit"``, ``"4bit"`` or ``None``.

    Raises:
        InputError: The adapter does not fit the model.
    """

    def __init__(
        self,
        config: Any,
        adapter: Any,
        dtype: torch.dtype,
        length: int,
        checkpointing: bool,
        libraries: float | None = None,
        quantization: str | None = None,
    ) -> None:
        self.libraries = float(psutil.Process().memory_info().rss) if libraries is None else libraries
        try:
            model = meta_model(config, adapter, dtype)
            self.parameters = parameter_table(model)
            self.plane: Plane = trace(config, adapter, dtype, length, checkpointing)
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError, NotImplementedError) as error:
            raise InputError(
                f"the adapter does not fit {config.name_or_path or config.model_type}: {error}"
            ) from error
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        self.base_parameters = sum(parameter.numel() for parameter in frozen)
        self.weights = float(sum(parameter.numel() * parameter.element_size() for parameter in frozen))
        self.unpacked = 0.0
        if quantization is not None:
            matrices = quantized_weights(model)
            self.weights += sum(matrices) * (BYTES[quantization] - dtype.itemsize)
            self.unpacked = float(max(matrices) * dtype.itemsize)  # the one in use
        text = config.get_text_config()
        self.layers, self.vocabulary, self.width = text.num_hidden_layers, text.vocab_size, text.hidden_size
        self.length, self.item = length, dtype.itemsize

    def footprint(self, tokens: int) -> Footprint:
        """The memory of a step on so many tokens, all of which may be labelled."""
        step = self.plane.at(tokens, self.layers)
        trained = 4.0 * self.parameters["total"]
        states = 3 * self.item * tokens * self.width  # the last layer's output, its labelled rows and their gradient
        logits = _LOGIT_BYTES * min(tokens * self.vocabulary, max(labelled_loss.LOGITS, self.vocabulary)) + states
        return Footprint(
            libraries=self.libraries,
            weights=self.weights,
            adapter=trained,
            gradients=trained,
            optimizer=2 * trained,
            activations=max(step.kept, step.peak - logits) + self.unpacked,
            logits=logits,
        )

    def most_tokens(self, memory: float) -> int:
        """The most tokens of a step that fits into so many bytes; 0 where not one does."""
        if self.footprint(1).peak > memory:
            return 0
        low, high = 1, 2
        while self.footprint(high).peak <= memory and high < 2**40:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.footprint(middle).peak <= memory else (low, middle)
        return low

    def seconds(self, tokens: int, labelled: int, speed: Speed) -> float:
        """Time of forward and backward pass."""
        step = self.plane.at(tokens, self.layers)
        head = 4.0 * labelled * self.vocabulary * self.width
        moved = step.moved + _LOGIT_BYTES * labelled * self.vocabulary
        return (step.operations + head) / speed.operations + moved / speed.bytes


@dataclass(frozen=True)
class Speed:
    """Rates of this machine: floating-point operations of matrix products, and bytes written by all else, a second."""

    operations: float
    bytes: float


@lru_cache
def measure_speed(dtype: torch.dtype, tokens: int, width: int, inner: int, seconds: float = 0.3) -> Speed:
    """Time products and elementwise operations of a model's own shape and precision, with torch's threads.

    Args:
        dtype: Precision.
        tokens: Tokens of a step; at most 1024 are used.
        width: The model's width.
        inner: Width of its feed-forward layers.
        seconds: How long each of the two is repeated.
    """
    rows = max(1, min(tokens, 1024))
    x, w = torch.ones(rows, width, dtype=dtype), torch.ones(inner, width, dtype=dtype)

    def both() -> None:
        y = torch.nn.functional.linear(x, w)  # (rows, inner), as in the forward pass
        y @ w  # (rows, width), as in the backward pass

    y = torch.ones(rows, inner, dtype=dtype)

    def gate() -> None:
        torch.nn.functional.silu(y).mul(y)

    return Speed(4.0 * rows * width * inner * _rate(both, seconds), 2.0 * y.nbytes * _rate(gate, seconds))


def _rate(work: Any, seconds: float) -> float:
    """Calls a second; the best of several, since whatever else runs only makes it slower."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while True:
        start = time.perf_counter()
        work()
        now = time.perf_counter()
        best = min(best, now - start)
        if now > end:
            return 1 / best


def sizes_of(recipe: Recipe, length: int, config: Any = None) -> Sizes:
    """The sizes of a recipe's model and adapter, or of another model's with that adapter.

    Raises:
        InputError: The adapter does not fit.
    """
    config = config or model_config(recipe.model.name)
    stored = getattr(config, "dtype", None) or torch.float32
    dtype = stored if recipe.model.dtype == "auto" else getattr(torch, recipe.model.dtype)
    adapter = recipe.adapter.build()
    adapter.task_type = "CAUSAL_LM"
    checkpointing, quantization = recipe.training.gradient_checkpointing, recipe.model.quantization
    return Sizes(config, adapter, dtype, length, checkpointing, quantization=quantization)


def parse_memory(text: str) -> float:
    """Bytes of an amount such as `8GB`, `7.5GiB`, or of a device such as `a100`.

    Raises:
        InputError: It is neither.

    Example:
        >>> from qpeft.training.footprint import parse_memory
        >>> parse_memory("8GB")
        8000000000.0
    """
    plain = text.strip().lower()
    if plain in DEVICES:
        return DEVICES[plain]
    amount = bytes_of(plain)
    if amount is not None:
        return amount
    raise InputError(f"memory must be an amount such as 8GB or one of {', '.join(DEVICES)} (got '{text}')")
