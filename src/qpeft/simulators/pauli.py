r"""Gates and noise as real matrices on Pauli coefficients (Pauli transfer matrices).

A state of ``k`` wires is its ``4**k`` numbers ``s_P = tr(P ρ)``, an observable its coefficients in ``O = Σ c_P P``, so
``<O> = c·s``. Every channel ``E`` is then a real matrix that takes states forward and observables backward::

    s -> R s,        c -> c R,        R[P, Q] = tr(P E(Q)) / 2**k.

Letters stand in the order **I, Z, X, Y**. In this order most states and observables fill a leading part of the axis of
a wire: {I} where nothing is measured, {I, Z} while operators are diagonal, {I, Z, X} while they are real, so that one
number, the size of the axis, says which letters occur (:mod:`qpeft.simulators.pauli_lowering`).

A rotation by θ depends on 1, cos θ, sin θ; a controlled one also on cos θ/2 and sin θ/2. Depolarising noise is
diagonal here, damping adds a multiple of I to Z: with any noise, ``R`` has the same size as without.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from qpeft.circuits import Observable
from qpeft.circuits.circuit import GATES
from qpeft.simulators.noise import (
    AmplitudeDamping,
    Channel,
    Depolarizing,
    PhaseDamping,
    ReadoutError,
    ThermalRelaxation,
)

Matrix = NDArray[np.float64]

ORDER = "IZXY"
ONE_WIRE_FEATURES = 3  # 1, cos θ, sin θ
TWO_WIRE_FEATURES = 5  # 1, cos θ/2, sin θ/2, cos θ, sin θ

_PAULI = {
    "I": np.eye(2, dtype=complex),
    "Z": np.diag([1.0 + 0j, -1.0]),
    "X": np.array([[0, 1], [1, 0]], dtype=complex),
    "Y": np.array([[0, -1j], [1j, 0]]),
}
_FIXED = {
    **{name: _PAULI[name] for name in "XYZ"},
    "H": (_PAULI["X"] + _PAULI["Z"]) / np.sqrt(2),
    "S": np.diag([1, 1j]),
    "SDG": np.diag([1, -1j]),
    "T": np.diag([1, np.exp(0.25j * np.pi)]),
    "TDG": np.diag([1, np.exp(-0.25j * np.pi)]),
    "SWAP": np.eye(4, dtype=complex)[[0, 2, 1, 3]],
}


def _unitary(name: str, angle: float) -> NDArray[np.complex128]:
    if name in _FIXED:
        return _FIXED[name]
    target = {"CNOT": _PAULI["X"], "CZ": _PAULI["Z"]}.get(name)
    if target is None:
        target = np.cos(angle / 2) * _PAULI["I"] - 1j * np.sin(angle / 2) * _PAULI[name[-1]]
    if GATES[name].n_wires == 1:
        return target
    controlled = np.eye(4, dtype=complex)
    controlled[2:, 2:] = target
    return controlled


def transfer_matrix(unitary: NDArray[np.complex128]) -> Matrix:
    """``R`` of ``ρ -> U ρ U†``: (2**k, 2**k) -> (4**k, 4**k), for one or two wires."""
    letters = [_PAULI[p] for p in ORDER]
    basis = letters if len(unitary) == 2 else [np.kron(p, q) for p in letters for q in letters]
    moved = [unitary @ q @ unitary.conj().T for q in basis]
    return np.array([[np.trace(p @ m).real for m in moved] for p in basis]) / len(unitary)


@lru_cache(maxsize=64)
def gate_parts(name: str) -> tuple[Matrix, ...]:
    """Matrices ``A_f`` with ``R(θ) = Σ_f A_f feature_f(θ)``; a gate without angle has one."""
    if not GATES[name].has_angle:
        return (_clean(transfer_matrix(_unitary(name, 0.0))),)
    if GATES[name].n_wires == 1:
        return turn_parts(name[-1])
    angles = np.arange(TWO_WIRE_FEATURES) * 4 * np.pi / TWO_WIRE_FEATURES
    half = angles / 2
    features = np.stack([np.ones(5), np.cos(half), np.sin(half), np.cos(angles), np.sin(angles)], 1)
    values = np.array([transfer_matrix(_unitary(name, angle)) for angle in angles])
    return tuple(_clean(part) for part in np.tensordot(np.linalg.inv(features), values, 1))


@lru_cache(maxsize=64)
def turn_parts(letters: str) -> tuple[Matrix, ...]:
    """``A_f`` of ``exp(-iθ P / 2)`` for a Pauli string ``P`` on one or two wires; features 1, cos θ, sin θ."""
    string = _PAULI[letters[0]]
    for letter in letters[1:]:
        string = np.kron(string, _PAULI[letter])
    identity = np.eye(len(string), dtype=complex)
    angles = np.array([0.0, np.pi / 2, np.pi])
    values = [transfer_matrix(np.cos(a / 2) * identity - 1j * np.sin(a / 2) * string) for a in angles]
    constant = (values[0] + values[2]) / 2
    return _clean(constant), _clean((values[0] - values[2]) / 2), _clean(values[1] - constant)


def _clean(matrix: Matrix) -> Matrix:
    """Take away the rounding around 0, ±1/2 and ±1, which would hide the zeros."""
    near = np.round(2 * matrix) / 2
    return np.where(np.abs(matrix - near) < 1e-12, near, matrix) + 0.0  # no negative zeros


@lru_cache(maxsize=64)
def turn_pairs(letters: str) -> tuple[tuple[int, int], ...]:
    """Places ``(p, q)`` that it mixes: ``s_p -> cos θ s_p - sin θ s_q``, ``s_q -> sin θ s_p + cos θ s_q``."""
    return tuple((int(p), int(q)) for q, p in np.argwhere(turn_parts(letters)[2] > 0))


def channel_matrix(channel: Channel, n_wires: int) -> Matrix:
    """``R`` of a channel on the wires it acts on: (4**k, 4**k)."""
    match channel:
        case Depolarizing():
            return np.diag(np.array([1.0] + [1.0 - channel.p] * (4**n_wires - 1)))
        case AmplitudeDamping():
            return _damping(1.0 - channel.gamma, np.sqrt(1.0 - channel.gamma))
        case PhaseDamping():
            return _damping(1.0, np.sqrt(1.0 - channel.lam))
        case ThermalRelaxation():
            return _damping(np.exp(-channel.time / channel.t1), np.exp(-channel.time / channel.t2))


def _damping(kept: float, coherence: float) -> Matrix:
    matrix = np.diag([1.0, kept, coherence, coherence])
    matrix[1, 0] = 1.0 - kept
    return matrix


def observable_vectors(observable: Observable, readout: dict[int, ReadoutError]) -> dict[int, Matrix]:
    """Coefficients (4,) on every wire that is measured: the letter, as seen through the wire's readout error."""
    vectors = {}
    for letter, wire in observable.paulis:
        vector = np.zeros(4)
        vector[ORDER.index(letter)] = 1.0
        if wire in readout:
            vector[ORDER.index(letter)] = readout[wire].scale
            vector[0] = readout[wire].shift
        vectors[wire] = vector
    return vectors
