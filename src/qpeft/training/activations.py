"""Activations below the adapted layers, computed once per sample and kept on disk.

Where the lowest adapted decoder layer is layer k, the hidden states h_k(tokens) that enter it never change during
training: a step needs the layers from k on alone, forward and backward. Each sample's h_k is computed by itself,
without padding, in the base's precision, whenever it is first met, and read from a file later; validation uses it too.

Exactness: h_k is the model's own output, but for a sample alone, where a step without the cache computes a padded
batch; matrix products of other shapes may round differently in the last bits. Samples that find no room on the disk
are computed alone as well, so the numbers of a run depend neither on the bound nor on what was cached before.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from qpeft.training import ranks
from qpeft.training.activation_store import ActivationStore
from qpeft.training.frozen_layers import FrozenLayers, NotConstantError, frozen_layers, padded

Say = Callable[[str], None]

#: arguments of a forward pass beside which, all others being absent, the states are a function of the tokens alone
_KNOWN = frozenset({"input_ids", "attention_mask", "use_cache", "return_dict", "num_items_in_batch"})


@dataclass
class ActivationCache:
    """What the forward passes of a model take from the disk; counts samples, one at each time it is met.

    Attributes:
        frozen: The layers that are left out.
        store: Where states are kept.
        read: Samples whose states came from the disk.
        computed: Samples whose states were computed.
        unkept: Of these, how many found no place on the disk.
        whole: Forward passes that ran all layers, since the states do not depend on tokens alone (generation with
            keys and values kept, padding on the left, positions of their own).
    """

    frozen: FrozenLayers
    store: ActivationStore
    read: int = 0
    computed: int = 0
    unkept: int = 0
    whole: int = 0

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Within the block, the model's forward passes start at the first adapted layer wherever they may."""
        inner = self.frozen.inner
        own = vars(inner).get("forward")  # accelerate puts one on an instance too
        inner.__dict__["forward"] = self._around(inner.forward)
        try:
            yield
        finally:
            if own is None:
                del inner.__dict__["forward"]
            else:
                inner.__dict__["forward"] = own

    def _around(self, forward: Any) -> Any:
        names = list(inspect.signature(forward).parameters)

        @functools.wraps(forward)
        def upper(*args: Any, **kwargs: Any) -> Any:
            call = {**dict(zip(names, args, strict=False)), **kwargs}
            rows = self._rows(call)
            if rows is None:
                self.whole += 1
                return forward(*args, **kwargs)
            states = [self._state(row, forward) for row in rows]
            call["use_cache"] = False  # keys and values would be those of some layers only
            with self.frozen.given(padded(states, call["input_ids"].shape[1])):
                return forward(**call)

        return upper

    def _rows(self, call: dict[str, Any]) -> list[Tensor] | None:
        """The tokens `(length,)` of each sample of a call, or None if its states depend on something else too."""
        ids, mask = call.get("input_ids"), call.get("attention_mask")
        config = self.frozen.inner.config
        if (
            not isinstance(ids, Tensor)
            or torch.compiler.is_compiling()
            or call.get("use_cache") is True
            or any(value is not None and value is not False for name, value in call.items() if name not in _KNOWN)
            or getattr(config, "output_hidden_states", False)
            or getattr(config, "output_attentions", False)
        ):
            return None
        if mask is None:
            return list(ids)
        if mask.shape != ids.shape:
            return None
        lengths = mask.bool().sum(1)  # (batch,)
        places = torch.arange(ids.shape[1], device=mask.device)
        if (lengths == 0).any() or not torch.equal(mask.bool(), places < lengths[:, None]):
            return None
        return [row[:length] for row, length in zip(ids, lengths.tolist(), strict=True)]

    def _state(self, row: Tensor, forward: Any) -> Tensor:
        """The hidden states of one sample: `(length,)` -> `(length, width)`."""
        key = _key(row)
        state = self.store.get(key)
        if state is not None:
            self.read += 1
            return state.to(row.device)
        state = self.frozen.states(row, forward)
        self.computed += 1
        self.unkept += not self.store.put(key, state.cpu())
        return state


