"""How the next token of each row of a batch is chosen: by its own temperature, share and seed.

    p(token) = softmax(logits / temperature), of which the likeliest tokens of probability `top_p` together remain

transformers draws all rows of a batch alike and from one generator. Here every row has a generator of its own, so that
a seed gives its answer whoever else is in the batch. The drawn token gets all the probability, and greedy decoding
takes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn.

    Attributes:
        max_new_tokens: Most tokens of the answer.
        temperature: 0 always takes the likeliest token.
        top_p: Draw among the likeliest tokens that have this probability together.
        seed: Of drawing; `None` for another answer every time.
        stop: Strings before which the answer ends.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()


class DrawEachRow(LogitsProcessor):
    """Leaves of every row that is drawn the drawn token alone.

    Args:
        samplings: Of the rows in their order.
        device: Where the logits are.
    """

    def __init__(self, samplings: Sequence[Sampling], device: torch.device) -> None:
        self._rows = [
            (row, sampling, _generator(sampling.seed, device))
            for row, sampling in enumerate(samplings)
            if sampling.temperature > 0
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (batch, vocabulary) -> the same
        scores = scores.clone()
        for row, sampling, generator in self._rows:
            own = TemperatureLogitsWarper(sampling.temperature)(input_ids, scores[row : row + 1])
            if sampling.top_p < 1:
                own = TopPLogitsWarper(sampling.top_p)(input_ids, own)
            token = torch.multinomial(own.softmax(-1)[0], 1, generator=generator)  # (1,)
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        return scores


def _generator(seed: int | None, device: torch.device) -> torch.Generator:
    generator = torch.Generator(device)
    if seed is None:
        generator.seed()
        return generator
    return generator.manual_seed(seed)
