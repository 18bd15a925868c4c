r"""Shots: what a quantum computer would return, for a whole batch at once and from a seed.

A shot reads one bit on every wire. ``S`` shots of a sample are drawn together, as counts of bit strings: the tree of
binomials

    counts(b_0 ... b_l 0) ~ Binomial(counts(b_0 ... b_l), p(b_0 ... b_l 0) / p(b_0 ... b_l))

has the multinomial distribution and costs the same for 10 shots and for 10,000. The probabilities are exact: from the
state vector without noise, and with noise as the Walsh-Hadamard transform of the expectations of all Z strings,

    p(b) = 2**-n Σ_m (-1)**|b & m| <Z^m>,

which brings in the readout errors by itself. Where only single expectations are used, and not how they vary together,
one binomial for each observable has the same distribution of every single estimate, and is much faster.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from qpeft.circuits import Circuit, Observable
from qpeft.errors import InputError
from qpeft.simulators.angles import check_angles
from qpeft.simulators.bases import Setting, rotated, settings
from qpeft.simulators.density import run_noisy
from qpeft.simulators.exact import run
from qpeft.simulators.noise import NoiseModel
from qpeft.simulators.outcomes import probabilities

MAX_SAMPLED = 20  # wires that are read together: 2**20 probabilities for every sample

_FEW_WIRES = 6  # up to here expectations of all strings are cheaper than the whole state
_CHUNK_ELEMENTS = 1 << 22


def sample(
    circuit: Circuit,
    inputs: Tensor,
    weights: Tensor,
    shots: int,
    seed: int | Tensor,
    noise: NoiseModel | None = None,
    basis: str | None = None,
) -> Tensor:
    """Count the bit strings that a number of shots reads on all wires.

    Args:
        circuit: What to run; its observables do not matter.
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians.
        shots: Shots of every sample.
        seed: Whole number from 0 to 2**63 - 1. Equal seeds give equal counts for equal arguments (on one device).
        noise: Noise of gates and readout, or ``None``.
        basis: One letter for each wire: X, Y or Z, the Pauli operator whose eigenvalue +1 is read as 0; ``None`` means
            Z everywhere. The change of basis is free of noise.

    Returns:
        ``(batch, 2**n_qubits)`` whole numbers; wire 0 is the most significant bit. Not differentiable.

    Raises:
        InputError: An argument that does not fit, or too many wires (20; with noise 10).

    Example:
        >>> from qpeft.circuits import Gate
        >>> bell = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))))
        >>> counts = sample(bell, torch.zeros(1, 0), torch.zeros(0), shots=1000, seed=0)
        >>> int(counts[0, 0b00] + counts[0, 0b11])
        1000
    """
    letters = "Z" * circuit.n_qubits if basis is None else basis.upper()
    if len(letters) != circuit.n_qubits or not set(letters) <= set("XYZ"):
        raise InputError(f"basis must be one of X, Y, Z for each of the {circuit.n_qubits} wires (got {basis!r}).")
    generator = _generator(shots, seed, inputs)
    setting = Setting(tuple(enumerate(letters)), ())
    return _counts(circuit, inputs, weights, shots, generator, noise, setting)


def noisy_probabilities(circuit: Circuit, inputs: Tensor, weights: Tensor, noise: NoiseModel) -> Tensor:
    """Evaluate what :func:`sample` draws from: probabilities of all bit strings, as measured with noise.

    Args:
        circuit: What to run, at most 10 qubits; its observables do not matter.
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians.
        noise: Noise of gates and readout.

    Returns:
        ``(batch, 2**n_qubits)``, float64; wire 0 is the most significant bit. Differentiable once.

    Raises:
        InputError: An argument that does not fit, or too many qubits.

    Example:
        >>> from qpeft.circuits import Gate
        >>> from qpeft.simulators import ReadoutError
        >>> flip = Circuit(1, (Gate("X", 0),))
        >>> noisy_probabilities(flip, torch.zeros(1, 0), torch.zeros(0), NoiseModel(readout=ReadoutError(0.0, 0.25)))
        tensor([[0.2500, 0.7500]], dtype=torch.float64)
    """
    check_angles(circuit, inputs, weights)
    return _probabilities(circuit, inputs, weights, noise, tuple((wire, "Z") for wire in range(circuit.n_qubits)))


def bit_strings(counts: Tensor) -> Tensor:
    """Counts ``(batch, 2**n)`` of equally many shots as the bits of every shot, ``(batch, shots, n)`` of 0 and 1.

    The shots of a sample come in the order of their bit strings, not in one of time.

    Example:
        >>> bit_strings(torch.tensor([[1, 0, 0, 2]])).tolist()
        [[[0, 0], [1, 1], [1, 1]]]
    """
    batch, size = counts.shape
    n = size.bit_length() - 1
    outcomes = torch.arange(size, device=counts.device).repeat(batch)
    strings = outcomes.repeat_interleave(counts.flatten())  # (batch * shots,)
    shifts = torch.arange(n - 1, -1, -1, device=counts.device)
    return (strings[:, None] >> shifts & 1).to(torch.uint8).view(batch, -1, n)


def run_shots(
    circuit: Circuit,
    inputs: Tensor,
    weights: Tensor,
    shots: int,
    seed: int | Tensor,
    noise: NoiseModel | None = None,
    marginals: bool = False,
) -> Tensor:
    """Estimate the expectations of a circuit from shots, without bias.

    Observables that can be read in the same basis (no wire in two different letters) are estimated from the same
    ``shots`` shots; every further basis gets as many of its own. Estimates of one basis are correlated as on a chip.

    Args:
        circuit: What to run.
        inputs: ``(batch, n_inputs)``, radians before the circuit's scales.
        weights: ``(n_weights,)``, radians.
        shots: Shots of every sample in every basis.
        seed: Whole number from 0 to 2**63 - 1. Equal seeds give equal estimates for equal arguments (on one device).
        noise: Noise of gates and readout, or ``None``.
        marginals: Draw every observable by itself: each estimate has the right distribution, but those of one sample
            are independent, as if each observable had shots of its own. Costs little more than the exact expectations,
            and sets no limit to the number of wires that are read.

    Returns:
        ``(batch, n_observables)``: float64 if ``inputs`` are float64, else float32. Not differentiable by itself; a
        :class:`~qpeft.layer.QuantumLayer` with ``executor="shots"`` is.

    Raises:
        InputError: An argument that does not fit, or too many wires in one basis (20; with noise 10).

    Example:
        >>> from qpeft.circuits import Gate
        >>> circuit = Circuit(1, (Gate("RY", 0, 0.5),), ("Z0", "X0"))
        >>> run_shots(circuit, torch.zeros(1, 0), torch.zeros(0), shots=100_000, seed=1).round(decimals=1)
        tensor([[0.9000, 0.5000]])
    """
    generator = _generator(shots, seed, inputs)
    inputs, weights = inputs.detach(), weights.detach()
    if marginals:
        exact = run(circuit, inputs, weights) if noise is None else run_noisy(circuit, inputs, weights, noise)
        up = ((1 + exact.double()) / 2).clamp_(0, 1)
        hits = torch.binomial(torch.full_like(up, float(shots)), up, generator=generator)
        return (hits * (2 / shots) - 1).to(exact.dtype)
    check_angles(circuit, inputs, weights)
    dtype = torch.float64 if inputs.dtype == torch.float64 else torch.float32
    out = torch.empty(inputs.shape[0], circuit.n_observables, dtype=dtype, device=inputs.device)
    for setting in settings(circuit.key):
        counts = _counts(circuit, inputs, weights, shots, generator, noise, setting)
        signs = setting.signs().to(counts.device)  # (outcomes, observables)
        out[:, list(setting.places)] = (counts.double() @ signs / shots).to(dtype)
    return out


def _generator(shots: int, seed: int | Tensor, like: Tensor) -> torch.Generator:
    if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
        raise InputError(f"shots must be a whole number of at least 1 (got {shots!r}); take 1000, for example.")
    if isinstance(seed, Tensor) and not seed.is_floating_point() and seed.numel() == 1:
        seed = int(seed)
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise InputError(f"seed must be a whole number from 0 to 2**63 - 1 (got {seed!r}); take 0, for example.")
    return torch.Generator(like.device).manual_seed(seed)


def _counts(
    circuit: Circuit,
    inputs: Tensor,
    weights: Tensor,
    shots: int,
    generator: torch.Generator,
    noise: NoiseModel | None,
    setting: Setting,
) -> Tensor:
    """Counts of what is read on some wires: (batch, 2**wires)."""
    check_angles(circuit, inputs, weights)
    size = 1 << len(setting.wires)
    if len(setting.wires) > MAX_SAMPLED:
        raise InputError(
            f"at most {MAX_SAMPLED} wires can be read together (got {len(setting.wires)}); "
            f"use fewer, or run_shots with marginals=True."
        )
    inputs, weights = inputs.detach(), weights.detach()
    counts = torch.empty(inputs.shape[0], size, dtype=torch.int64, device=inputs.device)
    length = max(1, _CHUNK_ELEMENTS // max(size, 1 << circuit.n_qubits if noise is None else 1))
    for start in range(0, inputs.shape[0], length):
        part = slice(start, start + length)
        counts[part] = _draw(_probabilities(circuit, inputs[part], weights, noise, setting.wires), shots, generator)
    return counts


def _probabilities(
    circuit: Circuit, inputs: Tensor, weights: Tensor, noise: NoiseModel | None, wires: tuple[tuple[int, str], ...]
) -> Tensor:
    """Probabilities of what is read on some wires: (batch, 2**wires), float64."""
    n, k = circuit.n_qubits, len(wires)
    if noise is None and (k == n or k > _FEW_WIRES):
        joint = probabilities(rotated(circuit.key, wires), inputs, weights).double()
        left = [wire for wire in range(n) if wire not in dict(wires)]
        grid = joint.view(-1, *[2] * n)
        return grid.sum([wire + 1 for wire in left]).view(-1, 1 << k) if left else joint
    strings = _strings(circuit.key, wires)
    values = run(strings, inputs, weights) if noise is None else run_noisy(strings, inputs, weights, noise)
    found = torch.cat([values.new_ones(len(values), 1), values], 1).double()
    for bit in range(k):  # Walsh-Hadamard transform
        pairs = found.view(len(found), 1 << bit, 2, -1)
        plus, minus = pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]
        found = torch.stack([plus, minus], 2).view(len(found), -1)
    return found / (1 << k)


@lru_cache(maxsize=256)
def _strings(key: str, wires: tuple[tuple[int, str], ...]) -> Circuit:
    """The circuit with an observable for every non-empty subset of the wires, in the order of the bit masks."""
    k = len(wires)
    texts = (
        " ".join(f"{letter}{wire}" for i, (wire, letter) in enumerate(wires) if mask >> (k - 1 - i) & 1)
        for mask in range(1, 1 << k)
    )
    return replace(Circuit.from_key(key), observables=tuple(map(Observable, texts)))


def _draw(probabilities: Tensor, shots: int, generator: torch.Generator) -> Tensor:
    """Multinomial counts by the tree of binomials: (batch, 2**k) -> (batch, 2**k)."""
    levels = [probabilities.clamp(min=0)]
    while levels[-1].shape[1] > 1:
        levels.append(levels[-1].view(len(probabilities), -1, 2).sum(2))
    counts = torch.full_like(levels.pop(), float(shots))
    while levels:
        level = levels.pop()
        pairs = level.view(len(level), -1, 2)
        share = (pairs[:, :, 0] / pairs.sum(2)).nan_to_num_(0.0).clamp_(0, 1)
        first = torch.binomial(counts, share, generator=generator)
        counts = torch.stack([first, counts - first], 2).view(len(level), -1)
    return counts.long()
