"""What the adapters see while a model is trained: a small sample of tokens, kept at the bottleneck.

Hooks on the leaves of every adapted layer copy the bottleneck z and what enters and leaves the circuit, for tokens
spread evenly over a batch: three (tokens, r) tensors a layer, whatever the width of the model. The outputs of the
circuit are those of the training step itself, so that nothing runs twice where circuits cost money. Nothing is drawn
at random and nothing is returned to the model, which computes the same numbers with the hooks and without them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from qpeft.adapters.qtha import QTHALayer
from qpeft.qpu.tokens import real_rows


@dataclass
class AdaptedModule:
    """One adapter on one linear layer, with what has been kept of its activations.

    Attributes:
        layer: The adapted layer.
        adapter: Name of the adapter.
        group: Name of the decoder layer it belongs to.
    """

    layer: QTHALayer | LoraLayer
    adapter: str
    group: str
    _rows: Tensor | None = None
    _taken: int = -1
    _kept: dict[str, list[Tensor]] = field(default_factory=dict)

    @property
    def branch(self) -> nn.Module | None:
        """The leaf of the non-linear branch: a circuit, or the network that stands in for it."""
        if isinstance(self.layer, LoraLayer):
            return None
        for leaves in (self.layer.qtha_circuit, self.layer.qtha_classical):
            if self.adapter in leaves:
                return leaves[self.adapter]
        return None

    def kept(self, name: str) -> Tensor | None:
        """``(tokens, width)`` of ``"bottleneck"``, ``"branch input"`` or ``"branch output"``, if any was kept."""
        return torch.cat(self._kept[name]) if name in self._kept else None


class TokenSample:
    """Hooks that keep tokens of a training step; :meth:`remove` takes them off.

    Args:
        model: The model that is trained.
        modules: Its adapted modules; those with a non-linear branch are sampled.
        tokens: Tokens to keep of each micro-batch.
    """

    def __init__(self, model: nn.Module, modules: list[AdaptedModule], tokens: int) -> None:
        self._tokens = tokens
        self._mask: Tensor | None = None
        self._micro_batch = 0
        roots = [module for module in model.modules() if module is model or isinstance(module, PreTrainedModel)]
        self._handles = [root.register_forward_pre_hook(self._see_mask, with_kwargs=True) for root in roots]
        for module in modules:
            if module.branch is not None:
                assert isinstance(module.layer, QTHALayer)
                self._handles += [
                    module.layer.encoder(module.adapter).register_forward_hook(self._after_encoder(module)),
                    module.branch.register_forward_hook(_after_branch(module)),
                ]

    def next_micro_batch(self) -> None:
        """Tell that a forward and backward pass are over."""
        self._micro_batch += 1

    def remove(self) -> None:
        """Take the hooks off; a second time does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _see_mask(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if "attention_mask" in kwargs:
            mask = kwargs["attention_mask"]
            # Inner models may get masks of another kind, made from the one that was kept.
            if mask is None or (isinstance(mask, Tensor) and mask.dim() == 2):
                self._mask = mask

    def _after_encoder(self, module: AdaptedModule) -> Any:
        def keep(leaf: nn.Module, inputs: tuple[Tensor, ...], bottleneck: Tensor) -> None:
            module._rows = None
            # Not what is generated or scored on the way, and a checkpointed layer that runs a second time only once.
            if not (leaf.training and torch.is_grad_enabled()) or module._taken == self._micro_batch:
                return
            sequences = bottleneck.detach()
            sequences = (
                sequences.flatten(0, -3) if sequences.dim() > 2 else sequences.reshape(1, -1, bottleneck.shape[-1])
            )
            real, _ = real_rows(sequences, self._mask)
            places = real.flatten().nonzero()[:, 0]
            if len(places):
                spread = torch.linspace(0, len(places) - 1, min(self._tokens, len(places)))
                module._rows = places[spread.long().to(places.device)]
                module._taken = self._micro_batch
                _append(module, "bottleneck", bottleneck)

        return keep


def _after_branch(module: AdaptedModule) -> Any:
    def keep(leaf: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        if module._rows is not None:
            _append(module, "branch input", inputs[0])
            _append(module, "branch output", outputs)
            module._rows = None

    return keep


def _append(module: AdaptedModule, name: str, values: Tensor) -> None:
    flat = values.detach().reshape(-1, values.shape[-1])
    module._kept.setdefault(name, []).append(flat[module._rows].float())


def adapted_modules(model: nn.Module) -> list[AdaptedModule]:
    """The active adapters of a model that can be measured: QTHA, and LoRA on linear layers."""
    found: list[AdaptedModule] = []
    for name, layer in model.named_modules():
        if isinstance(layer, QTHALayer):
            adapters = [adapter for adapter in layer.active_adapters if adapter in layer.qtha_encoder]
        elif isinstance(layer, LoraLayer):
            adapters = [
                adapter
                for adapter in layer.active_adapters
                if adapter in layer.lora_A and isinstance(layer.lora_A[adapter], nn.Linear)
            ]
        else:
            continue
        found += [AdaptedModule(layer, adapter, _decoder_layer(name)) for adapter in adapters]
    return found


def _decoder_layer(name: str) -> str:
    """``"model.layers.7"`` of ``"base_model.model.model.layers.7.self_attn.q_proj"``; the name itself elsewhere."""
    match = re.match(r"(.*?\.\d+)\.", name)
    return match.group(1) if match else name
