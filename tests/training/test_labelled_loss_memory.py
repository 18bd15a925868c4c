"""The loss over a large vocabulary: no logits of all tokens exist, and nothing changes but that."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from qpeft.training import labelled_loss


class Largest(TorchDispatchMode):
    """Remembers the number of entries of the largest tensor that an operation made."""

    entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.entries = max(self.entries, made.numel())
        return made


def plain(states, targets, weight, bias):
    """Cross entropy as transformers computes it: logits in the head's precision, the loss in float32."""
    logits = torch.nn.functional.linear(states, weight, bias)
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum"), (
        logits.argmax(-1) == targets
    ).sum()


def problem(dtype, with_bias, n=37, width=24, vocabulary=1000):
    torch.manual_seed(0)
    states = (3 * torch.randn(n, width)).to(dtype).requires_grad_()
    weight = torch.randn(vocabulary, width).to(dtype)
    bias = torch.randn(vocabulary).to(dtype) if with_bias else None
    return states, torch.randint(vocabulary, (n,)), weight, bias


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("limit", [1, 999, 5000, 10**6], ids=lambda limit: f"{limit} logits")
def test_value_and_gradient_do_not_depend_on_the_parts(monkeypatch, limit, with_bias):
    monkeypatch.setattr(labelled_loss, "LOGITS", limit)
    states, targets, weight, bias = problem(torch.float32, with_bias)
    expected, expected_hits = plain(states, targets, weight, bias)
    (expected_gradient,) = torch.autograd.grad(expected / 7, states)

    total, hits = labelled_loss._HeadLoss.apply(states, targets, weight, bias)
    (gradient,) = torch.autograd.grad(total / 7, states)

    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(gradient, expected_gradient)
    assert hits == expected_hits


def test_bfloat16_is_rounded_where_trl_rounds_it(monkeypatch):
    monkeypatch.setattr(labelled_loss, "LOGITS", 3000)
    states, targets, weight, _ = problem(torch.bfloat16, with_bias=False)
    expected, expected_hits = plain(states, targets, weight, None)
    (expected_gradient,) = torch.autograd.grad(expected, states)
    total, hits = labelled_loss._HeadLoss.apply(states, targets, weight, None)
    (gradient,) = torch.autograd.grad(total, states)

    assert total.dtype == torch.float32
    torch.testing.assert_close(total, expected)
    assert gradient.dtype == torch.bfloat16
    exact = torch.autograd.grad(plain(double := states.double(), targets, weight.double(), None)[0], double)[0]
    error, their_error = (gradient - exact).norm(), (expected_gradient - exact).norm()
    assert error <= 1.1 * their_error
    assert hits == expected_hits


def test_scores_that_overflow_a_power_are_scored(monkeypatch):
    monkeypatch.setattr(labelled_loss, "LOGITS", 3000)
    states, targets, weight, _ = problem(torch.float32, with_bias=False)
    with torch.no_grad():
        states *= 1000
    expected = plain(states, targets, weight, None)[0]
    torch.testing.assert_close(labelled_loss._HeadLoss.apply(states, targets, weight, None)[0], expected)


def test_no_tensor_holds_the_logits_of_all_positions(monkeypatch):
    monkeypatch.setattr(labelled_loss, "LOGITS", 4000)
    states, targets, weight, _ = problem(torch.float32, with_bias=False, width=3)
    with Largest() as seen:
        total, _ = labelled_loss._HeadLoss.apply(states, targets, weight, None)
        total.backward()
    assert seen.entries == 4000  # of 37,000


def test_nothing_is_differentiated_where_no_gradient_is_wanted():
    states, targets, weight, _ = problem(torch.float32, with_bias=False)
    assert not labelled_loss._HeadLoss.apply(states.detach(), targets, weight, None)[0].requires_grad