@contextmanager
def cached_activations(
    model: nn.Module, folder: str | Path, max_bytes: int | None, say: Say = lambda _: None
) -> Iterator[ActivationCache | None]:
    """Within the block, forward passes of a model skip the layers below the first adapted one.

    Values and gradients are those of the whole model up to rounding (the module's text says how far). Generation and
    saving see the whole model. Where there is nothing to cache (an adapter in the first layer, trained embeddings,
    dropout in the base, a family whose layers do more than hand on their hidden states, several processes), or the
    folder cannot be written, it says so and the block runs without a cache.

    Args:
        model: A model of transformers with adapters, or with some layers trained.
        folder: Where states are kept; stays behind. Runs and processes may share it, whatever their base and k: states
            are kept apart by a fingerprint of all that they depend on, and the bound is that of the whole folder.
        max_bytes: Disk space the folder may take; None: no cache.
        say: Receives a sentence about what is cached, and about what found no room.

    Yields:
        The cache with its counts, or None where there is none.

    Example:
        >>> from qpeft.training.activations import cached_activations
        >>> with cached_activations(model, "activations", 10**9, print) as cache:  # doctest: +SKIP
        ...     trainer.train()
        activations below layer 20 of 30 are computed once per sample (at most 1 GB in activations)
    """
    cache = None if max_bytes is None else _opened(model, Path(folder), max_bytes, say)
    if cache is None:
        yield None
        return
    try:
        with cache.installed():
            yield cache
    finally:
        if cache.unkept:
            say(
                f"{cache.unkept} of {cache.computed + cache.read} times, a sample's activations were computed and not "
                f"kept: {cache.store.closed}"
            )


def _opened(model: nn.Module, folder: Path, max_bytes: int, say: Say) -> ActivationCache | None:
    if ranks.world_size() > 1 or (next(model.parameters()).device.type == "cuda" and torch.cuda.device_count() > 1):
        say("activations are not cached: more than one process or GPU could be at work")
        return None
    try:
        frozen = frozen_layers(model)
    except NotConstantError as error:
        say(f"activations are not cached: {error}")
        return None
    try:
        store = ActivationStore(folder, _fingerprint(frozen), max_bytes)
    except OSError as error:
        say(f"activations are not cached: {folder} cannot be written ({error.strerror or error})")
        return None
    say(
        f"activations below layer {frozen.count} of {len(frozen.layers)} are computed once per sample "
        f"(at most {max_bytes / 1e9:g} GB in {folder})"
    )
    return ActivationCache(frozen, store)


def _key(row: Tensor) -> str:
    """Names a sample's states: its tokens, and the precision that autocast asks for."""
    kind = row.device.type
    cast = str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""
    digest = hashlib.blake2b(cast.encode(), digest_size=20)
    digest.update(row.cpu().long().numpy().tobytes())
    return digest.hexdigest()


def _fingerprint(frozen: FrozenLayers) -> str:
    """Names all that states depend on beside the tokens: weights, config, k, libraries, machine, threads."""
    config = frozen.inner.config.get_text_config()
    described = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
    device = next(frozen.inner.parameters()).device
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    about = [
        described, frozen.count, config._attn_implementation, device.type, machine, torch.get_num_threads(),
        torch.__version__, transformers.__version__,
    ]  # fmt: skip
    digest = hashlib.blake2b(json.dumps(about, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in frozen.inner.state_dict().items():
        if isinstance(tensor, Tensor) and _below(name, frozen.constant):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            for part in _plain(tensor):
                digest.update(part.contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


def _below(name: str, constant: frozenset[str]) -> bool:
    """Whether a tensor belongs to one of these modules (some kinds of weights have tensors below their own name)."""
    path = name
    while path:
        path = path.rpartition(".")[0]
        if path in constant:
            return True
    return False


def _plain(tensor: Tensor) -> Iterator[Tensor]:
    """The ordinary tensors that a quantised one is made of."""
    if type(tensor) in (Tensor, nn.Parameter) or not hasattr(tensor, "__tensor_flatten__"):
        yield tensor.detach()
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _plain(getattr(tensor, name))
