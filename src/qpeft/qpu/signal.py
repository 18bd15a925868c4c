"""Whether anything of <Z> is left when a circuit has run on a chip, before a shot is paid for.

A gate of average fidelity F on d = 2^m dimensions shrinks every traceless observable, as a depolarising channel does,
by (d·F - 1)/(d - 1); waiting for t shrinks it by exp(-t/T2); reading by 1 - p01 - p10. The product over what can reach
the measured wire (its light cone) is the **signal** s: the chip returns about s·<Z>. S shots leave a standard error of
up to 1/√S, so a signal below 1/√S cannot be told from zero, whatever <Z> is. The model is coarse: it takes every
error as depolarising, and knows no crosstalk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qpeft.chips import ChipSnapshot, NativeTemplate
from qpeft.errors import InputError

MARGIN = 3.0
"""A suggestion's signal is at least so many standard errors."""


def expected_signals(template: NativeTemplate, snapshot: ChipSnapshot) -> tuple[float, ...]:
    """Share of <Z> that survives, for every qubit of the original circuit.

    Args:
        template: A compiled circuit.
        snapshot: The chip it stands on.

    Returns:
        ``(n_qubits,)`` numbers in [0, 1], in the order of ``template.readout``.
    """
    qubits = {qubit.index: qubit for qubit in snapshot.qubits}
    couplers = {coupler.qubits: coupler.fidelity for coupler in snapshot.couplers}
    free = [0.0] * len(template.qubits)  # when each wire has nothing to do, ns
    steps: list[tuple[tuple[int, ...], float]] = []  # wires, and by what they shrink
    for gate in template.circuit.gates:
        if gate.name == "RZ":
            continue
        places = tuple(template.qubits[wire] for wire in gate.wires)
        if len(places) == 1:
            length, shrink = snapshot.one_qubit_ns, 2 * qubits[places[0]].fidelity - 1
        else:
            low, high = sorted(places)
            length, shrink = snapshot.two_qubit_ns, (4 * couplers.get((low, high), 0.0) - 1) / 3
        start = max(free[wire] for wire in gate.wires)
        for wire, place in zip(gate.wires, places, strict=True):
            shrink *= _waiting(start - free[wire], qubits[place].t2_us)
            free[wire] = start + length
        steps.append((gate.wires, max(shrink, 0.0)))
    end = max(free)
    signals = []
    for wire in template.readout:
        qubit = qubits[template.qubits[wire]]
        signal = max(0.0, 1 - qubit.p01 - qubit.p10) * _waiting(end - free[wire], qubit.t2_us)
        cone = {wire}
        for wires, shrink in reversed(steps):
            if cone.intersection(wires):
                cone.update(wires)
                signal *= shrink
        signals.append(signal)
    return tuple(signals)


def _waiting(ns: float, t2_us: float) -> float:
    return math.exp(-ns * 1e-3 / t2_us) if t2_us > 0 else 0.0


@dataclass(frozen=True)
class Option:
    """Sizes whose signal survives: qubits n, layers L, and the fewest shots for it."""

    n_qubits: int
    n_layers: int
    signal: float
    shots: int


@dataclass(frozen=True)
class Advice:
    """Whether a signal survives.

    Args:
        signal: Share of <Z> that is left.
        noise: Standard error of the shots, 1/√S.
        options: Sizes that survive, largest first; empty where the signal does or where nothing survives.
    """

    signal: float
    noise: float
    options: tuple[Option, ...] = ()

    @property
    def survives(self) -> bool:
        """Whether the signal is above the noise of the shots."""
        return self.signal > self.noise

    def sentence(self) -> str:
        """In words.

        Example:
            >>> Advice(0.4, 0.03).sentence()
            'expected signal: 40 % of <Z>, 13 times the shot noise of 0.03'
        """
        if self.survives:
            return (
                f"expected signal: {100 * self.signal:.2g} % of <Z>, {self.signal / self.noise:.2g} times the shot "
                f"noise of {self.noise:.2g}"
            )
        what = f"expected signal {self.signal:.2g} of <Z> is below the shot noise {self.noise:.2g}: it drowns"
        if not self.options:
            return f"{what}; no smaller size survives on this chip"
        tried = "; ".join(f"n={o.n_qubits}, L={o.n_layers} with {o.shots:,} shots or more" for o in self.options[:3])
        return f"{what}. What survives: {tried}"


def advise(
    signal: Callable[[int, int], float],
    n_qubits: int,
    n_layers: int,
    shots: int,
    max_shots: int,
    sizes: Iterable[tuple[int, int]] | None = None,
) -> Advice:
    """Compare the signal of an ansatz with the noise of its shots, and look for sizes that survive.

    Args:
        signal: Of n qubits and L layers, the share of <Z> that survives; called for the wanted size, and for smaller
            ones only if that drowns. It may raise InputError for a size that does not fit the chip.
        n_qubits: Wanted.
        n_layers: Wanted.
        shots: Wanted.
        max_shots: Most that the provider takes.
        sizes: What to try; by default all of 2 to n qubits and 1 to L layers.

    Example:
        >>> advice = advise(lambda n, L: 0.9 ** (n * L), 8, 8, shots=1000, max_shots=10_000)
        >>> best = advice.options[0]
        >>> advice.survives, best.n_qubits, best.n_layers, best.shots
        (False, 4, 8, 7634)
    """
    if shots < 1:
        raise InputError(f"shots must be 1 or more (got {shots}).")
    wanted, noise = signal(n_qubits, n_layers), 1 / math.sqrt(shots)
    if wanted > noise:
        return Advice(wanted, noise)
    options = []
    for n, layers in sizes or [(n, k) for n in range(min(2, n_qubits), n_qubits + 1) for k in range(1, n_layers + 1)]:
        try:
            value = signal(n, layers)
        except InputError:
            continue
        if value > 0 and (needed := math.ceil((MARGIN / value) ** 2)) <= max_shots:
            options.append(Option(n, layers, value, needed))
    options.sort(key=lambda option: (-option.n_qubits * option.n_layers, option.shots))
    return Advice(wanted, noise, tuple(options))
