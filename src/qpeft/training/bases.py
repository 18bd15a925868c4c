"""Base models for runs: loaded anew for each, or kept for many runs of one process, one after the other.

A kept base serves the next run after its adapter was taken off again. Training must not change a frozen weight; so a
checksum of all of them is taken before the first run and compared after each, and a base that differs is loaded anew.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from qpeft.models import load_model, load_tokenizer
from qpeft.training.recipe import ModelSection

Say = Callable[[str], None]


class BaseModels:
    """Loads what a recipe's model section names.

    Args:
        keep: Whether the last base stays loaded; then :meth:`release` has to follow each use of it.

    Example:
        >>> from qpeft.training import train
        >>> bases = BaseModels(keep=True)
        >>> for recipe in recipes:  # doctest: +SKIP
        ...     train(recipe, bases=bases)
        ...     bases.release()
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep
        self._key: tuple[Any, ...] | None = None
        self._model: Any = None
        self._checksum = 0
        self._adapted: PeftModel | None = None
        self._tokenizers: dict[str, PreTrainedTokenizerBase] = {}

    def tokenizer(self, section: ModelSection, say: Say = lambda _: None) -> PreTrainedTokenizerBase:
        """The tokenizer of a base."""
        if not self.keep:
            return load_tokenizer(section.name, progress=say)
        if section.name not in self._tokenizers:
            self._tokenizers[section.name] = load_tokenizer(section.name, progress=say)
        return self._tokenizers[section.name]

    def model(self, section: ModelSection, device: str, say: Say = lambda _: None) -> Any:
        """The base, without an adapter. A kept one is in use until `release`."""
        if self.holds(section, device):
            return self._model
        labels = {"num_labels": section.num_labels} if section.task == "sequence-classification" else {}
        # a classifier's new head is drawn at random, and trained: nothing of it may stay for the next run
        key = None if labels else (section.model_dump_json(), device)
        self._model, self._key = None, None  # its memory goes before the next one comes
        model: Any = load_model(
            section.name, task=section.task, dtype=section.dtype, device=device, quantization=section.quantization,
            progress=say, **labels,
        )  # fmt: skip
        if self.keep and key is not None:
            self._model, self._key, self._checksum = model, key, checksum(model)
        return model

    def holds(self, section: ModelSection, device: str) -> bool:
        """Whether this base is loaded already."""
        return self._model is not None and self._key == (section.model_dump_json(), device)

    def lend(self, adapted: PeftModel) -> None:
        """Remember which adapter was put on the kept base."""
        self._adapted = adapted

    def release(self) -> None:
        """Take the adapter off the kept base again, so that the next run finds the base as it was loaded."""
        adapted, self._adapted = self._adapted, None
        if self._model is None:
            return
        if adapted is not None:
            adapted.unload()
            for left in ("peft_config", "peft_type"):  # peft warns of a second adapter where it finds them
                self._model.__dict__.pop(left, None)
        bare = not any(isinstance(module, BaseTunerLayer) for module in self._model.modules())
        if not bare or checksum(self._model) != self._checksum:
            self._model, self._key = None, None


def checksum(model: nn.Module) -> int:
    """The sum of the bits of all weights and buffers, read as integers: any changed weight changes it."""
    return sum(int(_bits(tensor).sum(dtype=torch.int64)) for tensor in [*model.parameters(), *model.buffers()])


def _bits(tensor: Tensor) -> Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return tensor.detach().contiguous().view(kinds[tensor.element_size()])
