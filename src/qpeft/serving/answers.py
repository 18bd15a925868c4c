"""What clients are told: OpenAI's answers, chunks of a stream, errors and lists of models, as plain values."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from qpeft.serving.models import ServedModel


@dataclass(frozen=True)
class Answer:
    """The shape of one answer, whole or in chunks.

    Attributes:
        model: Its served name.
        is_chat: Whether it answers a conversation.
        n_prompt: Tokens of the prompt.
    """

    model: str
    is_chat: bool
    n_prompt: int
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def whole(self, text: str, reason: str, n_tokens: int) -> dict[str, Any]:
        content: dict[str, Any] = (
            {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": text}
        )
        return {
            **self._head("chat.completion" if self.is_chat else "text_completion"),
            "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": reason}],
            "usage": self.usage(n_tokens),
        }

    def chunk(self, text: str | None, reason: str | None = None, is_first: bool = False) -> dict[str, Any]:
        content: dict[str, Any]
        if self.is_chat:
            delta = {"role": "assistant", "content": ""} if is_first else {}
            content = {"delta": delta if text is None else {**delta, "content": text}}
        else:
            content = {"text": text or ""}
        return {
            **self._head("chat.completion.chunk" if self.is_chat else "text_completion"),
            "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": reason}],
        }

    def last_chunk(self, n_tokens: int) -> dict[str, Any]:
        """What a stream ends with if the tokens used were asked for."""
        head = self._head("chat.completion.chunk" if self.is_chat else "text_completion")
        return {**head, "choices": [], "usage": self.usage(n_tokens)}

    def usage(self, n_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self.n_prompt,
            "completion_tokens": n_tokens,
            "total_tokens": self.n_prompt + n_tokens,
        }

    def _head(self, kind: str) -> dict[str, Any]:
        prefix = "chatcmpl" if self.is_chat else "cmpl"
        return {"id": f"{prefix}-{self.id}", "object": kind, "created": self.created, "model": self.model}


def error(message: str, kind: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients expect it."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def model_entry(served: ServedModel) -> dict[str, Any]:
    """A model as `GET /v1/models` lists it; adapters name their base as `parent`."""
    return {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "qpeft",
        "parent": served.base if served.method else None,
    }


def server_sent(value: dict[str, Any]) -> str:
    """One event of a stream."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
