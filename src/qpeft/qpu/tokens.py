"""Which tokens' circuits go to the chip; the others stay on the simulator.

==============  ============================================================================================
``"all"``       every token
``"last"``      the last token of each sequence: the one that the next is predicted from
``"every k"``   tokens k, 2k, 3k, ... of each sequence, counted on from call to call while text is generated
``"pooled"``    one circuit a sequence, of the mean of its tokens' inputs; all its tokens get that result
==============  ============================================================================================

Padding never goes to the chip: rows that the attention mask leaves out, and rows with an angle that is not finite. A
pooled circuit reads later tokens too, so it suits classifiers and not the training of causal language models; while
text is generated token by token, a call pools its own tokens alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from qpeft.errors import InputError

Mode = Literal["all", "last", "every", "pooled"]


@dataclass(frozen=True)
class Tokens:
    """A choice of tokens.

    Args:
        mode: See the module.
        step: k of ``"every"``.
    """

    mode: Mode = "all"
    step: int = 1

    @classmethod
    def parse(cls, text: str | Tokens) -> Tokens:
        """Read ``"all"``, ``"last"``, ``"every 4"`` or ``"pooled"``.

        Raises:
            InputError: Anything else.

        Example:
            >>> Tokens.parse("every 4")
            Tokens(mode='every', step=4)
        """
        if isinstance(text, Tokens):
            return text
        words = str(text).lower().strip()
        if words == "all":
            return cls("all")
        if words == "last":
            return cls("last")
        if words == "pooled":
            return cls("pooled")
        match = re.fullmatch(r"every\s+([1-9]\d{0,8})", words, re.ASCII)
        if match is None:
            raise InputError(f"tokens must be 'all', 'last', 'every k' (as 'every 4') or 'pooled' (got {text!r}).")
        return cls("every", int(match[1]))

    def __str__(self) -> str:
        return f"every {self.step}" if self.mode == "every" else self.mode


def real_rows(inputs: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Which rows hold a token, and how many tokens of each sequence came in earlier calls.

    Args:
        inputs: ``(batch, sequence, n)``.
        mask: Attention mask ``(batch, total)`` whose last columns belong to these inputs, or ``None``. A mask of
            another batch is left alone.

    Returns:
        ``(batch, sequence)`` bool and ``(batch,)`` whole numbers.
    """
    batch, length, _ = inputs.shape
    real = inputs.isfinite().all(-1)
    earlier = torch.zeros(batch, dtype=torch.long, device=inputs.device)
    if mask is not None and mask.shape[0] == batch and mask.shape[1] >= length:
        seen = mask.to(inputs.device) != 0
        real = real & seen[:, seen.shape[1] - length :]
        earlier = seen[:, : seen.shape[1] - length].sum(1)
    return real, earlier


def chosen_rows(tokens: Tokens, real: Tensor, earlier: Tensor) -> Tensor:
    """Rows whose own circuit goes to the chip: ``(batch, sequence)`` bool; not for ``"pooled"``.

    Example:
        >>> real = torch.tensor([[False, True, True, True]])  # padded on the left
        >>> chosen_rows(Tokens("every", 2), real, torch.zeros(1, dtype=torch.long)).tolist()
        [[False, False, True, False]]
    """
    if tokens.mode == "all":
        return real
    count = real.cumsum(1)  # (batch, sequence)
    if tokens.mode == "last":
        return real & (count == count[:, -1:])
    return real & ((count + earlier[:, None]) % tokens.step == 0)


def pooled_inputs(inputs: Tensor, real: Tensor) -> Tensor:
    """Mean of the inputs of each sequence's tokens: ``(batch, sequence, n) -> (batch, n)``, 0 where there are none."""
    total = torch.where(real[..., None], inputs, 0.0).sum(1)
    return total / real.sum(1, keepdim=True).clamp(min=1)
