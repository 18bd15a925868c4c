"""M3 against the exact inverse of the readout errors."""

import functools

import numpy as np
import pytest
import torch

from qpeft.errors import InputError
from qpeft.qpu.m3 import m3_correct

pytest.importorskip("mthree")


def _matrices(k, seed=0):
    rng = np.random.default_rng(seed)
    p10, p01 = rng.uniform(0.01, 0.08, k), rng.uniform(0.02, 0.15, k)
    return torch.tensor([[[1 - a, b], [a, 1 - b]] for a, b in zip(p10, p01, strict=True)], dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_it_is_the_exact_inverse_where_all_outcomes_were_seen(k):
    matrices = _matrices(k)
    counts = torch.from_numpy(np.random.default_rng(1).integers(1, 500, (3, 2**k)))
    full = functools.reduce(torch.kron, matrices)  # wire 0 most significant
    expected = torch.linalg.solve(full, (counts / counts.sum(1, keepdim=True)).double().T).T
    torch.testing.assert_close(m3_correct(counts, matrices), expected, atol=1e-6, rtol=0)


def test_outcomes_never_seen_stay_empty_and_each_row_sums_to_one():
    counts = torch.zeros(1, 2**12, dtype=torch.int64)
    counts[0, [0, 4094, 4095]] = torch.tensor([700, 40, 260])
    quasi = m3_correct(counts, _matrices(12))
    assert quasi.nonzero()[:, 1].tolist() == [0, 4094, 4095]
    assert float(quasi.sum()) == pytest.approx(1, abs=1e-6)  # solved in single precision
    assert float(quasi[0, 4095]) > 0.27  # some of its shots were read as 4094


@pytest.mark.parametrize(
    ("counts", "matrices", "message"),
    [
        (torch.ones(1, 3), _matrices(1), "do not fit 1 confusion matrices"),
        (torch.ones(2), _matrices(1), "do not fit"),
        (torch.zeros(1, 2), _matrices(1), "at least one in every row"),
        (torch.ones(1, 2), torch.tensor([[[0.9, 0.2], [0.2, 0.8]]]), "columns must be probabilities"),
        (torch.ones(1, 2), torch.tensor([[[0.5, 0.5], [0.5, 0.5]]]), "differ from each other"),
        (torch.ones(1, 2), torch.tensor([[[float("nan"), 0.5], [0.5, 0.5]]]), "columns must be probabilities"),
    ],
)
def test_bad_input_is_refused(counts, matrices, message):
    with pytest.raises(InputError, match=message):
        m3_correct(counts, matrices)
