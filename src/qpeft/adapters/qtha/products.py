"""The two matrix products of an adapter that every token passes through.

    compress   z   = x M^T                (..., in_features) -> (..., r)
    add        y'  = y + s u E            (..., r)           -> (..., out_features)

Plain operations would do. Written as two functions of autograd they cost less than LoRA's: the activation is kept for
the backward pass in its own 16 bit and not as a float32 copy, the scale and the sum are part of the matrix product,
and the gradient of ``y`` is passed on as it came. The products and the sum are taken in the adapter's dtype (under
autocast in autocast's) and rounded once to that of ``y``.
"""

from typing import Any

import torch
from torch import Tensor


def product_dtype(weight: Tensor) -> torch.dtype:
    """Dtype of the products with a parameter: its own, or autocast's where that is on."""
    kind = weight.device.type
    if not weight.is_meta and torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    return weight.dtype


def compress(x: Tensor, matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """``x M^T`` in a given dtype.

    Args:
        x: Activations, shape ``(..., in_features)``, of any floating dtype.
        matrix: ``M``, shape ``(r, in_features)``.
        dtype: Dtype of the product and of the result.

    Returns:
        Tensor of shape ``(..., r)``.
    """
    z: Tensor = _Compress.apply(x, matrix.to(dtype))
    return z


def add_expanded(y: Tensor, u: Tensor, matrix: Tensor, scaling: float) -> Tensor:
    """``y + s u E``, in the dtype of ``y``.

    Args:
        y: Output of the base layer, shape ``(..., out_features)``; not changed.
        u: Bottleneck, shape ``(..., r)``.
        matrix: ``E``, shape ``(r, out_features)``.
        scaling: ``s``.

    Returns:
        Tensor of the shape and dtype of ``y``; exactly ``y`` where ``E`` is zero.
    """
    total: Tensor = _AddExpanded.apply(y, u, matrix.to(u.dtype), scaling)
    return total


class _Compress(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor) -> Tensor:
        ctx.save_for_backward(x, matrix)
        z = _rows(x).to(matrix.dtype) @ matrix.t()  # (tokens, r)
        return z.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, matrix = ctx.saved_tensors
        gradient = _rows(gradient)  # (tokens, r)
        to_x = to_matrix = None
        if ctx.needs_input_grad[0]:
            to_x = (gradient @ matrix).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            to_matrix = gradient.t() @ _rows(x).to(matrix.dtype)  # (r, in_features)
        return to_x, to_matrix


class _AddExpanded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, u: Tensor, matrix: Tensor, scaling: float) -> Tensor:
        ctx.save_for_backward(u, matrix)
        ctx.scaling = scaling
        wide = torch.promote_types(y.dtype, u.dtype)
        total = _rows(y).to(wide, copy=True)
        total.addmm_(_rows(u).to(wide), matrix.to(wide), alpha=scaling)  # (tokens, out_features)
        return total.to(y.dtype).view(y.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        u, matrix = ctx.saved_tensors
        wide = torch.promote_types(gradient.dtype, u.dtype)
        rows = _rows(gradient).to(wide)  # (tokens, out_features)
        to_u = to_matrix = None
        if ctx.needs_input_grad[1]:
            to_u = (rows @ (matrix.to(wide) * ctx.scaling).t()).to(u.dtype).view(u.shape)
        if ctx.needs_input_grad[2]:
            to_matrix = ((_rows(u).to(wide) * ctx.scaling).t() @ rows).to(matrix.dtype)  # (r, out_features)
        return gradient, to_u, to_matrix, None


def _rows(tensor: Tensor) -> Tensor:
    """All tokens one after the other, ``(tokens, features)``."""
    return tensor.reshape(-1, tensor.shape[-1])
