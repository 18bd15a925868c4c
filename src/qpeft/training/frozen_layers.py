"""The decoder layers below the first adapted one, run alone or left out.

A decoder is a chain h_{i+1} = layer_i(h_i). Where layers 0 to k - 1 and all that runs before them hold no trainable
number and draw no random one, h_k is a function of the tokens alone, and

    model(tokens) = upper(h_k, tokens),    upper = layers k, k + 1, ... and what follows them.

Either part is the model's own forward pass with the other part's layers replaced, for the time of one call, by a
stand-in that hands on what it is given. Masks, positions and whatever else a family does around its layers are thereby
its own. That a family is such a chain is not told by its name but tried, on a few tokens and without adapters.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel

#: lengths of the two token rows on which a model is tried
_TRIED = (12, 7)


class NotConstantError(Exception):
    """There are no layers whose outputs stay the same during training; says why in half a sentence."""


class _StandIn(nn.Module):
    """Takes a decoder layer's place: hands on the hidden states, or gives others, and remembers them."""

    def __init__(self, layer: nn.Module, in_tuple: bool, given: Tensor | None = None) -> None:
        super().__init__()
        self.layer = (layer,)  # in a tuple, so that it is no child of this module
        self.in_tuple = in_tuple
        self.given = given
        self.seen: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # some families ask a layer for the kind of its attention
            return getattr(self.__dict__["layer"][0], name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        if self.given is not None:
            # what checkpoints its layers wants states that require a gradient, to enter the first of them
            hidden_states = self.given.requires_grad_(hidden_states.requires_grad)
        self.seen = hidden_states
        return (hidden_states,) if self.in_tuple else hidden_states


@dataclass(frozen=True)
class FrozenLayers:
    """Layers 0 to `count` - 1 of a decoder, which training does not change.

    Attributes:
        inner: The backbone, from tokens to the last hidden states.
        layers: All its decoder layers.
        count: How many of them, from the first on, are constant: k in the module's text.
        in_tuple: Whether layers return their hidden states in a tuple.
        constant: Names in `inner` of the modules that run before layer k.
    """

    inner: Any
    layers: nn.ModuleList
    count: int
    in_tuple: bool
    constant: frozenset[str]

    @contextmanager
    def given(self, states: Tensor) -> Iterator[None]:
        """Within the block, the backbone starts at layer k with these states `(batch, length, width)`."""
        stand_ins = [_StandIn(layer, self.in_tuple) for layer in self.layers[: self.count]]
        stand_ins[-1].given = states
        with self._replaced(dict(enumerate(stand_ins))):
            yield

    @contextmanager
    def alone(self) -> Iterator[_StandIn]:
        """Within the block, the backbone ends before layer k: the stand-in that is yielded has `seen` its states."""
        above = range(self.count, len(self.layers))
        stand_ins = {index: _StandIn(self.layers[index], self.in_tuple) for index in above}
        with self._replaced(stand_ins):
            yield stand_ins[self.count]

    def states(self, ids: Tensor, forward: Any = None) -> Tensor:
        """The hidden states that enter layer k for one sample without padding.

        Args:
            ids: Token ids `(length,)`, on the model's device.
            forward: The backbone's forward function, if not that of calling it.

        Returns:
            `(length, width)`, without a gradient.
        """
        row = ids[None]  # (1, length)
        with torch.no_grad(), self.alone() as first_above:
            (forward or self.inner)(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False)
        if first_above.seen is None:
            raise NotConstantError("the backbone does not call its layers one after another")
        return first_above.seen[0].detach()

    @contextmanager
    def _replaced(self, stand_ins: dict[int, _StandIn]) -> Iterator[None]:
        kept = {index: self.layers[index] for index in stand_ins}
        try:
            for index, stand_in in stand_ins.items():
                self.layers[index] = stand_in
            yield
        finally:
            for index, layer in kept.items():
                self.layers[index] = layer


def padded(states: list[Tensor], length: int) -> Tensor:
    """Samples `(n_i, width)` as a batch `(batch, length, width)`; each one's last state fills what is left.

    What stands in padding changes nothing that counts; a state of the sample keeps adapters in their usual range.
    """
    batch = states[0].new_empty(len(states), length, states[0].shape[-1])  # (batch, length, width)
    for row, state in zip(batch, states, strict=True):
        row[: len(state)] = state
        row[len(state) :] = state[-1]
    return batch


def frozen_layers(model: nn.Module) -> FrozenLayers:
    """Find the constant layers of a model with its adapters, and try it without them.

    Raises:
        NotConstantError: There are none, or the model is no plain chain of layers.
    """
    if isinstance(model, PeftModel) and model.active_peft_config.is_prompt_learning:
        raise NotConstantError("the adapter changes the prompt, which is below all layers")
    whole: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    inner, layers = _backbone(whole)
    config = inner.config.get_text_config()
    if getattr(config, "output_router_logits", False):
        raise NotConstantError("the loss takes part of its value from the routers of all layers")
    if any(tensor.is_meta for tensor in inner.parameters()):
        raise NotConstantError("some weights are not in memory")
    count = next((index for index, layer in enumerate(layers) if _is_adapted(layer)), len(layers))
    if count == 0:
        raise NotConstantError("the first decoder layer is adapted already")
    if count == len(layers):
        raise NotConstantError("no decoder layer is adapted")
    vocabulary = config.vocab_size
    draw = torch.Generator().manual_seed(0)
    device = next(inner.parameters()).device
    rows = [torch.randint(0, vocabulary, (length,), generator=draw).to(device) for length in _TRIED]
    with _as_it_was(model), torch.no_grad():
        try:
            return _tried(inner, layers, count, rows)
        except NotConstantError:
            raise
        except Exception as error:  # the code of any family: whatever it makes of parts of itself, the whole runs
            raise NotConstantError(f"the model cannot be run in parts: {type(error).__name__}: {error}") from error


def _backbone(whole: Any) -> tuple[Any, nn.ModuleList]:
    """The smallest part of a model that takes tokens, and its decoder layers."""
    length = whole.config.get_text_config().num_hidden_layers
    lists = [part for part in whole.modules() if isinstance(part, nn.ModuleList) and len(part) == length]
    if not lists:
        raise NotConstantError("the model has no list of decoder layers")
    needed = [lists[0], whole.get_input_embeddings()]
    models = [part for part in whole.modules() if isinstance(part, PreTrainedModel)]
    holding = [model for model in models if all(any(part is m for m in model.modules()) for part in needed)]
    return holding[-1], lists[0]  # parts come after what holds them


def _is_adapted(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters()) or any(
        isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper) for part in module.modules()
    )


