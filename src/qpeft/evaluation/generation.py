"""Answers of a model to many prompts: greedy (or seeded) decoding in batches, leaving the model as it was.

Two facts of ordinary processors shape this module. Decoding in bfloat16 on a CPU is many times slower than in
float32, so there the weights are widened while it lasts (bfloat16 survives the way there and back unchanged). And a
batch costs as much as its longest row, so prompts are sorted by length, and a row that has written its `#### answer`
stops at the next line.
"""

import contextlib
import logging
import re
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from qpeft.data.examples import Message
from qpeft.data.formatting import Format, render, turn_end
from qpeft.errors import InputError

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]

_ANSWERED = re.compile(r"####[ ]*[-$]*\d[\d,.]*[ %]*\n")


def generate_answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    max_new_tokens: int = 128,
    batch_size: int = 32,
    format: Format = "auto",
    system: str | None = None,
    stop_after_answer: bool = False,
    temperature: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[str]:
    """Lets a model answer conversations.

    Nothing is trained: gradients are off, dropout is off, and training mode, weight dtype, the tokenizer and the
    random state are left as they were, also after an error.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        prompts: Conversations without the answer that is asked for.
        max_new_tokens: Most tokens of an answer.
        batch_size: Prompts decoded together.
        format: As in training; see `qpeft.data.render`.
        system: As in training.
        stop_after_answer: Whether an answer ends with the line that holds `#### number`.
        temperature: 0 for greedy decoding, above for sampling.
        seed: Of the sampling.
        progress: Called with (answers done, answers in all) after every batch.

    Returns:
        The answers in the order of the prompts, without special tokens.

    Raises:
        InputError: If a size is below one or the temperature negative.
    """
    for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
        if value < 1:
            raise InputError(f"{name} must be at least 1 (got {value}).")
    if temperature < 0:
        raise InputError(f"temperature must be at least 0, which is greedy decoding (got {temperature}).")
    rows = _prompt_ids(model, tokenizer, prompts, max_new_tokens, format, system)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)  # the hungriest batch first
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        temperature=temperature or None,
        eos_token_id=end_ids(model, tokenizer, format) or None,
        pad_token_id=pad,
        use_cache=True,
    )
    device = next(model.parameters()).device
    answers = [""] * len(rows)
    with prepared_for_decoding(model), torch.random.fork_rng(enabled=temperature > 0):
        if temperature > 0:
            torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            ids, mask = _pad_left([rows[index] for index in chosen], pad)  # (batch, longest)
            stop = [_StopAfterAnswer(tokenizer, ids.shape[1])] if stop_after_answer else []
            written = model.generate(  # type: ignore[operator]
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=settings,
                stopping_criteria=StoppingCriteriaList(stop),
            )[:, ids.shape[1] :]  # (batch, new)
            texts = tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text
            if progress is not None:
                progress(start + len(chosen), len(rows))
    return answers


@contextlib.contextmanager
def prepared_for_decoding(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, on a CPU with float32 weights; everything is put back at the end."""
    training = {module: module.training for module in model.modules()}
    widened: list[tuple[Tensor, torch.dtype]] = []
    try:
        model.eval()
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.device.type == "cpu" and tensor.dtype in (torch.bfloat16, torch.float16):
                widened.append((tensor, tensor.dtype))
                tensor.data = tensor.data.float()
        with torch.no_grad():
            yield
    finally:
        for tensor, dtype in widened:
            tensor.data = tensor.data.to(dtype)
        for module, mode in training.items():
            module.training = mode


class _StopAfterAnswer(StoppingCriteria):
    """A row is done once it has written `#### number` and a line break."""

    # Enough for the mark, a number of a dozen digits and the break.
    _TAIL = 24

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt_length: int):
        self.tokenizer = tokenizer
        self.prompt_length = prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        start = max(self.prompt_length, input_ids.shape[1] - self._TAIL)
        tails = self.tokenizer.batch_decode(input_ids[:, start:], clean_up_tokenization_spaces=False)
        done = [_ANSWERED.search(tail) is not None for tail in tails]
        return torch.tensor(done, dtype=torch.bool, device=input_ids.device)  # (batch,)


def _prompt_ids(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[Message]],
    max_new_tokens: int,
    format: Format,
    system: str | None,
) -> list[list[int]]:
    texts = [render(prompt, tokenizer, add_generation_prompt=True, system=system, format=format) for prompt in prompts]
    rows: list[list[int]] = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    window = getattr(model.config, "max_position_embeddings", None)
    room = window - max_new_tokens if isinstance(window, int) else None
    if room is not None and room < 1:
        raise InputError(f"max_new_tokens must be below the model's window of {window} tokens (got {max_new_tokens}).")
    if room is not None and any(len(row) > room for row in rows):
        cut = sum(len(row) > room for row in rows)
        logger.warning(
            "%d of %d prompts exceed the model's window: only their last %d tokens are read", cut, len(rows), room
        )
        rows = [row[-room:] for row in rows]
    return rows


def end_ids(model: nn.Module, tokenizer: PreTrainedTokenizerBase, format: Format) -> list[int]:
    """Every token that ends an answer: the tokenizer's, the model's own, and the one the model is taught here."""
    ends: set[int] = set()
    if tokenizer.eos_token_id is not None:
        ends.add(int(tokenizer.eos_token_id))
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends.update([own] if isinstance(own, int) else own or [])
    mark = turn_end(tokenizer, format)
    taught = tokenizer(mark, add_special_tokens=False)["input_ids"] if mark else []
    if taught and taught[-1] in tokenizer.all_special_ids:
        ends.add(taught[-1])
    return sorted(ends)


def _pad_left(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), longest), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, longest - len(row) :] = torch.tensor(row, dtype=torch.long)
        mask[place, longest - len(row) :] = 1
    return ids, mask
