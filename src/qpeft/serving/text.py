"""From tokens, one at a time, to pieces of text that never have to be taken back.

A character may take several tokens, and a stop string may begin in one token and end in another: what may still change
is held back until the next token settles it.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"


class AnswerText:
    """The text of one answer while it is written.

    Args:
        tokenizer: Turns tokens into text; special tokens leave none.
        stop: Strings before which the answer ends.

    Attributes:
        stopped: Whether one of them was written.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._context = 0  # tokens from here on are decoded again, because neighbours shape each other's text
        self._told = 0  # tokens up to here are in the text already
        self._held = ""

    def push(self, token: int) -> str:
        """Take the next token and give the text that is now certain, which may be empty."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(_UNFINISHED):
            return ""
        self._context, self._told = self._told, len(self._ids)
        return self._release(text)

    def rest(self) -> str:
        """What was held back, once no token follows."""
        text = self._release(self._new_text())
        held, self._held = self._held, ""
        return text if self.stopped else text + held

    def _new_text(self) -> str:
        before = self._decode(self._ids[self._context : self._told])
        return self._decode(self._ids[self._context :])[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _release(self, text: str) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for place in (text.find(stop) for stop in self._stop) if place >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        keep = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop string begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
