r"""What noise does to a circuit, as a value: channels after gates and errors of the readout.

After each gate, the channels of all rules that match it act in the order of the rules; then wires are measured, and
each bit flips with its readout probabilities. With ``ρ`` a state of ``k`` wires::

    Depolarizing(p)            ρ -> (1 - p) ρ + p tr(ρ) I / 2**k
    AmplitudeDamping(γ)        ρ_11 -> (1 - γ) ρ_11,  ρ_00 -> ρ_00 + γ ρ_11,  ρ_01 -> √(1 - γ) ρ_01
    PhaseDamping(λ)            ρ_01 -> √(1 - λ) ρ_01
    ThermalRelaxation(t)       ρ_11 -> exp(-t/T1) ρ_11,  ρ_00 -> ρ_00 + (1 - exp(-t/T1)) ρ_11,  ρ_01 -> exp(-t/T2) ρ_01
    ReadoutError(p10, p01)     <Z> -> (p01 - p10) + (1 - p10 - p01) <Z>

Other libraries count depolarising noise differently. ``p`` here mixes in the whole maximally mixed state, so that one
of the ``4**k - 1`` Pauli errors strikes with probability ``p (4**k - 1) / 4**k`` (3p/4 on one wire, 15p/16 on two),
and the average gate fidelity is ``F = 1 - p (2**k - 1) / 2**k`` (1 - p/2 and 1 - 3p/4).

Papers: Nielsen and Chuang, "Quantum Computation and Quantum Information", section 8.3 (channels); M. A. Nielsen,
arXiv quant-ph/0205035 (average fidelity).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from qpeft.circuits import Circuit, Gate
from qpeft.circuits.circuit import GATES
from qpeft.errors import InputError

ONE_QUBIT_GATES = tuple(name for name, kind in GATES.items() if kind.n_wires == 1)
TWO_QUBIT_GATES = tuple(name for name, kind in GATES.items() if kind.n_wires == 2)
FRAME_GATES = ("RZ", "Z", "S", "SDG", "T", "TDG")
"""Gates that superconducting chips carry out by redefining a phase: no pulse, no time, no error."""

_SYMMETRIC = ("CZ", "SWAP")
# Pulses of a chip whose two-qubit gate is CZ: CZ gates, one-qubit pulses on the first wire, on the second. RZ is free;
# CNOT = H CZ H, CRZ(θ) = RZ(θ/2) CNOT RZ(-θ/2) CNOT, CRY(θ) = RY(θ/2) CZ RY(-θ/2) CZ, SWAP = CNOT CNOT CNOT.
_PULSES = {"CZ": (1, 0, 0), "CNOT": (1, 0, 2), "CRX": (2, 0, 2), "CRY": (2, 0, 2), "CRZ": (2, 0, 4), "SWAP": (3, 2, 4)}


def _number(name: str, value: object, low: float, high: float, limit: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise InputError(f"{name} must be {limit} (got {value!r}); correct the number.")
    return float(value)


def _probability(name: str, value: object) -> float:
    return _number(name, value, 0.0, 1.0, "a probability from 0 to 1")


@dataclass(frozen=True)
class Depolarizing:
    """``ρ -> (1 - p) ρ + p tr(ρ) I / 2**k``: with probability ``p`` everything known about the wires is lost.

    Args:
        p: From 0 to 1.
        joint: Whether a two-qubit gate is followed by one channel on both its wires together (k = 2), or by one on
            each wire (k = 1 twice).

    Raises:
        InputError: ``p`` out of range.
    """

    kind: ClassVar[str] = "depolarizing"
    p: float
    joint: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "p", _probability("the depolarising p", self.p))


@dataclass(frozen=True)
class AmplitudeDamping:
    """Decay from |1> to |0> with probability ``gamma``, on each wire of the gate.

    Raises:
        InputError: ``gamma`` out of [0, 1].
    """

    kind: ClassVar[str] = "amplitude_damping"
    gamma: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", _probability("the amplitude damping gamma", self.gamma))


@dataclass(frozen=True)
class PhaseDamping:
    """Loss of phase, ``ρ_01 -> √(1 - lam) ρ_01``, on each wire of the gate; Z strikes with ``(1 - √(1 - lam)) / 2``.

    Raises:
        InputError: ``lam`` out of [0, 1].
    """

    kind: ClassVar[str] = "phase_damping"
    lam: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", _probability("the phase damping lambda", self.lam))


@dataclass(frozen=True)
class ThermalRelaxation:
    """Decay towards |0> with time constant ``t1`` and loss of phase with ``t2``, during ``time``, on each wire.

    The same as amplitude damping ``γ = 1 - exp(-time/t1)`` and phase damping ``λ = 1 - exp(time/t1 - 2 time/t2)``. The
    environment is cold: there is no excitation.

    Args:
        t1: Relaxation time, in any unit.
        t2: Dephasing time in the same unit, at most ``2 * t1``.
        time: Duration of the gate in the same unit.

    Raises:
        InputError: A time that is not positive (``time`` may be 0), or ``t2 > 2 * t1``.
    """

    kind: ClassVar[str] = "thermal_relaxation"
    t1: float
    t2: float
    time: float

    def __post_init__(self) -> None:
        for name in ("t1", "t2"):
            value = _number(name.upper(), getattr(self, name), 0.0, math.inf, "a positive time")
            if value == 0.0:
                raise InputError(f"{name.upper()} must be a positive time (got 0); correct the number.")
            object.__setattr__(self, name, value)
        time = _number("the duration", self.time, 0.0, 1e300, "a finite time of 0 or more")
        object.__setattr__(self, "time", time)
        if self.t2 > 2 * self.t1:
            raise InputError(
                f"T2 = {self.t2:g} is longer than 2 T1 = {2 * self.t1:g}, which no state can show; "
                f"check the units, or take T2 = 2 T1."
            )


Channel = Depolarizing | AmplitudeDamping | PhaseDamping | ThermalRelaxation
_CHANNELS: dict[str, type[Channel]] = {
    kind.kind: kind for kind in (Depolarizing, AmplitudeDamping, PhaseDamping, ThermalRelaxation)
}


@dataclass(frozen=True)
class ReadoutError:
    """Flips of a measured bit.

    Args:
        p10: Probability of reading 1 where the state is |0>, ``p(1|0)``.
        p01: Probability of reading 0 where the state is |1>, ``p(0|1)``.

    Raises:
        InputError: A probability out of range.

    Example:
        >>> ReadoutError(0.0, 0.25).shift, ReadoutError(0.0, 0.25).scale
        (0.25, 0.75)
    """

    p10: float
    p01: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "p10", _probability("the readout error p(1|0)", self.p10))
        object.__setattr__(self, "p01", _probability("the readout error p(0|1)", self.p01))

    @property
    def shift(self) -> float:
        """``a`` in ``<Z> -> a + b <Z>``."""
        return self.p01 - self.p10

    @property
    def scale(self) -> float:
        """``b`` in ``<Z> -> a + b <Z>``."""
        return 1.0 - self.p10 - self.p01


@dataclass(frozen=True)
class GateNoise:
    """One rule: which channel acts after which gates.

    Args:
        channel: The channel.
        gates: Names of the gates it follows; ``None`` means all.
        wires: The wires those gates act on, control first (CZ and SWAP match in either order); ``None`` means any.
        qubit: The one wire it acts on, wherever a matching gate touches that wire; ``None`` means all of the gate's.
        place: Position in the circuit of the only gate it follows, as for a wire that waits there for another one;
            ``None`` means every matching gate.

    Raises:
        InputError: Unknown gate, or wires or a place that do not fit.

    Example:
        >>> GateNoise(Depolarizing(0.04, joint=True), gates="CZ", wires=(0, 1)).matches(Gate("CZ", (1, 0)))
        True
    """

    channel: Channel
    gates: tuple[str, ...] | None = None
    wires: tuple[int, ...] | None = None
    qubit: int | None = None
    place: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.channel, Channel):
            raise InputError(f"{self.channel!r} is not a channel; the channels are {', '.join(_CHANNELS)}.")
        if self.gates is not None:
            given = [self.gates] if isinstance(self.gates, str) else self.gates
            names = tuple(str(name).upper() for name in given)
            unknown = [name for name in names if name not in GATES]
            if unknown or not names:
                raise InputError(
                    f"unknown gate {', '.join(unknown)!r} in a noise rule; the gates are {' '.join(GATES)}."
                )
            object.__setattr__(self, "gates", names)
        if self.wires is not None:
            wires = (self.wires,) if isinstance(self.wires, int) else tuple(self.wires)
            for wire in wires:
                _check_wire(wire)
            if len(set(wires)) != len(wires) or len(wires) not in (1, 2):
                raise InputError(f"a noise rule has the wires {wires}; give the one or two wires of a gate.")
            if self.gates and all(GATES[name].n_wires != len(wires) for name in self.gates):
                raise InputError(
                    f"a noise rule has {len(wires)} wire(s) {wires} for {', '.join(self.gates)}; "
                    f"give as many as the gates act on."
                )
            object.__setattr__(self, "wires", wires)
        if self.qubit is not None:
            _check_wire(self.qubit)
            if self.wires is not None and self.qubit not in self.wires:
                raise InputError(
                    f"a noise rule acts on qubit {self.qubit}, which is not among its wires {self.wires}; "
                    f"name one of them."
                )
        place = self.place
        if place is not None and (isinstance(place, bool) or not isinstance(place, int) or place < 0):
            raise InputError(f"a noise rule has the place {place!r}; places are positions of gates, from 0 on.")

    def matches(self, gate: Gate, place: int | None = None) -> bool:
        """Whether the rule says anything about this gate, which stands at this place of its circuit."""
        if self.place is not None and self.place != place:
            return False
        if self.gates is not None and gate.name not in self.gates:
            return False
        if self.qubit is not None and self.qubit not in gate.wires:
            return False
        turned = gate.wires[::-1] if gate.name in _SYMMETRIC else gate.wires
        return self.wires is None or self.wires in (gate.wires, turned)

    def _wires(self) -> set[int]:
        return {*(self.wires or ()), *(() if self.qubit is None else (self.qubit,))}


def _check_wire(wire: object) -> None:
    if isinstance(wire, bool) or not isinstance(wire, int) or wire < 0:
        raise InputError(f"a noise model names the wire {wire!r}; wires are whole numbers of 0 or more.")


@dataclass(frozen=True)
class NoiseModel:
    """An immutable noise model: rules for gates, errors of the readout, and what the chip has.

    Nothing happens to a wire before the first gate, or between the last gate and the readout, and while it waits only
    what rules for a place of the circuit say.

    Args:
        rules: What acts after gates. All rules that match a gate apply, in this order.
        readout: One error for all wires, one for each wire, or ``None``.
        n_qubits: Number of wires the model describes; ``None`` means any.
        couplers: Pairs of wires that two-qubit gates may act on (in either order); ``None`` means all.

    Attributes:
        key: The model as compact JSON text; equal models have equal keys, and :meth:`from_key` undoes it.

    Raises:
        InputError: A wire beyond ``n_qubits``, or a readout list of another length.

    Example:
        >>> noise = NoiseModel(
        ...     [GateNoise(Depolarizing(0.01)), GateNoise(AmplitudeDamping(0.02), gates=["CZ", "CRZ"], qubit=1)],
        ...     readout=ReadoutError(0.02, 0.05),
        ... )
        >>> noise.channels_after(Gate("CZ", (0, 1)))
        ((Depolarizing(p=0.01, joint=False), (0,)), (Depolarizing(p=0.01, joint=False), (1,)), \
(AmplitudeDamping(gamma=0.02), (1,)))
    """

    rules: tuple[GateNoise, ...] = ()
    readout: ReadoutError | tuple[ReadoutError, ...] | None = None
    n_qubits: int | None = None
    couplers: tuple[tuple[int, int], ...] | None = None
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rules = (self.rules,) if isinstance(self.rules, GateNoise) else tuple(self.rules)
        for rule in rules:
            if not isinstance(rule, GateNoise):
                raise InputError(f"{rule!r} is not a noise rule; write GateNoise(channel, gates=..., wires=...).")
        readout = self.readout
        if readout is not None and not isinstance(readout, ReadoutError):
            readout = tuple(readout)
            if not all(isinstance(error, ReadoutError) for error in readout):
                raise InputError("readout must hold ReadoutError(p10, p01), one for each wire; see ReadoutError.")
        n = self.n_qubits
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InputError(f"a noise model describes at least 1 qubit (got n_qubits={n!r}); or None for any number.")
        if isinstance(readout, tuple):
            if n is None:
                n = len(readout)
            if len(readout) != n:
                raise InputError(f"readout has {len(readout)} errors for {n} qubits; give one for each.")
        couplers = self.couplers
        if couplers is not None:
            couplers = tuple(sorted({(min(pair), max(pair)) for pair in couplers}))
        named = {wire for rule in rules for wire in rule._wires()} | {wire for pair in couplers or () for wire in pair}
        if n is not None and named and max(named) >= n:
            raise InputError(f"the noise model names wire {max(named)}, but its wires are 0 to {n - 1}; correct it.")
        for name, value in (("rules", rules), ("readout", readout), ("n_qubits", n), ("couplers", couplers)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "key", self._encode())

    def _encode(self) -> str:
        rules = [
            [r.channel.kind, asdict(r.channel), r.gates, r.wires, r.qubit, *([] if r.place is None else [r.place])]
            for r in self.rules
        ]
        readout: Any = None
        if self.readout is not None:
            single = isinstance(self.readout, ReadoutError)
            errors = (self.readout,) if isinstance(self.readout, ReadoutError) else self.readout
            readout = [single, [[error.p10, error.p01] for error in errors]]
        record = {"r": rules, "m": readout, "n": self.n_qubits, "c": self.couplers}
        return json.dumps(record, separators=(",", ":"))

    @classmethod
    def from_key(cls, key: str) -> NoiseModel:
        """Rebuild a model from its ``key``.

        Raises:
            InputError: The text is not such a key.

        Example:
            >>> noise = NoiseModel.uniform(depolarizing=0.02, readout=0.05)
            >>> NoiseModel.from_key(noise.key) == noise
            True
        """
        try:
            record = json.loads(key)
            rules = tuple(
                GateNoise(
                    _CHANNELS[kind](**values),
                    None if gates is None else tuple(gates),
                    None if wires is None else tuple(wires),
                    qubit,
                    *place,
                )
                for kind, values, gates, wires, qubit, *place in record["r"]
            )
            readout: ReadoutError | tuple[ReadoutError, ...] | None = None
            if record["m"] is not None:
                single, errors = record["m"]
                made = tuple(ReadoutError(*error) for error in errors)
                readout = made[0] if single else made
            couplers = None if record["c"] is None else tuple((a, b) for a, b in record["c"])
            return cls(rules, readout, record["n"], couplers)
        except (KeyError, TypeError, IndexError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"text {key[:60]!r} is not the key of a noise model; take NoiseModel.key.") from error

    @classmethod
    def uniform(
        cls,
        depolarizing: float = 0.0,
        two_qubit_depolarizing: float | None = None,
        amplitude_damping: float = 0.0,
        phase_damping: float = 0.0,
        readout: float | tuple[float, float] = 0.0,
    ) -> NoiseModel:
        """The same noise everywhere.

        Args:
            depolarizing: One-qubit channel on every wire of every gate.
            two_qubit_depolarizing: Where given, two-qubit gates are followed by this channel on both wires together
                (k = 2) instead.
            amplitude_damping: γ on every wire of every gate.
            phase_damping: λ on every wire of every gate.
            readout: Probability of a flip, or ``(p(1|0), p(0|1))``.

        Raises:
            InputError: A number out of [0, 1].

        Example:
            >>> NoiseModel.uniform(depolarizing=0.001, two_qubit_depolarizing=0.02).channels_after(Gate("CZ", (0, 1)))
            ((Depolarizing(p=0.02, joint=True), (0, 1)),)
        """
        apart = None if two_qubit_depolarizing is None else ONE_QUBIT_GATES
        rules = [GateNoise(Depolarizing(depolarizing), apart)]
        if two_qubit_depolarizing is not None:
            rules.append(GateNoise(Depolarizing(two_qubit_depolarizing, joint=True), TWO_QUBIT_GATES))
        rules += [GateNoise(AmplitudeDamping(amplitude_damping)), GateNoise(PhaseDamping(phase_damping))]
        flips = readout if isinstance(readout, tuple) else (readout, readout)
        error = ReadoutError(*flips)
        return cls(tuple(rule for rule in rules if not _is_idle(rule.channel)), None if flips == (0, 0) else error)

    @classmethod
    def from_snapshot(
        cls,
        t1_us: Sequence[float],
        t2_us: Sequence[float],
        one_qubit_fidelity: float | Sequence[float],
        two_qubit_fidelity: Mapping[tuple[int, int], float],
        readout_fidelity: float | Sequence[float | tuple[float, float]],
        one_qubit_ns: float = 30.0,
        two_qubit_ns: float = 40.0,
        frame_gates: Iterable[str] = FRAME_GATES,
    ) -> NoiseModel:
        """A model from what a chip's calibration says.

        Every pulse is followed by thermal relaxation during its time and by depolarising noise chosen so that both
        together have the stated average gate fidelity (none, where relaxation alone is worse than that). The chip's
        two-qubit gate is taken to be CZ; other two-qubit gates count as the CZ and the one-qubit pulses that they are
        made of, all of whose noise acts after the gate. Only pairs of ``two_qubit_fidelity`` can be used; a pair of
        fidelity 0, as snapshots mark a dead coupler, cannot.

        Args:
            t1_us: Relaxation time of every qubit, µs.
            t2_us: Dephasing time of every qubit, µs, at most twice T1.
            one_qubit_fidelity: Average fidelity of one-qubit gates, one number or one for each qubit.
            two_qubit_fidelity: Average fidelity of CZ for each pair of qubits.
            readout_fidelity: One number or one for each qubit: ``F`` or ``(F0, F1)`` with F0 = p(0|0), F1 = p(1|1).
            one_qubit_ns: Duration of a one-qubit gate, ns.
            two_qubit_ns: Duration of CZ, ns.
            frame_gates: Gates without pulse, free of noise.

        Raises:
            InputError: Lists of different lengths, a fidelity or a time out of range, T2 > 2 T1.

        Example:
            >>> noise = NoiseModel.from_snapshot(
            ...     t1_us=[9.2, 14.1], t2_us=[1.1, 1.6], one_qubit_fidelity=[0.995, 0.997],
            ...     two_qubit_fidelity={(0, 1): 0.96}, readout_fidelity=[(0.95, 0.90), 0.92])
            >>> noise.n_qubits, noise.couplers, noise.readout_of(0)
            (2, ((0, 1),), ReadoutError(p10=0.05, p01=0.1))
        """
        n = len(t1_us)
        one = _one_each("one_qubit_fidelity", one_qubit_fidelity, n)
        lists: dict[str, Sequence[Any]] = {"t2_us": t2_us, "one_qubit_fidelity": one}
        read: Sequence[Any] = _one_each("readout_fidelity", readout_fidelity, n)
        lists["readout_fidelity"] = read
        for name, values in lists.items():
            if len(values) != n:
                raise InputError(f"{name} has {len(values)} values for {n} qubits; give one for each.")
        free = {name.upper() for name in frame_gates}
        pulsed = tuple(name for name in ONE_QUBIT_GATES if name not in free)
        rules: list[GateNoise] = []
        relaxation = {
            (q, ns): ThermalRelaxation(t1_us[q], t2_us[q], ns / 1000.0)
            for q in range(n)
            for ns in (one_qubit_ns, two_qubit_ns)
        }
        lost = []  # depolarising of a one-qubit pulse
        for q in range(n):
            relaxed = relaxation[q, one_qubit_ns]
            lost.append(_remaining_depolarizing(one[q], [relaxed], f"of qubit {q}"))
            rules += _rules([relaxed, Depolarizing(lost[q])], pulsed, (q,), None)
        couplers = []
        for (a, b), fidelity in two_qubit_fidelity.items():
            if fidelity == 0:
                continue
            if max(a, b) >= n:
                raise InputError(f"two_qubit_fidelity names the pair {(a, b)}, but there are {n} qubits; correct it.")
            couplers.append((a, b))
            idle = [relaxation[q, two_qubit_ns] for q in (a, b)]
            joint = _remaining_depolarizing(fidelity, idle, f"of the pair {(a, b)}")
            for name in TWO_QUBIT_GATES:
                gates, *pulses = _PULSES[name]
                for wires in ((a, b),) if name in _SYMMETRIC else ((a, b), (b, a)):
                    for q, count in zip(wires, pulses, strict=True):
                        time = (gates * two_qubit_ns + count * one_qubit_ns) / 1000.0
                        single = Depolarizing(1 - (1 - lost[q]) ** count)
                        rules += _rules([ThermalRelaxation(t1_us[q], t2_us[q], time), single], (name,), wires, q)
                    rules += _rules([Depolarizing(1 - (1 - joint) ** gates, joint=True)], (name,), wires, None)
        errors = []
        for q in range(n):
            both = read[q] if isinstance(read[q], (tuple, list)) else (read[q], read[q])
            right = [_probability(f"the readout fidelity of qubit {q}", value) for value in both]
            errors.append(ReadoutError(*(round(1 - value, 12) for value in right)))
        return cls(tuple(rules), tuple(errors), n, tuple(couplers))

    def select(self, qubits: Sequence[int]) -> NoiseModel:
        """The model as a circuit sees it whose wire ``i`` is placed on qubit ``qubits[i]`` of the chip.

        Raises:
            InputError: A qubit twice or beyond the chip.

        Example:
            >>> chip = NoiseModel([GateNoise(PhaseDamping(0.1), qubit=7)], ReadoutError(0.1, 0.1), n_qubits=9)
            >>> chip.select([7, 8]).rules
            (GateNoise(channel=PhaseDamping(lam=0.1), gates=None, wires=None, qubit=0, place=None),)
        """
        place = {qubit: wire for wire, qubit in enumerate(qubits)}
        if len(place) != len(qubits) or not place:
            raise InputError(f"the qubits {tuple(qubits)} must be at least one and all different; correct the list.")
        if self.n_qubits is not None and not set(place) <= set(range(self.n_qubits)):
            raise InputError(f"the qubits {tuple(qubits)} reach beyond the chip's {self.n_qubits}; correct the list.")
        rules = [
            replace(
                rule,
                wires=None if rule.wires is None else tuple(place[w] for w in rule.wires),
                qubit=None if rule.qubit is None else place[rule.qubit],
            )
            for rule in self.rules
            if rule._wires() <= set(place)
        ]
        readout = self.readout
        if isinstance(readout, tuple):
            readout = tuple(readout[qubit] for qubit in qubits)
        couplers = None
        if self.couplers is not None:
            couplers = tuple((place[a], place[b]) for a, b in self.couplers if a in place and b in place)
        return NoiseModel(tuple(rules), readout, len(place), couplers)

    def reduce(self, circuit: Circuit) -> NoiseModel:
        """The model without rules for gates that a circuit does not have: the same noise, a shorter key.

        Raises:
            InputError: As :meth:`check`.
        """
        self.check(circuit)
        kinds = {(gate.name, gate.wires): gate for gate in circuit.gates}.values()

        def matters(rule: GateNoise) -> bool:
            gates = kinds if rule.place is None else circuit.gates[rule.place : rule.place + 1]
            return any(rule.matches(gate, rule.place) for gate in gates)

        rules = tuple(rule for rule in self.rules if matters(rule))
        readout = self.readout
        if isinstance(readout, tuple):
            readout = readout[: circuit.n_qubits]
        return NoiseModel(rules, readout, circuit.n_qubits)

    def channels_after(self, gate: Gate, place: int | None = None) -> tuple[tuple[Channel, tuple[int, ...]], ...]:
        """Channels that follow a gate at some place of its circuit and the wires they act on, in order."""
        found: list[tuple[Channel, tuple[int, ...]]] = []
        for rule in self.rules:
            if not rule.matches(gate, place):
                continue
            wires = gate.wires if rule.qubit is None else (rule.qubit,)
            if isinstance(rule.channel, Depolarizing) and rule.channel.joint:
                found.append((rule.channel, wires))
            else:
                found += [(rule.channel, (wire,)) for wire in wires]
        return tuple(found)

    def readout_of(self, wire: int) -> ReadoutError | None:
        """The readout error of a wire."""
        return self.readout[wire] if isinstance(self.readout, tuple) else self.readout

    def check(self, circuit: Circuit) -> None:
        """Make sure that the model says something about every part of a circuit.

        Raises:
            InputError: More wires than the model describes, or a two-qubit gate where there is no coupler.
        """
        if self.n_qubits is not None and circuit.n_qubits > self.n_qubits:
            raise InputError(
                f"the circuit has {circuit.n_qubits} qubits, the noise model describes {self.n_qubits}; "
                f"use fewer qubits, or a model of a larger chip."
            )
        if self.couplers is None:
            return
        allowed = set(self.couplers)
        for gate in circuit.gates:
            if len(gate.wires) == 2 and (min(gate.wires), max(gate.wires)) not in allowed:
                raise InputError(
                    f"{gate.name} acts on the wires {gate.wires}, which no working coupler of the noise model joins; "
                    f"place the circuit elsewhere with NoiseModel.select, or change its gates."
                )


def _is_idle(channel: Channel) -> bool:
    match channel:
        case Depolarizing(p=strength) | AmplitudeDamping(gamma=strength) | PhaseDamping(lam=strength):
            return strength == 0.0
        case ThermalRelaxation():
            return channel.time == 0.0


def _rules(
    channels: Iterable[Channel], gates: tuple[str, ...], wires: tuple[int, ...], qubit: int | None
) -> list[GateNoise]:
    return [GateNoise(channel, gates, wires, qubit) for channel in channels if gates and not _is_idle(channel)]


def _one_each(name: str, value: Any, n: int) -> Sequence[Any]:
    if isinstance(value, (int, float)):
        return [value] * n
    if not isinstance(value, Sequence):
        raise InputError(f"{name} must be a number or one for each qubit (got {value!r}); correct it.")
    return value


def _remaining_depolarizing(fidelity: float, relaxations: Sequence[ThermalRelaxation], where: str) -> float:
    """What depolarising noise explains of an average gate fidelity that relaxation on the gate's wires does not.

    With ``d = 2**k`` and the trace ``t`` of the relaxation's Pauli transfer matrix, the whole has the trace
    ``1 + (1 - p)(t - 1) = d ((d + 1) F - 1)``.
    """
    fidelity = _number(f"the gate fidelity {where}", fidelity, 0.0, 1.0, "a number from 0 to 1")
    trace = math.prod(1 + 2 * math.exp(-r.time / r.t2) + math.exp(-r.time / r.t1) for r in relaxations)
    dimension = 2 ** len(relaxations)
    wanted = dimension * ((dimension + 1) * fidelity - 1)
    if wanted < 1:
        raise InputError(
            f"the gate fidelity {where} is {fidelity:g}, lower than that of a gate that forgets its input "
            f"({1 / dimension:g}); leave the gate out."
        )
    return max(0.0, 1 - (wanted - 1) / (trace - 1))
