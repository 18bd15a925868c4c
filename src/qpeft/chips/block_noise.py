"""What happens to a block of a chip, as a noise model for its circuit alone.

After a pulse or a CZ: relaxation (T1, T2) of its wires during its time and depolarising noise, such that both together
have the fidelity that the snapshot states (:meth:`ChipSnapshot.noise_model`). Then, with crosstalk, depolarising noise
of strength ``1 - (1 - crosstalk)**e`` on both wires of a CZ, where ``e`` counts the CZs of other blocks on adjacent
couplers, each with the share of time in which both are on. Then relaxation of a wire while it waits for its next gate.
In the end, the two readout errors of every wire.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from qpeft.chips.schedule import ENTANGLER, Schedule, schedule
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.chips.template import NativeTemplate
from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators import Depolarizing, GateNoise, NoiseModel, ThermalRelaxation
from qpeft.simulators.density import MAX_CONE

MAX_WIRES = MAX_CONE  # 4**10 Pauli coefficients for every sample

Exposure = tuple[tuple[int, float], ...]


class BlockNoise:
    """Noise models of the blocks of a chip, each made once.

    Args:
        snapshot: The chip.
        crosstalk: Strength of the depolarising noise on a CZ for each CZ of another block that is on at the same time
            on an adjacent coupler, from 0 to 1.

    Raises:
        InputError: ``crosstalk`` out of range.
    """

    def __init__(self, snapshot: ChipSnapshot, crosstalk: float = 0.0) -> None:
        if isinstance(crosstalk, bool) or not isinstance(crosstalk, (int, float)) or not 0 <= crosstalk <= 1:
            raise InputError(f"crosstalk must be a number from 0 to 1 (got {crosstalk!r}); 0 turns it off.")
        self.snapshot = snapshot
        self.crosstalk = float(crosstalk)
        self._live_pairs = {coupler.qubits for coupler in snapshot.live_couplers}
        # A dead coupler still means that what stands at its two ends is close together.
        self._near = {qubit.index: {qubit.index} for qubit in snapshot.qubits}
        for coupler in snapshot.couplers:
            for one, other in (coupler.qubits, coupler.qubits[::-1]):
                self._near[one].add(other)
        self._checked: set[tuple[str, tuple[int, ...]]] = set()
        self._schedules: dict[str, Schedule] = {}
        self._models: dict[tuple[str, tuple[int, ...], Exposure, bool], NoiseModel] = {}

    def of(
        self, template: NativeTemplate, beside: Sequence[NativeTemplate] = (), readout_errors: bool = True
    ) -> NoiseModel:
        """The model of a block.

        Args:
            template: The block.
            beside: Blocks that run at the same time; they matter with crosstalk.
            readout_errors: ``False`` leaves them out.

        Raises:
            InputError: A qubit that is not available, a coupler that is dead or missing, a gate that is not native,
                more than 10 wires.
        """
        for block in (template, *beside):
            self._check(block)
        exposure = self._exposure(template, beside) if self.crosstalk else ()
        key = template.circuit.key, template.qubits, exposure, readout_errors
        if key not in self._models:
            self._models[key] = self._build(template, exposure, readout_errors)
        return self._models[key]

    def _build(self, template: NativeTemplate, exposure: Exposure, readout_errors: bool) -> NoiseModel:
        circuit, chip = template.circuit, self.snapshot
        model = chip.noise_model().select(template.qubits).reduce(circuit)
        rules = list(model.rules)
        for place, count in exposure:
            strength = 1 - (1 - self.crosstalk) ** count
            rules.append(GateNoise(Depolarizing(strength, joint=True), (ENTANGLER,), place=place))
        for wait in self._schedule(circuit).waits:
            qubit = chip.qubits[template.qubits[wait.wire]]
            decay = ThermalRelaxation(qubit.t1_us, qubit.t2_us, wait.ns / 1000.0)
            rules.append(GateNoise(decay, qubit=wait.wire, place=wait.place))
        return NoiseModel(tuple(rules), model.readout if readout_errors else None, circuit.n_qubits)

    def _check(self, template: NativeTemplate) -> None:
        circuit, places, name = template.circuit, template.qubits, self.snapshot.name
        if (circuit.key, places) in self._checked:
            return
        if len(places) != circuit.n_qubits or len(set(places)) != len(places):
            raise InputError(f"a block of {circuit.n_qubits} wires stands on the qubits {places}; give one for each.")
        if len(places) > MAX_WIRES:
            raise InputError(
                f"the virtual chip simulates blocks of at most {MAX_WIRES} qubits (got {len(places)}); "
                f"cut the circuit into smaller blocks."
            )
        if circuit.n_weights:
            raise InputError("a compiled circuit has no weights; turn them into angles with NativeTemplate.angles.")
        gone = sorted(set(places) - set(self.snapshot.live_qubits))
        if gone:
            raise InputError(f"qubit {gone[0]} of {name} is not available; compile for other qubits.")
        for gate in circuit.gates:
            pair = tuple(sorted(places[wire] for wire in gate.wires))
            if len(pair) == 2 and pair not in self._live_pairs:
                raise InputError(
                    f"{gate.name} joins the qubits {pair[0]} and {pair[1]} of {name}, which have no working coupler; "
                    f"compile for other qubits."
                )
        self._checked.add((circuit.key, places))

    def _schedule(self, circuit: Circuit) -> Schedule:
        if circuit.key not in self._schedules:
            self._schedules[circuit.key] = schedule(circuit, self.snapshot.one_qubit_ns, self.snapshot.two_qubit_ns)
        return self._schedules[circuit.key]

    def _exposure(self, template: NativeTemplate, beside: Sequence[NativeTemplate]) -> Exposure:
        """For each CZ that has any: its place, and how many CZs next to it are on at the same time."""
        others = [entangler for other in beside for entangler in self._entanglers(other)]
        found = []
        for place, pair, begin, end in self._entanglers(template):
            near = self._near[pair[0]] | self._near[pair[1]]
            shared = (min(begin, b) - max(end, e) for _, other, b, e in others if not near.isdisjoint(other))
            # Rounded, so that neighbours in another order do not make another model, and other counts.
            count = round(math.fsum(time for time in shared if time > 0) / self.snapshot.two_qubit_ns, 9)
            if count > 0:
                found.append((place, count))
        return tuple(found)

    def _entanglers(self, template: NativeTemplate) -> list[tuple[int, tuple[int, int], float, float]]:
        """Place, qubits, begin and end of every CZ."""
        spans = self._schedule(template.circuit).spans
        return [
            (place, (template.qubits[gate.wires[0]], template.qubits[gate.wires[1]]), *spans[place])
            for place, gate in enumerate(template.circuit.gates)
            if gate.name == ENTANGLER
        ]
