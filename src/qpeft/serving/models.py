"""Several adapters on one base: each is a model of its own to the outside, and all share the base's weights.

Each adapter gets its own tree of modules over the same tensors. So adapters of different methods, ranks and layers
stand side by side, which one peft model does not allow, and choosing one switches nothing: memory grows by the
adapters alone.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedTokenizerBase

from qpeft.data.formatting import Format
from qpeft.errors import InputError
from qpeft.evaluation.generation import end_ids
from qpeft.models import load_model, load_tokenizer
from qpeft.models.quantization import beside_parameters
from qpeft.training.target import Found, attach_adapter, find_target


@dataclass(frozen=True)
class ServedModel:
    """A model that can be asked for by name.

    Attributes:
        name: What clients call it.
        model: The base, alone or with an adapter; in evaluation mode.
        tokenizer: Of the base.
        method: What the adapter is, as `QTHA`; `None` for the base itself.
        base: The base's served name.
        format: How conversations become text; see `qpeft.data.formatting.render`.
        system: What a conversation without a system message begins with, as in training.
        created: Seconds since 1970.
    """

    name: str
    model: Any
    tokenizer: PreTrainedTokenizerBase
    method: str | None
    base: str
    format: Format = "auto"
    system: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def ends(self) -> list[int]:
        """Tokens that end an answer."""
        return end_ids(self.model, self.tokenizer, self.format)

    @property
    def window(self) -> int | None:
        """Most tokens of prompt and answer together; `None` where the model's config names no limit."""
        window = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return window if isinstance(window, int) else None

    @property
    def vocabulary(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)


def open_models(
    targets: Sequence[str],
    base: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, ServedModel]:
    """Open runs, adapters or one base model, all on the same base, which is served too.

    Args:
        targets: Run or adapter folders, or a base model; `name=folder` gives one another name than its folder's.
        base: Use this base instead of the one that the adapters name.
        dtype: Precision of the base; by default float32, which decodes fastest on a CPU. A base that the runs were
            trained on in 8 or 4 bits is held so again, and the rest of it by default in the precision of the training.
        device: As for `qpeft.models.load_model`.
        say: Receives one sentence a step.

    Returns:
        What is served by name: the adapters in the given order, then the base.

    Raises:
        InputError: Two have one name or different bases (or one base in 4 bits and one as it is), one is a
            classifier, or cannot be opened.
    """
    named = [named_target(target) for target in targets]
    if base is None:
        base = named[0][1].base
        for target, (_, place) in zip(targets, named, strict=True):
            if place.base != base:
                raise InputError(
                    f"{target} is based on {place.base} and {targets[0]} on {base}: serve them apart, or name one "
                    "base for all with --base"
                )
    adapters = [(name, place) for name, place in named if place.adapter is not None]
    found = dict(adapters)
    if len(found) < len(adapters):
        raise InputError("two of the runs have the same name: give one another, as other=path/to/run")
    for name, place in found.items():
        if place.num_labels is not None:
            raise InputError(f"{name} is a classifier, which writes no text: serve causal language models")
    base_name = _base_name(base)
    if base_name in found:
        raise InputError(f"{base_name} is also the name of the base: give the run another, as other=path/to/run")
    quantization, trained_dtype = _precision(found)
    if quantization is not None:
        say(f"the base is held in {quantization.replace('bit', ' bits')}, as in the training")
    model = load_model(base, dtype=dtype or trained_dtype, device=device, quantization=quantization, progress=say)
    tokenizer = load_tokenizer(base, progress=say)
    served: dict[str, ServedModel] = {}
    for name, place in found.items():
        assert place.adapter is not None
        say(f"attaching {name}")
        adapted = attach_adapter(share_weights(model), place.adapter, base).eval()
        method = getattr(adapted.active_peft_config.peft_type, "value", str(adapted.active_peft_config.peft_type))
        data = place.recipe.data if place.recipe else None
        format: Format = data.format if data else "auto"
        system = data.system if data else None
        served[name] = ServedModel(name, adapted, tokenizer, method, base_name, format, system)
    served[base_name] = ServedModel(base_name, model, tokenizer, None, base_name)
    return served


def share_weights(model: nn.Module) -> Any:
    """A second tree of modules over the very tensors of a model: layers put into the one are not in the other."""
    shared = [*model.parameters(), *model.buffers(), *beside_parameters(model)]
    return copy.deepcopy(model, memo={id(one): one for one in shared})


def _precision(found: Mapping[str, Found]) -> tuple[str | None, str]:
    """How the base is quantised, as all runs on it were trained, and the precision of the rest."""
    models = {name: place.recipe.model if place.recipe else None for name, place in found.items()}
    quantised = {name: (own.quantization, own.dtype) for name, own in models.items() if own and own.quantization}
    if not quantised:
        return None, "float32"
    if len(quantised) < len(found) or len(set(quantised.values())) > 1:
        held = ", ".join(f"{name}: {' and '.join(quantised.get(name) or ['not quantised'])}" for name in found)
        raise InputError(
            f"these adapters had bases of different precision in their training ({held}): serve them apart"
        )
    return next(iter(quantised.values()))


def named_target(target: str) -> tuple[str, Found]:
    """The name that `name=folder` gives, or else that of the folder or base, and what is there."""
    name, equals, place = target.partition("=")
    if equals and name and place and not Path(target).exists():
        return name, find_target(place)
    return Path(target).resolve().name, find_target(target)


def _base_name(base: str) -> str:
    """A hub name as it is; of a path the last part alone, which says nothing of the machine."""
    return Path(base).resolve().name if Path(base).exists() else base
