"""What clients may ask, checked; the fields are those of OpenAI's chat completions and completions.

A field that would change the answer and that is not kept here (`tools`, `logprobs`, `n` above 1) is refused, never
ignored; fields that only accompany a request (`user`, `metadata`) are let through.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qpeft.data.examples import Message
from qpeft.errors import InputError

_MOST_STOPS = 4

Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Nothing = Annotated[list[Any], Field(max_length=0)] | None
Zero = Annotated[float, Field(ge=0, le=0)] | None


class BadRequest(InputError):
    """A request that cannot be answered: the sentence, the field that is wrong, and OpenAI's code for it."""

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Asked(BaseModel):
    """What both kinds of request have in common."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: Stop | Annotated[list[Stop], Field(max_length=_MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = None
    frequency_penalty: Zero = None
    presence_penalty: Zero = None
    logit_bias: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def with_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class TextPart(BaseModel):
    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn; what a client sends back of an earlier answer is let through where it is empty."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    tool_calls: Nothing = None

    def plain(self) -> Message:
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ResponseFormat(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["text"]


class ChatRequest(Asked):
    """`POST /v1/chat/completions`."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None
    logprobs: Literal[False] | None = None
    tools: Nothing = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Any = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


class CompletionRequest(Asked):
    """`POST /v1/completions`; the prompt is one text or the ids of its tokens."""

    prompt: str | Annotated[list[int], Field(min_length=1)] | Annotated[list[str], Field(min_length=1, max_length=1)]
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None
    best_of: Literal[1] | None = None
    logprobs: None = None

    @property
    def most_tokens(self) -> int:
        return self.max_tokens or 16  # OpenAI's default


Kind = TypeVar("Kind", ChatRequest, CompletionRequest)


def read_request(kind: type[Kind], raw: bytes) -> Kind:
    """Read and check a request.

    Raises:
        BadRequest: It is no JSON object, or names the first field that is wrong.
    """
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise BadRequest(f"the request is not JSON: {first['msg'].removeprefix('Invalid JSON: ')}") from error
        if not first["loc"]:
            raise BadRequest("the request must be a JSON object") from error
        # Of a union's branches the place names one, too; the field itself is what helps.
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part in _known(kind))
        where = where or str(first["loc"][0])
        message = "is not known here" if first["type"] == "extra_forbidden" else first["msg"].lower()
        raise BadRequest(f"{where}: {message}", where) from error


def _known(kind: type[BaseModel]) -> set[str]:
    return {*kind.model_fields, *ChatMessage.model_fields, *TextPart.model_fields, *StreamOptions.model_fields}
