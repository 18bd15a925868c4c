"""A circuit is a value: wires, gates in order, where each angle comes from, and what is measured.

With the gates ``U_1 ... U_G`` (first applied first) and the Pauli strings ``P_m`` it stands for the function

    f_m(x, w) = <0...0| U_1† ... U_G† P_m U_G ... U_1 |0...0>,

where every angle is a constant, an input ``scale·x_i`` or a weight ``scale·w_k``. Simulators, shift rules, drawings
and programs for quantum computers are all derived from this one value; nothing else in the library builds gates.

Rotations follow ``R_P(θ) = exp(-i θ P / 2)``; a controlled rotation has the control as its first wire.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from qpeft.errors import InputError


class GateKind(NamedTuple):
    """What a gate name means: how many wires it acts on and whether it takes an angle."""

    n_wires: int
    has_angle: bool


GATES: dict[str, GateKind] = {
    **{name: GateKind(1, False) for name in ("H", "X", "Y", "Z", "S", "SDG", "T", "TDG")},
    **{name: GateKind(1, True) for name in ("RX", "RY", "RZ")},
    **{name: GateKind(2, False) for name in ("CNOT", "CZ", "SWAP")},
    **{name: GateKind(2, True) for name in ("CRX", "CRY", "CRZ")},
}


@dataclass(frozen=True)
class Input:
    """The angle ``scale * inputs[index]`` (radians): an activation, one value per sample."""

    index: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_parameter("Input", self.index, self.scale)


@dataclass(frozen=True)
class Weight:
    """The angle ``scale * weights[index]`` (radians): a trained number shared by all samples."""

    index: int
    scale: float = 1.0

    def __post_init__(self) -> None:
        _check_parameter("Weight", self.index, self.scale)


Angle = Input | Weight | float | None


def _check_parameter(kind: str, index: object, scale: object) -> None:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise InputError(f"{kind} index must be a whole number of 0 or more (got {index!r}); count from 0.")
    if not isinstance(scale, (int, float)) or not math.isfinite(scale):
        raise InputError(f"{kind}({index}) needs a finite scale (got {scale!r}); use 1.0 for the plain angle.")


@dataclass(frozen=True)
class Gate:
    """One gate: its name, the wires it acts on (control first) and the source of its angle.

    Args:
        name: One of H X Y Z S SDG T TDG RX RY RZ CNOT CZ SWAP CRX CRY CRZ (case does not matter).
        wires: Wire or wires, for example ``0`` or ``(0, 1)``.
        angle: ``None`` for gates without angle; else a number in radians, ``Input(i)`` or ``Weight(k)``.

    Raises:
        InputError: Unknown name, wrong number of wires, repeated wires, angle missing or not wanted.

    Example:
        >>> Gate("CRZ", (0, 1), Weight(0))
        Gate(name='CRZ', wires=(0, 1), angle=Weight(index=0, scale=1.0))
    """

    name: str
    wires: tuple[int, ...]
    angle: Angle = None

    def __post_init__(self) -> None:
        name = str(self.name).upper()
        kind = GATES.get(name)
        if kind is None:
            raise InputError(f"unknown gate {self.name!r}; the gates are {' '.join(GATES)}.")
        wires = tuple(self.wires) if isinstance(self.wires, Sequence) else (self.wires,)
        if any(isinstance(wire, bool) or not isinstance(wire, int) or wire < 0 for wire in wires):
            raise InputError(f"{name} has the wires {wires!r}; wires are whole numbers of 0 or more.")
        if len(wires) != kind.n_wires:
            raise InputError(f"{name} acts on {kind.n_wires} wire(s) (got {len(wires)}: {wires}); change the wires.")
        if len(set(wires)) != len(wires):
            raise InputError(f"{name} has the same wire twice ({wires}); control and target must differ.")
        angle = self.angle
        if kind.has_angle and angle is None:
            raise InputError(f"{name} on {wires} has no angle; give a number, Input(i) or Weight(k).")
        if not kind.has_angle and angle is not None:
            raise InputError(f"{name} on {wires} takes no angle (got {angle!r}); leave it out.")
        if kind.has_angle and not isinstance(angle, (Input, Weight)):
            if isinstance(angle, bool) or not isinstance(angle, (int, float)) or not math.isfinite(angle):
                raise InputError(
                    f"{name} on {wires} has the angle {angle!r}; give a finite number, Input(i) or Weight(k)."
                )
            angle = float(angle)
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "wires", wires)
        object.__setattr__(self, "angle", angle)


@dataclass(frozen=True)
class Observable:
    """A Pauli string such as ``Z0``, ``Z0 Z1`` or ``X2 Y3``; its expectation lies in [-1, 1].

    Example:
        >>> str(Observable("z1 x0"))
        'X0 Z1'
        >>> Observable("Z0 Z1").paulis
        (('Z', 0), ('Z', 1))
    """

    text: str

    def __post_init__(self) -> None:
        parts = str(self.text).upper().split()
        matches = [re.fullmatch(r"([XYZ])(\d{1,6})", part, re.ASCII) for part in parts]
        if not parts or not all(matches):
            raise InputError(f"observable {self.text!r} is not a Pauli string; write it like 'Z0' or 'Z0 X2'.")
        paulis = sorted((int(match[2]), match[1]) for match in matches if match)
        if len({wire for wire, _ in paulis}) != len(paulis):
            raise InputError(f"observable {self.text!r} names a wire twice; give one letter per wire.")
        object.__setattr__(self, "text", " ".join(f"{letter}{wire}" for wire, letter in paulis))

    def __str__(self) -> str:
        return self.text

    @property
    def paulis(self) -> tuple[tuple[str, int], ...]:
        """Letters and wires in wire order."""
        return tuple((part[0], int(part[1:])) for part in self.text.split())

    @property
    def is_diagonal(self) -> bool:
        """Whether measuring in the computational basis is enough (only Z)."""
        return all(letter == "Z" for letter, _ in self.paulis)


@dataclass(frozen=True)
class Circuit:
    """An immutable parameterised circuit with its observables.

    Args:
        n_qubits: Number of wires; all start in |0>.
        gates: Gates in the order in which they act.
        observables: Pauli strings (text or :class:`Observable`); ``None`` means <Z_i> on every wire.

    Attributes:
        n_inputs: Number of input values per sample.
        n_weights: Number of trained angles.
        key: The circuit as compact JSON text; equal circuits have equal keys, and :meth:`from_key` undoes it.

    Raises:
        InputError: Wire out of range, no observable, or inputs or weights not numbered 0, 1, 2, ... without a gap.

    Example:
        >>> circuit = Circuit(2, (Gate("RY", 0, Input(0)), Gate("CRZ", (0, 1), Weight(0))))
        >>> circuit.n_inputs, circuit.n_weights, [str(o) for o in circuit.observables]
        (1, 1, ['Z0', 'Z1'])
        >>> print(circuit.draw())
        q0: ─RY(x0)────●─── <Z0>
                       │
        q1: ────────RZ(w0)─ <Z1>
    """

    n_qubits: int
    gates: tuple[Gate, ...]
    observables: tuple[Observable, ...] = None  # type: ignore[assignment]  # None is replaced below

    # Derived once and stored, not lazily: compilers that trace a module can read attributes but not fill caches.
    n_inputs: int = field(init=False, repr=False, compare=False)
    n_weights: int = field(init=False, repr=False, compare=False)
    key: str = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = self.n_qubits
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise InputError(f"a circuit needs at least 1 qubit (got n_qubits={n!r}); choose n_qubits >= 1.")
        gates = tuple(self.gates)
        for position, gate in enumerate(gates):
            if not isinstance(gate, Gate):
                raise InputError(f"gate {position} is {gate!r}; build gates with Gate(name, wires, angle).")
            if max(gate.wires) >= n:
                raise InputError(
                    f"gate {position} ({gate.name}) acts on wire {max(gate.wires)}, but the wires are "
                    f"0 to {n - 1}; use more qubits or another wire."
                )
        given: Iterable[Observable | str]
        given = [f"Z{wire}" for wire in range(n)] if self.observables is None else self.observables
        if isinstance(given, (str, Observable)):
            given = [given]
        observables = tuple(o if isinstance(o, Observable) else Observable(o) for o in given)
        if not observables:
            raise InputError("a circuit needs at least one observable (got none); for example 'Z0'.")
        for observable in observables:
            if observable.paulis[-1][1] >= n:
                raise InputError(
                    f"observable {observable} reaches beyond the last wire {n - 1}; use more qubits or another wire."
                )
        object.__setattr__(self, "gates", gates)
        object.__setattr__(self, "observables", observables)
        for kind, count in ((Input, "n_inputs"), (Weight, "n_weights")):
            used = {gate.angle.index for gate in gates if isinstance(gate.angle, kind)}
            missing = set(range(len(used))) - used
            if missing:
                raise InputError(
                    f"{kind.__name__}({min(missing)}) is used by no gate although {kind.__name__}({max(used)}) is; "
                    f"number them 0, 1, 2, ... without a gap."
                )
            object.__setattr__(self, count, len(used))
        object.__setattr__(self, "key", self._encode())

    def _encode(self) -> str:
        def encode(angle: Angle) -> object:
            if isinstance(angle, (Input, Weight)):
                return ["x" if isinstance(angle, Input) else "w", angle.index, float(angle.scale)]
            return angle

        gates = [[g.name, list(g.wires), *([] if g.angle is None else [encode(g.angle)])] for g in self.gates]
        record = {"n": self.n_qubits, "g": gates, "o": [str(o) for o in self.observables]}
        return json.dumps(record, separators=(",", ":"))

    @property
    def n_observables(self) -> int:
        """Number of expectations per sample."""
        return len(self.observables)

    @classmethod
    def from_key(cls, key: str) -> Circuit:
        """Rebuild a circuit from its ``key``.

        Raises:
            InputError: The text is not such a key.

        Example:
            >>> circuit = Circuit(1, (Gate("RY", 0, Input(0)), Gate("RZ", 0, 0.5)))
            >>> circuit.key
            '{"n":1,"g":[["RY",[0],["x",0,1.0]],["RZ",[0],0.5]],"o":["Z0"]}'
            >>> Circuit.from_key(circuit.key) == circuit
            True
        """
        try:
            record = json.loads(key)
            gates = []
            for name, wires, *angle in record["g"]:
                source: Any = angle[0] if angle else None
                if isinstance(source, list):
                    source = {"x": Input, "w": Weight}[source[0]](source[1], source[2])
                gates.append(Gate(name, tuple(wires), source))
            return cls(record["n"], tuple(gates), tuple(Observable(text) for text in record["o"]))
        except (KeyError, TypeError, IndexError, json.JSONDecodeError) as error:
            raise InputError(f"text {key[:60]!r} is not a circuit key; make one with Circuit.key.") from error
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"text {key[:60]!r} is not a circuit key; make one with Circuit.key.") from error

    def bind(self, inputs: Sequence[float] | None = None, weights: Sequence[float] | None = None) -> Circuit:
        """Return the circuit with inputs, weights or both replaced by constants.

        Args:
            inputs: ``n_inputs`` numbers (any sequence, also a tensor), or ``None`` to keep inputs symbolic.
            weights: ``n_weights`` numbers, or ``None`` to keep weights symbolic.

        Raises:
            InputError: Wrong count, or a number that is not finite.

        Example:
            >>> Circuit(1, (Gate("RY", 0, Input(0, scale=2.0)),)).bind(inputs=[0.25]).gates
            (Gate(name='RY', wires=(0,), angle=0.5),)
        """
        values: dict[type, list[float]] = {}
        for kind, given, count in ((Input, inputs, self.n_inputs), (Weight, weights, self.n_weights)):
            if given is None:
                continue
            values[kind] = [float(number) for number in given]
            if len(values[kind]) != count:
                raise InputError(
                    f"the circuit takes {count} {kind.__name__.lower()} values (got {len(values[kind])})."
                )

        def source(angle: Angle) -> Angle:
            if isinstance(angle, (Input, Weight)) and type(angle) in values:
                return angle.scale * values[type(angle)][angle.index]
            return angle

        gates = tuple(
            gate if type(gate.angle) not in values else replace(gate, angle=source(gate.angle)) for gate in self.gates
        )
        return replace(self, gates=gates)

    def draw(self, max_width: int = 160) -> str:
        """Draw the circuit as text, folded into blocks at most ``max_width`` characters wide."""
        from qpeft.circuits.drawing import draw

        return draw(self, max_width)
