"""A chip as it was at one moment: its qubits, couplers, native gates, fidelities and times.

Chips drift and break: of Wukong's 72 qubits 66 could be used in 2024, and many couplers are listed with fidelity 0.
What cannot be used is never offered: :attr:`ChipSnapshot.live_qubits` and :attr:`ChipSnapshot.live_couplers` leave out
unavailable qubits, dead couplers, and couplers of unavailable qubits.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from qpeft.chips.qubits import WORST_CZ, Coupler, Qubit, positive_time
from qpeft.errors import InputError
from qpeft.simulators import NoiseModel


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
        date: When the numbers were taken, ISO 8601 (without a time zone: UTC), or empty where nobody said.
        sources: Where numbers come from: field -> source; a value that starts with "inferred" was not published.
        notes: What was changed while reading a vendor's answer, one sentence each.
        vendor: Fields of the vendor's answer that nothing here reads, kept for :meth:`to_origin`.

    Attributes:
        id: Twelve hexadecimal digits, a hash of everything physical: name, date, sources and notes do not count.

    Raises:
        InputError: Qubits out of order, missing or twice, a coupler of unknown qubits or twice, times that are not
            positive, a date that is none.
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
    notes: tuple[str, ...] = field(default=(), compare=False)
    vendor: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    id: str = field(init=False, compare=False)

    def __post_init__(self) -> None:
        qubits, couplers = tuple(self.qubits), tuple(self.couplers)
        object.__setattr__(self, "qubits", qubits)
        object.__setattr__(self, "couplers", couplers)
        if not qubits:
            raise InputError(f"chip {self.name!r} has no qubits; a chip has at least one.")
        for position, qubit in enumerate(qubits):
            if qubit.index != position:
                raise InputError(
                    f"qubit {qubit.index} of chip {self.name!r} stands at place {position}; list every qubit once, "
                    f"in the order of their numbers from 0, also those that cannot be used."
                )
        seen = set()
        for coupler in couplers:
            if coupler.qubits[1] >= len(qubits):
                raise InputError(
                    f"coupler {coupler.qubits} of chip {self.name!r} names a qubit that is not there; "
                    f"its qubits are 0 to {len(qubits) - 1}."
                )
            if coupler.qubits in seen:
                raise InputError(f"coupler {coupler.qubits} of chip {self.name!r} is listed twice; list it once.")
            seen.add(coupler.qubits)
        for name in ("one_qubit_ns", "two_qubit_ns", "readout_ns", "repetition_us"):
            positive_time(f"{name} of chip {self.name!r}", getattr(self, name))
        if self.date:
            _moment(self.date)
        object.__setattr__(self, "id", self._hash())

    def __hash__(self) -> int:
        return hash(self.id)

    def _hash(self) -> str:
        # What cannot be used says nothing about a result, and its numbers may be anything.
        record = [
            [[q.index, q.fidelity, q.p10, q.p01, q.t1_us, q.t2_us] for q in self.qubits if q.available],
            sorted([*c.qubits, c.fidelity, c.zz_khz] for c in self.live_couplers),
            [len(self.qubits), self.one_qubit_ns, self.two_qubit_ns, self.readout_ns, self.repetition_us],
        ]
        numbers = json.loads(json.dumps(record), parse_int=float)
        return hashlib.sha256(json.dumps(numbers).encode()).hexdigest()[:12]

    @property
    def live_qubits(self) -> tuple[int, ...]:
        """Numbers of the qubits that can be used."""
        return tuple(qubit.index for qubit in self.qubits if qubit.available)

    @property
    def live_couplers(self) -> tuple[Coupler, ...]:
        """Couplers that work, between qubits that can be used."""
        live = set(self.live_qubits)
        return tuple(c for c in self.couplers if c.fidelity > WORST_CZ and live.issuperset(c.qubits))

    @property
    def age_hours(self) -> float | None:
        """Hours since the numbers were taken, or ``None`` where nobody said when. 0 for a date in the future."""
        if not self.date:
            return None
        return max(0.0, (datetime.now(UTC) - _moment(self.date)).total_seconds() / 3600)

    @classmethod
    def fully_connected(
        cls,
        n_qubits: int,
        *,
        fidelity: float = 1.0,
        two_qubit_fidelity: float = 1.0,
        readout_error: float = 0.0,
        t1_us: float = 1e9,
        t2_us: float = 1e9,
        name: str = "ideal",
    ) -> ChipSnapshot:
        """A chip on which any two qubits are coupled, equal everywhere, by default without errors.

        Raises:
            InputError: A number out of range.

        Example:
            >>> len(ChipSnapshot.fully_connected(4, two_qubit_fidelity=0.99).live_couplers)
            6
        """
        if isinstance(n_qubits, bool) or not isinstance(n_qubits, int) or not 1 <= n_qubits <= 1000:
            raise InputError(f"a fully connected chip has 1 to 1000 qubits (got {n_qubits!r}); choose n_qubits.")
        qubits = tuple(Qubit(q, fidelity, readout_error, readout_error, t1_us, t2_us) for q in range(n_qubits))
        couplers = tuple(Coupler((a, b), two_qubit_fidelity) for b in range(n_qubits) for a in range(b))
        return cls(name, qubits, couplers)

    @classmethod
    def from_origin(cls, answer: object) -> ChipSnapshot:
        """Read Origin's own ``chipInfo`` answer (or its ``obj``), with or without the additions of :meth:`to_origin`.

        See :mod:`qpeft.chips.origin_answer` for what may be missing, and what is then assumed and noted.

        Raises:
            InputError: Anything that is not such an answer, in one sentence.
        """
        from qpeft.chips.origin_answer import read_answer

        return read_answer(answer)

    def to_origin(self) -> dict[str, Any]:
        """The snapshot in the shape of Origin's answer; :meth:`from_origin` undoes it."""
        from qpeft.chips.origin_answer import write_answer

        return write_answer(self)

    @classmethod
    def load(cls, path: str | Path) -> ChipSnapshot:
        """Read a JSON file that :meth:`save` wrote, or that holds an answer of Origin's ``chipInfo``.

        Raises:
            InputError: No such file, or not a chip.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else "it is not UTF-8 text"
            raise InputError(f"chip file {str(path)!r} cannot be read: {reason}; name a JSON file.") from error
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(f"chip file {str(path)!r} is not JSON ({error}); download it again.") from error
        try:
            return cls.from_origin(answer)
        except InputError as error:
            raise InputError(f"chip file {str(path)!r}: {error}") from error

    def save(self, path: str | Path) -> None:
        """Write the snapshot as JSON, in the shape of :meth:`to_origin`.

        Raises:
            InputError: The file cannot be written.
        """
        try:
            Path(path).write_text(json.dumps(self.to_origin(), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(f"chip file {str(path)!r} cannot be written: {error.strerror}; choose a path.") from error

    def noise_model(self) -> NoiseModel:
        """What the numbers mean for a circuit, for the whole chip; ``.select(qubits)`` places a circuit on it.

        RX and RY cost a pulse, RZ is free, and CZ works on live couplers alone. Nothing can be learned from a qubit
        that is not available: its readout is a coin.
        """
        return _noise_model(self)

    def summary(self) -> str:
        """Counts, medians and the largest connected part, in a few lines of text."""
        qubits = [qubit for qubit in self.qubits if qubit.available]
        live = self.live_couplers
        lines = [
            f"{self.name} ({self.id}), {self.date or 'no date'}",
            f"qubits    {len(qubits)} of {len(self.qubits)} usable; largest connected part {self.largest_part()}",
            f"couplers  {len(live)} of {len(self.couplers)} live",
        ]
        if qubits:
            error = median((q.p10 + q.p01) / 2 for q in qubits)
            t1, t2 = median(q.t1_us for q in qubits), median(q.t2_us for q in qubits)
            cz = f"CZ {median(c.fidelity for c in live):.4f}, " if live else ""
            pulse = median(q.fidelity for q in qubits)
            lines.append(f"medians   pulse {pulse:.4f}, {cz}readout {1 - error:.4f}, T1 {t1:.3g} us, T2 {t2:.3g} us")
        lines.append(
            f"times     pulse {self.one_qubit_ns:g} ns, CZ {self.two_qubit_ns:g} ns, readout {self.readout_ns:g} ns, "
            f"repetition {self.repetition_us:g} us"
        )
        guessed = [name for name, source in self.sources.items() if source.startswith("inferred")]
        if guessed:
            lines.append(f"inferred  {'; '.join(guessed)}")
        return "\n".join([*lines, *(f"note      {note}" for note in self.notes)])

    def largest_part(self) -> int:
        """Number of qubits of the largest part that live couplers hold together."""
        neighbours: dict[int, list[int]] = {qubit: [] for qubit in self.live_qubits}
        for coupler in self.live_couplers:
            a, b = coupler.qubits
            neighbours[a].append(b)
            neighbours[b].append(a)
        largest, seen = 0, set[int]()
        for start in neighbours:
            part = [start] if start not in seen else []
            seen.add(start)
            for qubit in part:  # grows while it is read
                fresh = [other for other in neighbours[qubit] if other not in seen]
                seen.update(fresh)
                part += fresh
            largest = max(largest, len(part))
        return largest


@lru_cache(maxsize=16)
def _noise_model(snapshot: ChipSnapshot) -> NoiseModel:
    qubits = snapshot.qubits
    return NoiseModel.from_snapshot(
        t1_us=[q.t1_us if q.available else math.inf for q in qubits],
        t2_us=[q.t2_us if q.available else math.inf for q in qubits],
        one_qubit_fidelity=[q.fidelity if q.available else 1.0 for q in qubits],
        two_qubit_fidelity={c.qubits: c.fidelity for c in snapshot.live_couplers},
        readout_fidelity=[(1 - q.p10, 1 - q.p01) if q.available else (0.5, 0.5) for q in qubits],
        one_qubit_ns=snapshot.one_qubit_ns,
        two_qubit_ns=snapshot.two_qubit_ns,
    )


def _moment(date: object) -> datetime:
    try:
        moment = datetime.fromisoformat(date)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InputError(f"the date {date!r} is not ISO 8601; write it like 2024-04-22T09:30:00+00:00.") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
