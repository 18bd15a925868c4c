"""Readout correction by M3 (matrix-free measurement mitigation), for registers too wide to invert in full.

Readout errors of single qubits, ``A = A_0 ⊗ A_1 ⊗ ...`` with ``A_i[read, prepared]``, are undone only between outcomes
that were seen: the reduced system ``Ã x = p`` has as many rows as there are different outcomes, and columns scaled so
that they sum to 1. Where all outcomes were seen this is the inverse of ``A``.

Paper: Nation, Kang, Sundaresan, Gambetta, "Scalable mitigation of measurement errors on quantum computers", PRX
Quantum 2, 040326 (2021), arXiv 2108.12518.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qpeft.errors import InputError, MissingDependencyError


def m3_correct(counts: Tensor, confusion: Sequence[Tensor] | Tensor) -> Tensor:
    """Quasi-probabilities of what was there before it was read.

    Args:
        counts: How often each outcome was read, ``(rows, 2**k)``, wire 0 the most significant bit; every row holds at
            least one.
        confusion: Of each wire, the probability of reading a (row) where b (column) was prepared: ``(k, 2, 2)``.

    Returns:
        ``(rows, 2**k)``, float64; each row sums to 1, single entries may be below 0, those never seen are 0.

    Raises:
        InputError: Shapes that do not fit, rows without counts, columns that do not sum to 1, matrices that cannot be
            inverted.
        MissingDependencyError: mthree is not installed.

    Example:
        >>> matrix = torch.tensor([[0.98, 0.06], [0.02, 0.94]])
        >>> m3_correct(torch.tensor([[520, 480]]), [matrix]).round(decimals=4)
        tensor([[0.5000, 0.5000]], dtype=torch.float64)
    """
    try:
        from mthree import M3Mitigation
    except ImportError as error:
        raise MissingDependencyError('M3 needs mthree; install it with pip install "qpeft[m3]".') from error
    matrices = [np.asarray(torch.as_tensor(matrix).detach(), dtype=np.float64) for matrix in confusion]
    k = len(matrices)
    if counts.ndim != 2 or counts.shape[1] != 2**k or any(matrix.shape != (2, 2) for matrix in matrices):
        raise InputError(
            f"counts of shape {tuple(counts.shape)} do not fit {k} confusion matrices; give (rows, {2**k}) counts and "
            f"one 2 x 2 matrix a wire."
        )
    for wire, matrix in enumerate(matrices):
        proper = np.isfinite(matrix).all() and (matrix >= 0).all() and np.allclose(matrix.sum(0), 1, atol=1e-6)
        if not proper or abs(np.linalg.det(matrix)) < 1e-6:
            raise InputError(
                f"the confusion matrix of wire {wire} is {matrix.tolist()}; its columns must be probabilities that "
                f"sum to 1, and differ from each other."
            )
    seen = counts.detach().cpu().numpy()
    if (seen < 0).any() or (seen.sum(1) <= 0).any():
        raise InputError("counts must be 0 or more, with at least one in every row; leave out rows without shots.")
    mitigation = M3Mitigation(None)
    mitigation.cals_from_matrices(matrices)
    result = torch.zeros(counts.shape, dtype=torch.float64)
    for row, histogram in enumerate(seen):
        outcomes = np.flatnonzero(histogram)
        words = {format(outcome, f"0{k}b"): int(histogram[outcome]) for outcome in outcomes}
        # bit strings are read from the right there, so the last wire comes first; distance k keeps all pairs
        corrected = mitigation.apply_correction(words, list(range(k))[::-1], distance=k)
        result[row, torch.from_numpy(outcomes)] = torch.tensor([float(corrected[word]) for word in words]).double()
    return result
