"""The loss and perplexity of a model on labelled tokens: every labelled token counts once, padding and prompts never.

    loss = -(1/N) Σ log p(token | tokens before it),   perplexity = exp(loss),   N labelled tokens of the whole set

A batch mean of batch means would weigh tokens of short samples more; here the sum runs over tokens. With a large
vocabulary the logits are the largest array by far, so they are asked of the model only at positions that predict a
labelled token, in batches bounded by their number of tokens.
"""

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from qpeft.data.masking import IGNORED
from qpeft.errors import InputError
from qpeft.evaluation.generation import Progress

# Rows whose softmax is taken at a time, in float32.
_SOFTMAX_ROWS = 512


@dataclass(frozen=True)
class Loss:
    """Mean loss in nats a token, its perplexity, and how many tokens and samples it was measured on.

    `deviation` is the standard deviation of the tokens' losses. `by_sample` holds the summed loss and the number of
    labelled tokens of each sample that has any, in the order given.
    """

    loss: float
    perplexity: float
    deviation: float
    tokens: int
    samples: int
    by_sample: tuple[tuple[float, int], ...] = ()


def measure_loss(
    model: nn.Module,
    samples: Iterable[Mapping[str, Sequence[int]]],
    max_batch_tokens: int = 2048,
    progress: Progress | None = None,
) -> Loss:
    """Measures the loss of a causal language model on encoded samples.

    Args:
        model: A causal language model, with or without an adapter; its training mode is left as it was.
        samples: Each with `input_ids` and `labels`, as `qpeft.data.encode_dataset` gives them.
        max_batch_tokens: Bound on rows times length of a batch (a longer sample goes alone).
        progress: Called with (samples done, samples in all).

    Raises:
        InputError: If there is no labelled token to measure.
    """
    rows = [(list(sample["input_ids"]), list(sample["labels"])) for sample in samples]
    rows = [row for row in rows if any(label != IGNORED for label in row[1][1:])]
    if not rows:
        raise InputError("no sample has a labelled token to measure the loss on: give samples with answers.")
    order = sorted(range(len(rows)), key=lambda place: len(rows[place][0]), reverse=True)
    rows = [rows[place] for place in order]
    by_sample = [(0.0, 0)] * len(rows)
    device = next(model.parameters()).device
    choose_positions = _takes_positions(model)
    training = {module: module.training for module in model.modules()}
    total, squares, tokens, done = 0.0, 0.0, 0, 0
    model.eval()
    try:
        with torch.no_grad():
            while done < len(rows):
                n_rows = max(1, max_batch_tokens // len(rows[done][0]))
                batch = rows[done : done + n_rows]
                losses = _token_losses(model, batch, device, choose_positions).double()  # (labelled tokens,)
                own = [sum(label != IGNORED for label in labels[1:]) for _, labels in batch]
                for place, part in zip(order[done:], losses.split(own), strict=False):
                    by_sample[place] = (float(part.sum()), part.numel())
                total += float(losses.sum())
                squares += float((losses * losses).sum())
                tokens += losses.numel()
                done += len(batch)
                if progress is not None:
                    progress(done, len(rows))
    finally:
        for module, mode in training.items():
            module.training = mode
    mean = total / tokens
    deviation = math.sqrt(max(0.0, squares / tokens - mean * mean)) if math.isfinite(mean) else math.nan
    return Loss(mean, _exp(mean), deviation, tokens, len(rows), tuple(by_sample))


def _token_losses(
    model: nn.Module, rows: Sequence[tuple[list[int], list[int]]], device: torch.device, choose_positions: bool
) -> Tensor:
    """The loss of every labelled token of a batch, (labelled tokens,) in float32."""
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    targets = torch.full_like(ids, IGNORED)
    for place, (row, labels) in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row)
        mask[place, : len(row)] = 1
        targets[place, : len(row) - 1] = torch.tensor(labels[1:])  # position t predicts token t + 1
    positions = (targets != IGNORED).any(dim=0).nonzero().squeeze(1)  # (n_positions,)
    arguments: dict[str, Any] = {"logits_to_keep": positions.to(device)} if choose_positions else {}
    logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False, **arguments).logits
    if logits.shape[1] >= longest:  # every position was given, asked or not; virtual tokens of the adapter come first
        logits = logits[:, -longest:][:, positions.to(device)]  # (batch, n_positions, vocabulary)
    targets = targets[:, positions].to(device)
    labelled = targets != IGNORED
    wanted, truth = logits[labelled], targets[labelled]  # (labelled tokens, vocabulary), (labelled tokens,)
    return torch.cat(
        [
            functional.cross_entropy(wanted[start : start + _SOFTMAX_ROWS].float(), part, reduction="none")
            for start, part in zip(range(0, len(truth), _SOFTMAX_ROWS), truth.split(_SOFTMAX_ROWS), strict=True)
        ]
    )


def _takes_positions(model: nn.Module) -> bool:
    """Whether the model computes logits at chosen positions only (transformers' `logits_to_keep`)."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    # With virtual tokens in front (prompt tuning), positions of the text are not positions of the model.
    config = getattr(model, "active_peft_config", None)
    if getattr(config, "is_prompt_learning", False):
        return False
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf
