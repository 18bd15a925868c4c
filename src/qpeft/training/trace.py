"""What one training step keeps, computes and moves, found by running it on tensors without numbers.

The model is built from its config on torch's meta device and cut to a few equal layers. Forward and backward pass run
through the real code with fake tensors, which know shape and precision alone, while every operation is watched: the
storages that live are added up, matrix products are counted in floating-point operations, all else in bytes. In the
number of tokens n and of layers L each of these is a plane,

    f(n, L) = a + b n + L (c + d n),

whose four coefficients come from four small runs. They are those of a batch with padding, which needs a mask and,
where heads share keys, a copy of the keys for each; a batch without keeps a few percent less. The head is left out:
its logits are computed in parts (:mod:`qpeft.training.labelled_loss`).
"""

from __future__ import annotations

import copy
import weakref
from dataclasses import dataclass, fields
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_LAYERS = (2, 3)  # of the first one less is kept, since nothing below it is trained


@dataclass(frozen=True)
class Step:
    """One forward and backward pass of the layers.

    Args:
        kept: Bytes that live between forward and backward pass.
        peak: The most bytes that live at once, the layers' weights left out.
        operations: Floating-point operations of matrix products.
        moved: Bytes written by everything else.
    """

    kept: float
    peak: float
    operations: float
    moved: float


@dataclass(frozen=True)
class Plane:
    """The cost of a step as a function of tokens and layers."""

    tokens: int
    corners: tuple[tuple[Step, Step], tuple[Step, Step]]  # [one or two sequences][two or three layers]

    def at(self, tokens: float, layers: int) -> Step:
        """The cost for so many tokens, in sequences as long as the traced one, and so many layers."""
        across = tokens / self.tokens - 1
        values = {}
        for name in (field.name for field in fields(Step)):
            (a, b), (c, d) = ([getattr(step, name) for step in row] for row in self.corners)
            one, two = a + (layers - _LAYERS[0]) * (b - a), c + (layers - _LAYERS[0]) * (d - c)
            values[name] = one + across * (two - one)
        return Step(**values)


def trace(config: Any, adapter: Any, dtype: torch.dtype, length: int, checkpointing: bool) -> Plane:
    """Watch steps of a causal language model with an adapter.

    Args:
        config: The model's config.
        adapter: The adapter's config; it is put on all layers.
        dtype: Precision of the base weights.
        length: Tokens of a sequence.
        checkpointing: Whether activations are computed again in the backward pass.
    """
    steps = [_watch(meta_model(_cut(config, n), _everywhere(adapter), dtype), length, checkpointing) for n in _LAYERS]
    return Plane(length, tuple(zip(*steps, strict=True)))  # type: ignore[arg-type]


def meta_model(config: Any, adapter: Any, dtype: torch.dtype) -> PeftModel:
    """A causal language model with an adapter on the meta device, which holds no numbers.

    Raises:
        ValueError: The adapter does not fit the model.
    """
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        base: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        base.tie_weights()
        return get_peft_model(base, copy.deepcopy(adapter)).train()


def _cut(config: Any, layers: int) -> Any:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return config


def _everywhere(adapter: Any) -> Any:
    adapter = copy.deepcopy(adapter)
    for name, nothing in (("layers_to_transform", None), ("n_classical_first", 0), ("n_classical_last", 0)):
        if hasattr(adapter, name):
            setattr(adapter, name, nothing)
    return adapter


def _watch(model: Any, length: int, checkpointing: bool) -> tuple[Step, Step]:
    """A step of one sequence and one of two; the model is used up."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        _pretend(model)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        return _step(model, 1, length), _step(model, 2, length)


def _step(model: Any, batch: int, length: int) -> Step:
    ids = torch.zeros(batch, length, dtype=torch.long)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:  # counted elsewhere, and in place as in every step but the first
        parameter.grad = torch.empty_like(parameter)
    known = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in trained)]
    with _Watch(known) as watch:
        hidden = model.get_base_model().base_model(input_ids=ids, use_cache=False).last_hidden_state
        kept = watch.live
        hidden.backward(torch.empty_like(hidden))
    return Step(kept, watch.peak, watch.operations, watch.moved)


def _pretend(model: nn.Module) -> None:
    """Put fake tensors on the processor, which take the processor's code paths, in place of meta ones."""
    known: dict[int, tuple[Tensor | None, Tensor | None]] = {id(None): (None, None)}  # the first keeps its id taken

    def fake(tensor: Tensor | None) -> Tensor | None:
        if tensor is not None and id(tensor) not in known:
            empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
            trained = tensor.requires_grad
            copy = nn.Parameter(empty, trained) if isinstance(tensor, nn.Parameter) else empty
            known[id(tensor)] = (tensor, copy)
        return known[id(tensor)][1]

    for module in model.modules():
        tables: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for table in tables:
            for name, tensor in table.items():
                table[name] = fake(tensor)


class _Watch(TorchDispatchMode):
    """Adds up what lives and what is done; `known` tensors are not counted."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.live = self.peak = self.operations = self.moved = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        made = function(*args, **kwargs)
        packet = function._overloadpacket
        if packet in flop_registry:
            self.operations += flop_registry[packet](*args, **kwargs, out_val=made)
        fresh = sum(self._see(tensor) for tensor in tree_leaves(made) if isinstance(tensor, Tensor))
        if packet not in flop_registry:
            self.moved += fresh
        return made

    def _see(self, tensor: Tensor) -> int:
        """Bytes of a new storage; 0 for one that is known."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return 0
        size = self._sizes[key] = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key)
        return size

    def _forget(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
