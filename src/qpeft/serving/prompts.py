"""From a checked request to the tokens a model reads and how its answer is drawn, within the model's window."""

from __future__ import annotations

from qpeft.data.formatting import render
from qpeft.serving.drawing import Sampling
from qpeft.serving.models import ServedModel
from qpeft.serving.requests import BadRequest, ChatRequest, CompletionRequest

_TOO_LONG = "context_length_exceeded"


def prepare(
    request: ChatRequest | CompletionRequest, served: ServedModel, most_new_tokens: int
) -> tuple[list[int], Sampling]:
    """Tokens of the prompt and the way to draw; without a limit of its own `most_new_tokens`, if they fit.

    Raises:
        BadRequest: The prompt has no tokens, unknown ones, or leaves no room for the answer.
        InputError: The chat template refuses the conversation.
    """
    ids = _chat_ids(request, served) if isinstance(request, ChatRequest) else _completion_ids(request, served)
    if not ids:
        raise BadRequest("the prompt is empty: give at least one token", "prompt")
    limit = request.most_tokens
    if served.window is not None:
        room = served.window - len(ids)
        if room < 1:
            raise BadRequest(
                f"the model's window has {served.window} tokens, and the prompt alone {len(ids)}: shorten it",
                "messages" if isinstance(request, ChatRequest) else "prompt",
                _TOO_LONG,
            )
        if limit is not None and limit > room:
            raise BadRequest(
                f"the model's window has {served.window} tokens, {len(ids)} of them are the prompt's: "
                f"max_tokens can be {room} at most (got {limit})",
                "max_tokens",
                _TOO_LONG,
            )
        most_new_tokens = min(most_new_tokens, room)
    return ids, Sampling(
        max_new_tokens=limit or most_new_tokens,
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        seed=request.seed,
        stop=request.stops,
    )


def _chat_ids(request: ChatRequest, served: ServedModel) -> list[int]:
    messages = [message.plain() for message in request.messages]
    text = render(
        messages, served.tokenizer, add_generation_prompt=True, system=served.system, format=served.format
    )  # fmt: skip
    return list(served.tokenizer(text, add_special_tokens=False)["input_ids"])


def _completion_ids(request: CompletionRequest, served: ServedModel) -> list[int]:
    prompt = request.prompt
    if isinstance(prompt, list) and isinstance(prompt[0], int):
        ids = [int(token) for token in prompt]
        wrong = next((token for token in ids if not 0 <= token < served.vocabulary), None)
        if wrong is not None:
            raise BadRequest(
                f"token {wrong} is not in the vocabulary, whose ids are 0 to {served.vocabulary - 1}", "prompt"
            )
        return ids
    return list(served.tokenizer(prompt if isinstance(prompt, str) else str(prompt[0]))["input_ids"])
