"""The one value every data set is turned into: a conversation whose last turn is the assistant's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpeft.errors import InputError

Message = dict[str, str]

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Example:
    """One conversation to train on or to be tested with.

    Attributes:
        messages: Turns `{"role": ..., "content": ...}` in order; the last one is the assistant's.
        answer: The final answer alone where the task has one (`"18"`), else `None`.
        meta: What a task needs besides the text (an arithmetic `Problem`, a prefix equation, the file and line).

    Raises:
        InputError: If a turn lacks a role or text, a role is unknown, or the last turn is not the assistant's.
    """

    messages: Sequence[Message]
    answer: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise InputError("a conversation needs at least one user and one assistant turn (got none): add turns.")
        for position, message in enumerate(self.messages, start=1):
            if not isinstance(message, Mapping):
                raise InputError(
                    f"turn {position} is {type(message).__name__}, expected an object with 'role' and 'content'."
                )
            role, content = message.get("role"), message.get("content")
            if role not in ROLES:
                raise InputError(f"turn {position} has role {role!r}: use one of {', '.join(ROLES)}.")
            if not isinstance(content, str):
                raise InputError(f"turn {position} has content of type {type(content).__name__}: expected a string.")
        if self.messages[-1]["role"] != "assistant":
            raise InputError(
                f"the last turn is {self.messages[-1]['role']!r}, but a conversation has to end with the assistant's: "
                "remove the trailing turns."
            )

    @property
    def prompt(self) -> list[Message]:
        """The turns before the last one: what a model is asked with."""
        return list(self.messages[:-1])

    @property
    def target(self) -> str:
        """The text of the last assistant turn: what a model should answer."""
        return self.messages[-1]["content"]

    @property
    def question(self) -> str:
        """All turns before the last one as one text; equal questions must not stand on both sides of a split."""
        return "\n".join(message["content"] for message in self.messages[:-1])


def question_and_answer(question: str, target: str, answer: str | None = None, **meta: Any) -> Example:
    """Builds the two-turn conversation of a question and the text that answers it."""
    return Example(
        messages=[{"role": "user", "content": question}, {"role": "assistant", "content": target}],
        answer=answer,
        meta=meta,
    )
