"""The parts of one adapter on one layer, each a leaf module with a single flat parameter called ``weight``.

    encoder    x (..., d_in)  -> z (..., r)               [MPO_A cores |] A
    circuit    z (..., r)     -> q (..., r)               angles; a :class:`qpeft.layer.QuantumLayer`
    classical  z (..., r)     -> q (..., r)               a network in its place, see ``branches.py``
    decoder    y, z, q        -> y + s dy (..., d_out)    [W_c |] [W_q |] B [| MPO_B cores]

Leaves with a ``weight`` are what peft's sharding policy wraps and what TRL copies into a reference model; parts of
their own let the angles take their own learning rate. ``layout`` documents the order inside the flat vector.

Encoder and decoder are linear with only ``r`` outputs or inputs, so the tensor networks are contracted with the r rows
of A (or columns of B) once a call, whatever the number of tokens, and the tokens see one small dense matrix, as in
LoRA.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpeft.adapters.qtha.products import add_expanded, compress, product_dtype
from qpeft.tensornet import MPO


class Slice(NamedTuple):
    """A named part of a flat parameter.

    Attributes:
        name: Name of the part, as in the equations.
        kind: ``"tensor_network"``, ``"linear"``, ``"angles"`` or ``"classical"``.
        shape: Shape of the part.
    """

    name: str
    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)


class FlatModule(nn.Module):
    """A leaf with one flat parameter, cut into named parts by ``layout``."""

    weight: nn.Parameter

    def __init__(self, layout: list[Slice]) -> None:
        super().__init__()
        self.layout = layout
        self._sizes = [part.size for part in layout]
        self.weight = nn.Parameter(torch.empty(sum(self._sizes)))
        self._memory: tuple[Tensor, Tensor] | None = None  # (numbers, what was computed from them)

    def parts(self) -> dict[str, Tensor]:
        """Views of the parameter by name, in float32 whatever the parameter is kept in."""
        pieces = self.weight.float().split(self._sizes)
        return {part.name: piece.view(part.shape) for part, piece in zip(self.layout, pieces, strict=True)}

    def _remember(self, compute: Callable[[], Tensor]) -> Tensor:
        """``compute()``, kept from the last call where nothing is differentiated and no number has changed.

        Decoding sends one token at a time through the layer, and the contraction would then be most of the work. The
        numbers themselves are compared, which is cheap, because loaders and sharding write past version counters; on
        an accelerator the comparison would make the host wait, so there it is computed anew.
        """
        weight = self.weight
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or weight.device.type != "cpu":
            return compute()
        if self._memory is None or self._memory[0].dtype != weight.dtype or not torch.equal(self._memory[0], weight):
            self._memory = (weight.detach().clone(), compute())
        return self._memory[1]

    def _own_parts(self) -> Iterator[tuple[str, Tensor]]:
        """Views that write through to the parameter, for the initialisation."""
        pieces = self.weight.data.split(self._sizes)
        for part, piece in zip(self.layout, pieces, strict=True):
            yield part.name, piece.view(part.shape)


def _full_precision(tensor: Tensor) -> AbstractContextManager:
    """Keep autocast away from the small contractions: their rounding would enter every token."""
    kind = tensor.device.type
    if tensor.is_meta or not torch.is_autocast_enabled(kind):
        return nullcontext()
    return torch.autocast(device_type=kind, enabled=False)


class Encoder(FlatModule):
    """Compression of an activation into the bottleneck, ``z = A MPO_A x`` (or ``A x``).

    Args:
        in_features: Width of the adapted layer's input.
        r: Width of the bottleneck.
        mpo: Operator from ``in_features`` to the inner width, or ``None``.
    """

    def __init__(self, in_features: int, r: int, mpo: MPO | None) -> None:
        inner = in_features if mpo is None else mpo.outputs.size
        layout = [] if mpo is None else [Slice("MPO_A", "tensor_network", (mpo.n_parameters,))]
        super().__init__([*layout, Slice("A", "linear", (r, inner))])
        self.mpo = mpo

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Kaiming normal cores, Kaiming uniform A."""
        for name, part in self._own_parts():
            if name == "MPO_A" and self.mpo is not None:
                self.mpo.initialize(part)
            else:
                nn.init.kaiming_uniform_(part)

    def matrix(self) -> Tensor:
        """The map as one matrix in float32, shape ``(r, in_features)``."""
        with _full_precision(self.weight):
            parts = self.parts()
            if self.mpo is None:
                return parts["A"]
            return self.mpo.apply_transposed(parts["MPO_A"], parts["A"])

    def forward(self, x: Tensor) -> Tensor:
        """Compress activations ``(..., in_features)`` to ``(..., r)``, in the parameter's dtype or autocast's."""
        matrix = self.matrix() if self.mpo is None else self._remember(self.matrix)
        return compress(x, matrix, product_dtype(self.weight))


