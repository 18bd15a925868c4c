"""Which tokens go to the chip."""

import doctest

import pytest
import torch

import qpeft.qpu.tokens
from qpeft.errors import InputError
from qpeft.qpu.tokens import Tokens, chosen_rows, pooled_inputs, real_rows

LEFT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
RIGHT = LEFT.flip(1)


def inputs(batch=2, length=5, n=3):
    return torch.randn(batch, length, n, generator=torch.Generator().manual_seed(0))


def choose(tokens, mask=None, given=None):
    return chosen_rows(Tokens.parse(tokens), *real_rows(inputs() if given is None else given, mask)).int().tolist()


def test_all_tokens_but_padding():
    assert choose("all") == torch.ones(2, 5).int().tolist()
    assert choose("all", LEFT) == LEFT.tolist()
    broken = inputs()
    broken[0, 1, 2] = float("nan")
    broken[1, 4, 0] = float("inf")
    assert choose("all", given=broken) == [[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]]


def test_last_token_of_each_sequence():
    assert choose("last") == [[0, 0, 0, 0, 1]] * 2
    assert choose("last", LEFT) == [[0, 0, 0, 0, 1]] * 2
    assert choose("last", RIGHT) == [[0, 0, 1, 0, 0], [0, 0, 0, 0, 1]]
    assert choose("last", torch.tensor([[0] * 5, [1] * 5])) == [[0] * 5, [0, 0, 0, 0, 1]]


def test_every_second_token_counts_tokens_and_not_padding():
    assert choose("every 2") == [[0, 1, 0, 1, 0]] * 2
    assert choose("every 2", LEFT) == [[0, 0, 0, 1, 0], [0, 1, 0, 1, 0]]
    assert choose("every 1", LEFT) == LEFT.tolist()


def test_every_kth_token_is_counted_on_while_text_is_generated():
    mask = LEFT
    seen = [choose("every 3", mask)]
    for _ in range(4):  # one more token a call
        mask = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        seen.append(choose("every 3", mask, inputs(length=1)))
    assert seen[0] == [[0, 0, 0, 0, 1], [0, 0, 1, 0, 0]]
    assert [row[0][0] for row in seen[1:]] == [0, 0, 1, 0]  # tokens 4 to 7 of the first sequence
    assert [row[1][0] for row in seen[1:]] == [1, 0, 0, 1]  # tokens 6 to 9 of the second


def test_masks_of_another_batch_are_left_alone():
    assert choose("all", torch.zeros(3, 5)) == torch.ones(2, 5).int().tolist()
    assert choose("all", torch.zeros(2, 4)) == torch.ones(2, 5).int().tolist()


def test_pooled_inputs_are_means_over_tokens():
    given = inputs()
    given[0, 0] = float("nan")
    real, _ = real_rows(given, LEFT)
    found = pooled_inputs(given, real)
    torch.testing.assert_close(found, torch.stack([given[0, 2:].mean(0), given[1].mean(0)]))
    assert (pooled_inputs(given, torch.zeros(2, 5, dtype=torch.bool)) == 0).all()


def test_choices_are_read_from_text():
    assert str(Tokens.parse(" Every 4 ")) == "every 4"
    assert Tokens.parse("last") == Tokens.parse(Tokens("last"))
    for text in ("every", "every 0", "every -1", "every 1.5", "first", "", None, 3):
        with pytest.raises(InputError, match="tokens must be 'all', 'last', 'every k'"):
            Tokens.parse(text)


def test_examples_in_docstrings():
    assert doctest.testmod(qpeft.qpu.tokens).failed == 0
