"""Pieces of text: together the whole, never taken back, cut at stop strings wherever tokens fall."""

import pytest

from qpeft.serving.text import AnswerText
from tiny_base import byte_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def pieces(tokenizer, text, stop=()):
    answer = AnswerText(tokenizer, stop)
    said = []
    for token in tokenizer(text)["input_ids"]:
        said.append(answer.push(token))
        if answer.stopped:
            return said
    return [*said, answer.rest()]


@pytest.mark.parametrize("text", ["plain words", "naïve Ångström", "量子 circuits ⟨Z⟩", "\n\n  two  ", ""])
def test_pieces_are_the_text(tokenizer, text):
    said = pieces(tokenizer, text)
    assert "".join(said) == text
    assert not any("\ufffd" in piece for piece in said)


def test_special_tokens_leave_no_text(tokenizer):
    assert "".join(pieces(tokenizer, "<|im_start|>hello<|im_end|>")) == "hello"


def test_half_a_character_at_the_end_is_shown_as_such(tokenizer):
    ids = tokenizer("é")["input_ids"]
    answer = AnswerText(tokenizer)
    assert answer.push(ids[0]) == ""
    assert answer.rest() == "\ufffd"


@pytest.mark.parametrize(
    ("text", "stop", "said"),
    [
        ("one\ntwo", ["\n"], "one"),
        ("ab aba abab", ["abab"], "ab aba "),
        ("aaab", ["aab"], "a"),
        ("xyz", ["yz", "xy"], ""),
        ("nothing to stop at: ###", ["####"], "nothing to stop at: ###"),
        ("量子é", ["é"], "量子"),
    ],
)
def test_stop_strings(tokenizer, text, stop, said):
    assert "".join(pieces(tokenizer, text, stop)) == said
