"""Token ids and labels: the loss counts on the assistant's turns and nowhere else.

A conversation is rendered once and tokenised once. A token is labelled where its characters meet the text of an
assistant turn or the mark that ends the turn; every other token gets the label -100, which torch's cross entropy
leaves out. A token that lies across the border is labelled, since it is the one the model has to produce there.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from transformers import PreTrainedTokenizerBase

from qpeft.data.examples import Example
from qpeft.data.formatting import Format, Rendered, render_with_spans
from qpeft.errors import InputError

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

IGNORED = -100

Turns = Literal["all", "last"]
TooLong = Literal["drop", "truncate", "error"]


@dataclass
class EncodingReport:
    """What became of the samples of a data set.

    Attributes:
        kept: Samples in the encoded set.
        dropped: Samples left out because they are longer than the limit or have nothing to learn.
        truncated: Samples that were cut at the limit (they are among the kept).
        tokens: Tokens of all kept samples.
        labelled_tokens: Those of them that count in the loss.
        longest: Tokens of the longest sample read, before any cut.
    """

    kept: int = 0
    dropped: int = 0
    truncated: int = 0
    tokens: int = 0
    labelled_tokens: int = 0
    longest: int = 0


def encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    format: Format = "auto",
    system: str | None = None,
    turns: Turns = "all",
    too_long: TooLong = "drop",
) -> dict[str, list[int]] | None:
    """Turns one conversation into what a trainer reads.

    Args:
        example: The conversation.
        tokenizer: A fast tokenizer (it has to tell where each token stands in the text).
        max_length: Most tokens a sample may have; `None` for no limit.
        format: `"chat"`, `"plain"`, or `"auto"` for the chat template where there is one.
        system: A system message for conversations without one; see `formatting.render`.
        turns: Whether `"all"` assistant turns are learned or only the `"last"`.
        too_long: What to do with a sample over the limit: `"drop"` it, `"truncate"` its end, or raise an `"error"`.

    Returns:
        `input_ids`, `labels` and `attention_mask`, each a list of `n_tokens` integers; `None` for a sample that is
        dropped or that has no labelled token left.

    Raises:
        InputError: If the sample is too long under `"error"`, the tokenizer is a slow one, or a setting is unknown.
    """
    sample, _ = _encode(example, tokenizer, max_length, format, system, turns, too_long)
    return sample


def encode_dataset(
    examples: Iterable[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None = None,
    format: Format = "auto",
    system: str | None = None,
    turns: Turns = "all",
    too_long: TooLong = "drop",
) -> tuple["Dataset", EncodingReport]:
    """Encodes a whole data set; arguments as for `encode`.

    Returns:
        A `datasets.Dataset` with the columns `input_ids`, `labels` and `attention_mask`, and the report.

    Raises:
        InputError: If there is no example, or none is left; the message gives the longest and the limit.
    """
    from datasets import Dataset

    report = EncodingReport()
    samples: list[dict[str, list[int]]] = []
    for example in examples:
        sample, length = _encode(example, tokenizer, max_length, format, system, turns, too_long)
        report.longest = max(report.longest, length)
        if sample is None:
            report.dropped += 1
            continue
        samples.append(sample)
        report.kept += 1
        report.truncated += len(sample["input_ids"]) < length
        report.tokens += len(sample["input_ids"])
        report.labelled_tokens += sum(label != IGNORED for label in sample["labels"])
    if not report.kept and not report.dropped:
        raise InputError("the data set is empty: give at least one example.")
    if not report.kept:
        raise InputError(
            f"none of the {report.dropped} samples is left: the longest has {report.longest} tokens and the limit is "
            f"{max_length}; raise max_length or use too_long='truncate'."
        )
    if report.dropped or report.truncated:
        logger.warning(
            "%d of %d samples were dropped and %d truncated at max_length=%s (the longest has %d tokens)",
            report.dropped, report.kept + report.dropped, report.truncated, max_length, report.longest,
        )  # fmt: skip
    return Dataset.from_list(samples), report


def _encode(
    example: Example,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    format: Format,
    system: str | None,
    turns: Turns,
    too_long: TooLong,
) -> tuple[dict[str, list[int]] | None, int]:
    """The sample (or `None`) and its length before any cut."""
    for name, value, known in (("turns", turns, get_args(Turns)), ("too_long", too_long, get_args(TooLong))):
        if value not in known:
            raise InputError(f"{name} must be one of {', '.join(known)} (got {value!r}).")
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length must be at least 1 (got {max_length}).")
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} is a slow tokenizer, which cannot tell where tokens stand in the text: "
            "load the fast one (use_fast=True)."
        )
    rendered = render_with_spans(example.messages, tokenizer, system=system, format=format)
    encoded = tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    labels = _labels(ids, offsets, _learned_spans(rendered, turns))
    length = len(ids)
    if max_length is not None and length > max_length:
        if too_long == "error":
            raise InputError(
                f"a sample has {length} tokens and the limit is {max_length} (it begins {example.question[:40]!r}): "
                "raise max_length, or use too_long='drop' or 'truncate'."
            )
        if too_long == "drop":
            return None, length
        ids, labels = ids[:max_length], labels[:max_length]
    if all(label == IGNORED for label in labels):
        return None, length
    return {"input_ids": ids, "labels": labels, "attention_mask": [1] * len(ids)}, length


def _learned_spans(rendered: Rendered, turns: Turns) -> list[tuple[int, int]]:
    """Character spans of the assistant's texts, each with the mark that ends its turn."""
    spans = []
    for turn in rendered.turns:
        if turn.role == "assistant":
            closed = rendered.text.startswith(rendered.turn_end, turn.end)
            spans.append((turn.start, turn.end + (len(rendered.turn_end) if closed else 0)))
    return spans[-1:] if turns == "last" else spans


def _labels(
    ids: Sequence[int], offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]
) -> list[int]:  # (n_tokens,) each
    return [
        token if any(start < span_end and end > span_start for span_start, span_end in spans) else IGNORED
        for token, (start, end) in zip(ids, offsets, strict=True)
    ]
