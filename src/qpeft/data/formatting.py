"""From a conversation to one text, through the tokenizer's chat template or in a plain form without one.

The plain form writes each turn's text on a line of its own and ends each assistant turn with the end-of-sequence
token:

    {bos}{system}\\n{question}\\n{answer}{eos}\\n{question}\\n{answer}{eos}

where `{bos}` stands only for tokenizers that put it before every text, and the system line only if there is one.
Chat templates write their special tokens themselves, so both forms are tokenised without adding any.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from qpeft.data.examples import Message
from qpeft.errors import InputError

Format = Literal["auto", "chat", "plain"]


@dataclass(frozen=True)
class RenderedTurn:
    """Where one turn lies in the rendered text: `text[start:end]` is its content."""

    role: str
    start: int
    end: int


@dataclass(frozen=True)
class Rendered:
    """A rendered conversation.

    Attributes:
        text: The whole text, special tokens included.
        turns: One entry a message, in order (the added system message included).
        turn_end: What closes an assistant turn, up to its end-of-turn token (`"<|im_end|>"`); may be empty.
    """

    text: str
    turns: tuple[RenderedTurn, ...]
    turn_end: str


def resolve_format(tokenizer: PreTrainedTokenizerBase, format: Format = "auto") -> Literal["chat", "plain"]:
    """Chooses between the chat template and the plain form.

    `"auto"` takes the chat template where the tokenizer has one.

    Raises:
        InputError: If `"chat"` is asked of a tokenizer without a chat template, or the format is unknown.
    """
    if format not in get_args(Format):
        raise InputError(f"format must be one of {', '.join(get_args(Format))} (got {format!r}).")
    if format == "plain":
        return "plain"
    if tokenizer.chat_template:
        return "chat"
    if format == "chat":
        raise InputError(
            f"the tokenizer of {tokenizer.name_or_path or 'this model'} has no chat template, which format='chat' "
            "needs: use format='plain' or a model tuned for chat."
        )
    return "plain"


def render(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool = False,
    system: str | None = None,
    format: Format = "auto",
) -> str:
    """Writes a conversation as the text a model reads.

    Args:
        messages: The turns in order.
        tokenizer: Gives the chat template and the special tokens.
        add_generation_prompt: Whether the text ends where the assistant's next turn begins.
        system: A system message to start with where the conversation has none of its own. `None` leaves that to
            the template (SmolLM2's then adds a sentence of 15 tokens), `""` sets an empty one.
        format: `"chat"`, `"plain"`, or `"auto"` for the chat template where there is one.

    Raises:
        InputError: If the template refuses the conversation, or there is none though `"chat"` was asked.
    """
    chosen = resolve_format(tokenizer, format)
    messages = _prepared(messages, system, chosen)
    if chosen == "plain":
        return _render_plain(messages, tokenizer)
    try:
        return str(
            tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(
            f"the model's chat template refuses a conversation with the turns {roles} ({error}): "
            "change the turns or use format='plain'."
        ) from error


def render_with_spans(
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    system: str | None = None,
    format: Format = "auto",
) -> Rendered:
    """Renders a conversation and finds every turn's text in it.

    The template is rendered a second time with a mark in place of each text; what lies between the marks is the
    template's own, so that a text which also occurs elsewhere ("a" in "assistant") cannot be mistaken.

    Raises:
        InputError: If the template refuses the conversation or rewrites the text of a turn.
    """
    format = resolve_format(tokenizer, format)
    messages = _prepared(messages, system, format)
    text = render(messages, tokenizer, format=format)
    # Private-use characters: no text has them, and no template strips them.
    marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
    marked = render(
        [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)], tokenizer, format=format
    )
    pieces = _split_at(marked, marks)
    turns: list[RenderedTurn] = []
    position = len(pieces[0]) if pieces else 0
    if not pieces or not text.startswith(pieces[0]):
        raise _rewritten(messages, 0)
    for index, message in enumerate(messages):
        content, following = message["content"], pieces[index + 1]
        # Many templates strip the texts they are given.
        for form in (content, content.rstrip(), content.lstrip(), content.strip()):
            if text.startswith(form + following, position):
                break
        else:
            raise _rewritten(messages, index)
        turns.append(RenderedTurn(message["role"], position, position + len(form)))
        position += len(form) + len(following)
    if position != len(text):
        raise _rewritten(messages, len(messages) - 1)
    return Rendered(text, tuple(turns), _up_to_special_token(pieces[-1], tokenizer))


def _prepared(messages: Sequence[Message], system: str | None, format: Format) -> Sequence[Message]:
    if system is not None and not (messages and messages[0]["role"] == "system"):
        messages = [{"role": "system", "content": system}, *messages]
    if format == "plain":  # an empty system message would only leave an empty line
        messages = [message for message in messages if message["role"] != "system" or message["content"]]
    return messages


def _render_plain(messages: Sequence[Message], tokenizer: PreTrainedTokenizerBase) -> str:
    eos = tokenizer.eos_token or ""
    last = len(messages) - 1
    lines = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            lines.append(message["content"] + eos + ("" if index == last else "\n"))
        else:
            lines.append(message["content"] + "\n")
    return _leading_bos(tokenizer) + "".join(lines)


def _leading_bos(tokenizer: PreTrainedTokenizerBase) -> str:
    if tokenizer.bos_token is None:
        return ""
    first = tokenizer("a")["input_ids"][:1]
    return str(tokenizer.bos_token) if first == [tokenizer.bos_token_id] else ""


def _split_at(marked: str, marks: Sequence[str]) -> list[str]:
    """The texts before, between and after the marks; empty if the marks do not each occur once and in order."""
    pieces = []
    for mark in marks:
        before, found, marked = marked.partition(mark)
        if not found or mark in marked:
            return []
        pieces.append(before)
    return [*pieces, marked]


def _up_to_special_token(piece: str, tokenizer: PreTrainedTokenizerBase) -> str:
    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    special.update(tokenizer.all_special_tokens)
    ends = [piece.find(token) + len(token) for token in special if token and token in piece]
    return piece[: min(ends)] if ends else piece


def _rewritten(messages: Sequence[Message], index: int) -> InputError:
    return InputError(
        f"the model's chat template rewrites turn {index + 1} ({messages[index]['role']}) of a conversation, so its "
        "answer cannot be found for the loss: use format='plain'."
    )


def turn_end(tokenizer: PreTrainedTokenizerBase, format: Format = "auto") -> str:
    """What closes an assistant turn in the rendered text (`"<|im_end|>"`); empty if nothing does."""
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return render_with_spans(messages, tokenizer, format=format).turn_end