class Decoder(FlatModule):
    """Fusion of the branches and expansion, ``dy = MPO_B B u`` with ``u = W_c z + W_q q`` (or without ``MPO_B``).

    Args:
        out_features: Width of the adapted layer's output.
        r: Width of the bottleneck.
        mpo: Operator from the inner width to ``out_features``, or ``None``.
        linear: Whether there is a linear branch ``W_c z``.
        branch: Whether there is a non-linear branch ``W_q q``.
        product: Whether the branches are multiplied instead of added.
    """

    def __init__(
        self, out_features: int, r: int, mpo: MPO | None, *, linear: bool, branch: bool, product: bool = False
    ) -> None:
        inner = out_features if mpo is None else mpo.inputs.size
        layout = [Slice("W_c", "linear", (r, r))] if linear else []
        layout += [Slice("W_q", "linear", (r, r))] if branch else []
        layout += [Slice("B", "linear", (inner, r))]
        layout += [] if mpo is None else [Slice("MPO_B", "tensor_network", (mpo.n_parameters,))]
        super().__init__(layout)
        self.mpo = mpo
        self.product = product

    @torch.no_grad()
    def reset_parameters(self, zero: bool = True) -> None:
        """Kaiming start with the last factor zero: the last core of MPO_B, or B where there is none."""
        for name, part in self._own_parts():
            if name == "MPO_B" and self.mpo is not None:
                self.mpo.initialize(part, last_core_zero=zero)
            elif name == "B" and self.mpo is None and zero:
                nn.init.zeros_(part)
            else:
                nn.init.kaiming_uniform_(part)

    def expansion(self) -> Tensor:
        """``MPO_B B`` as one matrix in float32, shape ``(out_features, r)``."""
        return self._expanding_rows(self.parts()).T

    def matrix(self) -> Tensor:
        """The map from the bottleneck through the linear branch alone, shape ``(out_features, r)``."""
        with _full_precision(self.weight):
            return self.expansion() @ self.parts()["W_c"]

    def forward(self, y: Tensor, z: Tensor, q: Tensor | None, scaling: float) -> Tensor:
        """Join ``z`` and ``q``, both ``(..., r)``, and add ``scaling * dy`` to ``y`` of shape ``(..., d_out)``."""
        dtype, parts = self.weight.dtype, self.parts()
        expansion = (
            self._expanding_rows(parts) if self.mpo is None else self._remember(partial(self._expanding_rows, parts))
        )
        if q is None:
            u = F.linear(z, parts["W_c"].to(dtype))
        else:
            u = F.linear(q.to(dtype), parts["W_q"].to(dtype))
            if "W_c" in parts:
                linear = F.linear(z, parts["W_c"].to(dtype))
                u = linear * u if self.product else linear + u
        return add_expanded(y, u, expansion, scaling)

    def _expanding_rows(self, parts: dict[str, Tensor]) -> Tensor:
        """``(MPO_B B)^T`` in float32, shape ``(r, out_features)``."""
        if self.mpo is None:
            return parts["B"].t()
        with _full_precision(self.weight):
            return self.mpo.apply(parts["MPO_B"], parts["B"].t())
