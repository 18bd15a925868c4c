"""The parts of a chip, with the numbers that say how good they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from qpeft.errors import InputError

WORST_PULSE = 0.5
WORST_CZ = 0.25
"""Average fidelity of a gate that forgets its input, ``1 / 2**k``: what is not better is no gate."""


@dataclass(frozen=True)
class Qubit:
    """One qubit. The numbers of one that is not available are not looked at.

    Args:
        index: Its number on the chip.
        fidelity: Average fidelity of a one-qubit gate.
        p10: Probability of reading 1 where the state is |0>.
        p01: Probability of reading 0 where the state is |1>.
        t1_us: Relaxation time, microseconds.
        t2_us: Dephasing time, microseconds, at most twice T1.
        available: Whether the operator offers it.
        frequency_mhz: Transition frequency, where it is known.

    Raises:
        InputError: Of an available qubit a number out of range, NaN, or ``t2_us > 2 * t1_us``.
    """

    index: int
    fidelity: float
    p10: float
    p01: float
    t1_us: float
    t2_us: float
    available: bool = True
    frequency_mhz: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.index, bool) or not isinstance(self.index, int) or self.index < 0:
            raise InputError(f"a qubit has the number {self.index!r}; numbers are whole and start at 0.")
        if not self.available:
            return
        where = f"of qubit {self.index}"
        if _fraction(f"the gate fidelity {where}", self.fidelity) <= WORST_PULSE:
            raise InputError(
                f"the gate fidelity {where} is {self.fidelity:g}, not better than chance ({WORST_PULSE:g}); "
                f"mark the qubit as not available."
            )
        _fraction(f"the readout error p10 {where}", self.p10)
        _fraction(f"the readout error p01 {where}", self.p01)
        positive_time(f"T1 {where}", self.t1_us)
        positive_time(f"T2 {where}", self.t2_us)
        if self.t2_us > 2 * self.t1_us:
            raise InputError(
                f"T2 {where} is {self.t2_us:g} us, longer than 2 T1 = {2 * self.t1_us:g} us, which no state can "
                f"show; check the units, or take T2 = 2 T1."
            )


@dataclass(frozen=True)
class Coupler:
    """A pair of qubits that a CZ gate may act on, smaller number first, and its average gate fidelity (0: dead).

    Args:
        qubits: The pair; it is put in order.
        fidelity: Average fidelity of CZ. Up to 0.25, what a gate would have that forgets its input, it counts as dead.
        zz_khz: Residual ZZ interaction while no gate runs: both qubits waiting for ``t`` collect the conditional phase
            ``2π zz t``. 0 where nobody has measured it.

    Raises:
        InputError: Not two different qubits, a fidelity out of [0, 1], an interaction that is not finite.
    """

    qubits: tuple[int, int]
    fidelity: float
    zz_khz: float = 0.0

    def __post_init__(self) -> None:
        pair = tuple(self.qubits)
        right = len(pair) == 2 and pair[0] != pair[1]
        if not right or any(isinstance(q, bool) or not isinstance(q, int) or q < 0 for q in pair):
            raise InputError(f"a coupler joins the qubits {pair!r}; name two different qubits.")
        object.__setattr__(self, "qubits", (min(pair), max(pair)))
        _fraction(f"the fidelity of the coupler {pair}", self.fidelity)
        if (
            isinstance(self.zz_khz, bool)
            or not isinstance(self.zz_khz, (int, float))
            or not math.isfinite(self.zz_khz)
        ):
            raise InputError(f"zz_khz of the coupler {pair} must be a finite number (got {self.zz_khz!r}).")


def _fraction(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 <= value <= 1.0:
        raise InputError(f"{name} must be a number from 0 to 1 (got {value!r}); correct it.")
    return float(value)


def positive_time(name: str, value: object) -> float:
    """A time as a number, or an InputError that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < 1e15:
        raise InputError(f"{name} must be a positive time (got {value!r}); correct it.")
    return float(value)