def _tried(inner: Any, layers: nn.ModuleList, count: int, rows: list[Tensor]) -> FrozenLayers:
    """The frozen layers, after the parts were found to give what the whole gives."""
    names, in_tuple, entering, expected = _observed(inner, layers, count, rows[0])
    above = {id(part) for layer in layers[count:] for part in layer.modules()}
    containers = {name for name, part in inner.named_modules() if any(id(m) in above for m in part.modules())}
    for name in sorted(names):
        part = inner.get_submodule(name)
        if name not in containers and _is_adapted(part):
            raise NotConstantError(f"{name}, below the adapted layers, is trained")
        if any(parameter.requires_grad for parameter in part.parameters(recurse=False)):
            raise NotConstantError(f"a parameter of {name or 'the backbone'} is trained")
        rate = _dropout(part)
        if rate:
            raise NotConstantError(f"{name or 'the backbone'} has a dropout of {rate}, which changes what it gives")
    frozen = FrozenLayers(inner, layers, count, in_tuple, frozenset(names - containers))

    states = [frozen.states(row) for row in rows]
    inner.train()
    again = frozen.states(rows[0])
    inner.eval()
    _same(states[0], entering, exact=True)
    _same(again, entering, exact=True)
    with frozen.given(padded(states[:1], len(rows[0]))):
        _same(_last(inner, rows[0][None], torch.ones_like(rows[0][None])), expected, exact=True)
    length = len(rows[0])
    mask = torch.stack([(torch.arange(length) < len(row)).long() for row in rows]).to(rows[0].device)  # (2, length)
    ids = torch.stack([nn.functional.pad(row, (0, length - len(row))) for row in rows])  # (2, length)
    together = _last(inner, ids, mask)  # (2, length, width)
    with frozen.given(padded(states, length)):
        upper = _last(inner, ids, mask)
    _same(upper[mask.bool()], together[mask.bool()], exact=False)
    return frozen


def _observed(
    inner: Any, layers: nn.ModuleList, count: int, row: Tensor
) -> tuple[frozenset[str], bool, Tensor, Tensor]:
    """What runs before layer `count`, whether layers return tuples, the states that enter it, the last states."""
    before: list[str] = []
    entering: list[Tensor] = []
    outputs: list[Any] = []
    names = inspect.signature(layers[count].forward).parameters
    first = next(iter(names))

    def note(name: str) -> Any:
        return lambda module, args: None if entering else before.append(name)

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entering.append(args[0] if args else kwargs[first])

    hooks = [layers[count].register_forward_pre_hook(enter, with_kwargs=True, prepend=True)]
    hooks += [part.register_forward_pre_hook(note(name)) for name, part in inner.named_modules()]
    hooks += [layers[count - 1].register_forward_hook(lambda module, args, output: outputs.append(output))]
    try:
        last = _last(inner, row[None], torch.ones_like(row[None]))
    finally:
        for hook in hooks:
            hook.remove()
    if len(entering) != 1:
        raise NotConstantError("the backbone does not call each of its layers once")
    return frozenset(before), isinstance(outputs[0], tuple), entering[0][0], last


def _last(inner: Any, ids: Tensor, mask: Tensor) -> Tensor:
    return inner(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state


def _same(found: Tensor, expected: Tensor, exact: bool) -> None:
    """Equal up to the last bits; where shapes of batches differed, up to rounding through all layers."""
    eps = torch.finfo(expected.dtype).eps
    found, expected = found.double(), expected.double()
    if found.shape != expected.shape or not (
        (found - expected).norm() <= (4 * eps if exact else eps**0.5) * expected.norm()
    ):
        raise NotConstantError("the model's layers do more than hand on their hidden states")


def _dropout(module: nn.Module) -> float:
    """The rate at which a module, by itself, drops something while training."""
    rates = [float(value) for name, value in vars(module).items() if "drop" in name and type(value) in (int, float)]
    if isinstance(module, nn.modules.dropout._DropoutNd):
        rates.append(module.p)
    return max(rates, default=0.0)


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without adapters; modes, what is trained, and random states are put back."""
    modes = [(module, module.training) for module in model.modules()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    devices = {parameter.device for parameter, _ in trained if parameter.device.type == "cuda"}
    without_adapters = model.disable_adapter() if isinstance(model, PeftModel) else nullcontext()
    try:
        with torch.random.fork_rng(devices=list(devices)), without_adapters:
            model.eval()
            yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, flag in trained:  # peft asks for gradients of all adapters when it turns them on again
            parameter.requires_grad_(flag)
