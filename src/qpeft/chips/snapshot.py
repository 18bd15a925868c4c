"""A chip as it was at one moment: its qubits, couplers, native gates, fidelities and times.

Chips drift and break: of Wukong's 72 qubits 66 could be used in 2024, and many couplers are listed with fidelity 0.
What cannot be used is never offered: :attr:`ChipSnapshot.live_qubits` and :attr:`ChipSnapshot.live_couplers` leave out
unavailable qubits, dead couplers, and couplers of unavailable qubits.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Qubit:
    """One qubit.

    Args:
        index: Its number on the chip.
        fidelity: Average fidelity of a one-qubit gate.
        p10: Probability of reading 1 where the state is |0>.
        p01: Probability of reading 0 where the state is |1>.
        t1_us: Relaxation time, microseconds.
        t2_us: Dephasing time, microseconds, at most twice T1.
        available: Whether the operator offers it.
        frequency_mhz: Transition frequency, where it is known.
    """

    index: int
    fidelity: float
    p10: float
    p01: float
    t1_us: float
    t2_us: float
    available: bool = True
    frequency_mhz: float | None = None


@dataclass(frozen=True)
class Coupler:
    """A pair of qubits that a CZ gate may act on, smaller number first, and its average gate fidelity (0: dead)."""

    qubits: tuple[int, int]
    fidelity: float


@dataclass(frozen=True)
class ChipSnapshot:
    """A chip at one moment.

    Args:
        name: What the vendor or the preset calls the chip.
        qubits: All qubits, in the order of their numbers, usable or not.
        couplers: All couplers, dead ones too.
        one_qubit_ns: Duration of a one-qubit pulse (a rotation about X or Y; rotations about Z take no time).
        two_qubit_ns: Duration of CZ.
        readout_ns: Duration of a measurement.
        repetition_us: Time from one shot to the next.
        date: When the numbers were taken, ISO 8601, or empty where nobody said.
        sources: Where numbers come from: field -> source; a value that starts with "inferred" was not published.
    """

    name: str
    qubits: tuple[Qubit, ...]
    couplers: tuple[Coupler, ...]
    one_qubit_ns: float = 30.0
    two_qubit_ns: float = 40.0
    readout_ns: float = 1000.0
    repetition_us: float = 200.0
    date: str = ""
    sources: dict[str, str] = field(default_factory=dict, compare=False)

    @property
    def live_qubits(self) -> tuple[int, ...]:
        """Numbers of the qubits that can be used."""
        return tuple(qubit.index for qubit in self.qubits if qubit.available)

    @property
    def live_couplers(self) -> tuple[Coupler, ...]:
        """Couplers that work, between qubits that can be used."""
        live = set(self.live_qubits)
        return tuple(c for c in self.couplers if c.fidelity > 0 and live.issuperset(c.qubits))
