"""The two products of an adapter against plain operations: values, gradients, precision, and what they keep."""

import pytest
import torch
from peft import get_peft_model
from tiny_models import llama, small_config, tokens

from qpeft.adapters.qtha.products import add_expanded, compress

N_IN, N_OUT, R = 24, 20, 3


def operands(x_dtype: torch.dtype, dtype: torch.dtype) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = {(2, 5, N_IN): x_dtype, (R, N_IN): dtype, (2, 5, N_OUT): x_dtype, (R, N_OUT): dtype}
    return [torch.randn(shape).to(kind).requires_grad_() for shape, kind in shapes.items()]


def plain(x, down, y, up, dtype):
    """The same as one would write it, rounded once to the dtype of ``y``."""
    u = torch.tanh(x.to(dtype) @ down.to(dtype).T)
    return (y + 0.7 * (u @ up.to(dtype))).to(y.dtype)


def adapted(x, down, y, up, dtype):
    return add_expanded(y, torch.tanh(compress(x, down, dtype)), up, 0.7)


@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float32),
    ],
    ids=str,
)
def test_values_and_gradients_are_those_of_plain_operations(x_dtype, dtype):
    given = operands(x_dtype, dtype)
    results = [product(*given, dtype) for product in (plain, adapted)]
    assert results[1].dtype == x_dtype
    torch.testing.assert_close(*results, rtol=1e-6 if x_dtype == torch.float32 else 8e-3, atol=1e-6)
    weights = torch.randn_like(results[0])
    for expected, got in zip(*[torch.autograd.grad(result, given, weights) for result in results], strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=1e-5 if got.dtype == torch.float32 else 8e-3, atol=1e-5)


def test_sixteen_bit_parameters_are_multiplied_in_sixteen_bit():
    given = operands(torch.bfloat16, torch.bfloat16)
    result = adapted(*given, torch.bfloat16)
    assert result.dtype == torch.bfloat16
    torch.testing.assert_close(result.float(), plain(*[t.float() for t in given], torch.float32), rtol=0.05, atol=0.05)
    assert all(g.dtype == torch.bfloat16 for g in torch.autograd.grad(result.sum(), given))


def test_both_derivatives_pass_the_numeric_check():
    given = operands(torch.float64, torch.float64)
    assert torch.autograd.gradcheck(lambda *t: adapted(*t, torch.float64), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *t: adapted(*t, torch.float64), given, fast_mode=True)


def test_gradients_that_nobody_asked_for_are_left_out():
    x, down, y, up = operands(torch.float32, torch.float32)
    (alone,) = torch.autograd.grad(adapted(x.detach(), down, y.detach(), up, torch.float32).sum(), down)
    assert torch.equal(alone, torch.autograd.grad(adapted(x, down, y, up, torch.float32).sum(), down)[0])
    fixed = adapted(x, down.detach(), y, up.detach(), torch.float32)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(fixed.sum(), (x, y)))


def test_a_sum_with_a_zero_matrix_is_exact_and_the_base_output_is_kept():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        y = torch.randn(7, N_OUT).to(dtype)
        before, u = y.clone(), torch.randn(7, R)
        assert torch.equal(add_expanded(y, u, torch.zeros(R, N_OUT), 2.0), before)
        add_expanded(y, u, torch.ones(R, N_OUT), 2.0)
        assert torch.equal(y, before)


def test_the_activation_is_kept_in_its_own_sixteen_bit():
    x, down, y, up = operands(torch.bfloat16, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        adapted(x, down, y, up, torch.float32)
    wide = [t for t in kept if t.dtype == torch.float32]
    assert max(t.numel() for t in wide) == max(R * N_IN, 2 * 5 * R)
    assert any(t.data_ptr() == x.data_ptr() for t in kept)


@pytest.mark.parametrize("arch", ["mpo+quantum", "mpo"])
def test_start_is_bit_exact_under_autocast(arch):
    base = llama()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        expected = base(tokens()).logits
        model = get_peft_model(base, small_config(arch=arch))
        assert torch.equal(model(tokens()).logits, expected)


def test_autocast_multiplies_in_its_dtype_and_keeps_that_of_the_base_output():
    x, down, y, up = operands(torch.float32, torch.float32)
    layer = get_peft_model(torch.nn.Sequential(torch.nn.Linear(N_IN, N_OUT)), small_config(target_modules=["0"]))
    leaf = layer.base_model.model[0].encoder("default")
    assert leaf(x).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert leaf(x).dtype == torch.bfloat16
        total = adapted(x, down, y, up, torch.bfloat16)
    assert total.dtype == torch.float32
    torch.testing.assert_close(total, plain(x, down, y, up, torch.float32), rtol=0.05, atol=0.05)
    assert all(g.dtype == torch.float32 for g in torch.autograd.grad(total.sum(), (x, down, y, up)))
