"""The tensor network against the explicit contraction, the published sizes, and its own transposition."""

import logging
from math import prod

import pytest
import torch

from qpeft.errors import InputError
from qpeft.tensornet import MPO, Modes, choose_modes
from qpeft.tensornet.modes import PUBLISHED_MODES


def explicit_matrix(mpo: MPO, flat: torch.Tensor) -> torch.Tensor:
    """The definition, written out: four cores, three bonds."""
    cores, start = [], 0
    for o, right, left, i in mpo.core_shapes:
        cores.append(flat[start : start + o * right * left * i].reshape(o, right, left, i))
        start += o * right * left * i
    assert start == len(flat)
    w = torch.einsum("apxi,bqpj,csqk,dysl->abcdijkl", *cores)
    return w.reshape(mpo.outputs.padded, mpo.inputs.padded)[: mpo.outputs.size, : mpo.inputs.size]


def random_mpo(n_in: int, n_out: int, bond_dim: int, dtype=torch.float64) -> tuple[MPO, torch.Tensor]:
    mpo = MPO(choose_modes(n_in), choose_modes(n_out), bond_dim)
    flat = torch.empty(mpo.n_parameters, dtype=dtype)
    mpo.initialize(flat)
    return mpo, flat


@pytest.mark.parametrize(
    ("n_in", "n_out", "bond_dim"), [(256, 64, 3), (60, 256, 8), (30, 36, 2), (192, 576, 4), (7, 2, 3), (53, 127, 2)]
)
def test_equals_the_explicit_contraction(n_in, n_out, bond_dim):
    torch.manual_seed(0)
    mpo, flat = random_mpo(n_in, n_out, bond_dim)
    expected = explicit_matrix(mpo, flat)
    x = torch.randn(5, n_in, dtype=torch.float64)
    rows = torch.randn(3, n_out, dtype=torch.float64)
    torch.testing.assert_close(mpo.dense(flat), expected)
    torch.testing.assert_close(mpo.apply(flat, x), x @ expected.T)
    torch.testing.assert_close(mpo.apply_transposed(flat, rows), rows @ expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("n_in", "n_out", "bond_dim"), [(24, 36, 3), (53, 30, 2)], ids=["even", "padded"])
def test_gradient_equals_that_of_the_explicit_contraction(n_in, n_out, bond_dim, transposed):
    torch.manual_seed(1)
    mpo, flat = random_mpo(n_in, n_out, bond_dim)
    x = torch.randn(4, n_out if transposed else n_in, dtype=torch.float64)
    given = (x.requires_grad_(), flat.requires_grad_())

    def explicit(x, flat):
        matrix = explicit_matrix(mpo, flat)
        return x @ (matrix if transposed else matrix.T)

    apply = (lambda x, flat: mpo.apply_transposed(flat, x)) if transposed else (lambda x, flat: mpo.apply(flat, x))
    grads = [torch.autograd.grad(f(*given).square().sum(), given) for f in (explicit, apply)]
    torch.testing.assert_close(grads[0], grads[1])


def test_can_be_differentiated_twice():
    torch.manual_seed(2)
    mpo, flat = random_mpo(8, 6, 2)
    x = torch.randn(2, 6, dtype=torch.float64)
    given = (x.requires_grad_(), flat.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x, flat: mpo.apply_transposed(flat, x).sin(), given)


def test_published_operator_has_full_rank_and_its_parameter_count():
    torch.manual_seed(2)
    mpo, flat = random_mpo(3584, 256, 8)
    assert mpo.n_parameters == 4576
    assert mpo.bonds == (1, 8, 8, 8, 1)
    dense = mpo.dense(flat)
    eigenvalues = torch.linalg.eigvalsh(dense @ dense.T)
    assert eigenvalues.min() > 1e-8 * eigenvalues.max()


def test_last_core_zero_gives_the_zero_matrix():
    mpo = MPO(choose_modes(64), choose_modes(48), 4)
    flat = torch.full((mpo.n_parameters,), float("nan"))
    mpo.initialize(flat, last_core_zero=True)
    assert torch.count_nonzero(mpo.dense(flat)) == 0
    assert torch.count_nonzero(flat) == sum(mpo.core_sizes[:-1])


def test_cores_are_kaiming_normal_on_the_stored_matrix():
    torch.manual_seed(3)
    mpo, flat = random_mpo(4096, 4096, 8, dtype=torch.float32)
    for core in mpo.cores(flat):
        expected = (2 / core.shape[1]) ** 0.5
        assert core.std().item() == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize(("size", "factors"), PUBLISHED_MODES.items())
def test_published_sizes_keep_their_modes(size, factors):
    assert prod(factors) == size
    assert choose_modes(size) == Modes(size, factors)


@pytest.mark.parametrize(
    ("size", "factors"), [(576, (6, 6, 4, 4)), (192, (4, 4, 4, 3)), (1536, (8, 8, 6, 4)), (49152, (16, 16, 16, 12))]
)
def test_other_sizes_get_balanced_descending_factors(size, factors):
    assert choose_modes(size) == Modes(size, factors)


def test_any_size_is_covered_with_little_padding():
    for size in [*range(1, 700), 896, 1009, 8960, 11008, 14336, 32003, 50257, 151936]:
        modes = choose_modes(size)
        assert len(modes.factors) == 4
        assert list(modes.factors) == sorted(modes.factors, reverse=True)
        assert modes.padded == prod(modes.factors) >= size
        assert modes.padding <= max(4, 0.08 * size), modes


def test_padding_is_reported_once(caplog):
    with caplog.at_level(logging.INFO, logger="qpeft.tensornet.modes"):
        first = choose_modes(10007)
        choose_modes(10007)
    assert first.padding > 0
    assert [record.getMessage() for record in caplog.records if "10007" in record.getMessage()] == [
        f"width 10007 has no balanced factors; the tensor network pads it to {first.padded} = "
        + " x ".join(map(str, first.factors))
    ]


def test_given_factors_are_used_or_refused():
    assert choose_modes(576, (9, 4, 4, 4)).padding == 0
    assert choose_modes(570, (9, 4, 4, 4)).padding == 6
    for wrong in [(8, 4, 4, 4), (24, 24), (577, 1, 1, 0)]:
        with pytest.raises(InputError, match="factors of width 576"):
            choose_modes(576, wrong)
    with pytest.raises(InputError, match="at least 1"):
        choose_modes(0)
