"""A chip simulated by Aer part by part: each circuit on its own few qubits, with the noise of just these.

Aer takes the noise of a whole chip along with every job, seconds for 133 qubits. Gates act on one or two qubits and
noise without crosstalk belongs to a gate, so a circuit on k qubits needs the noise of those k alone.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

from qpeft.chips import ChipSnapshot

_STEP = 1_000_003  # between the seeds of PUBs; Aer's own, between rows, are 2113 apart
_SEEDS = 2**31 - 1


class ChipSampler:
    """Aer with the noise of a chip: gates as Aer's ``NoiseModel.from_backend`` makes them, readout from the snapshot.

    A target has one readout error for both outcomes; the snapshot has both where the calibration states them.

    Args:
        target: Of the chip. Circuits are in its gates, on its physical qubits.
        chip: Its snapshot.
    """

    def __init__(self, target: Any, chip: ChipSnapshot) -> None:
        self._target = target
        self._chip = chip
        self._simulators: dict[tuple[int, ...], Any] = {}
        self._worker = ThreadPoolExecutor(max_workers=1)

    def seeded(self, seed: int) -> _Seeded:
        """The sampler with a seed."""
        return _Seeded(lambda pubs, shots: self._worker.submit(self._run, pubs, shots, seed))

    def _run(self, pubs: Sequence[tuple[Any, Any]], shots: int, seed: int) -> list[Any]:
        from qiskit_aer.primitives import SamplerV2

        results = []
        for i, (circuit, values) in enumerate(pubs):
            qubits, small = without_idle_qubits(circuit)
            if qubits not in self._simulators:
                self._simulators[qubits] = self._simulator(qubits)
            sampler = SamplerV2.from_backend(self._simulators[qubits], seed=(seed + i * _STEP) % _SEEDS)
            results.append(sampler.run([(small, values)], shots=shots).result()[0])
        return results

    def _simulator(self, qubits: tuple[int, ...]) -> Any:
        from qiskit_aer import AerSimulator
        from qiskit_aer.noise import NoiseModel

        target = part_of(self._target, qubits)
        names = list(target.operation_names)
        backend = SimpleNamespace(version=2, operation_names=names, target=target, dt=target.dt)
        noise = NoiseModel.from_backend(backend, readout_error=False)
        for i, qubit in enumerate(self._chip.qubits[q] for q in qubits):
            read = [[1 - qubit.p10, qubit.p10], [qubit.p01, 1 - qubit.p01]]  # [prepared][read]
            noise.add_readout_error(read, [i])
        return AerSimulator(noise_model=noise)


class _Seeded:
    def __init__(self, start: Callable[[Any, int], Future[list[Any]]]) -> None:
        self._start = start

    def run(self, pubs: Sequence[tuple[Any, Any]], *, shots: int) -> _Job:
        return _Job(self._start(pubs, shots))


class _Job:
    """What :class:`~qpeft.qpu.providers.qiskit_jobs.LocalJobs` asks of a Qiskit job."""

    def __init__(self, future: Future[list[Any]]) -> None:
        self._future = future
        self._id = str(uuid.uuid4())

    def job_id(self) -> str:
        return self._id

    def status(self) -> str:
        if self._future.cancelled():
            return "CANCELLED"
        if self._future.done():
            return "DONE" if self._future.exception() is None else "ERROR"
        return "RUNNING" if self._future.running() else "QUEUED"

    def result(self) -> list[Any]:
        return self._future.result()

    def cancel(self) -> bool:
        return self._future.cancel()


def without_idle_qubits(circuit: Any) -> tuple[tuple[int, ...], Any]:
    """Physical qubits that a circuit uses, ascending, and the circuit on these alone."""
    from qiskit import QuantumCircuit

    used = sorted({circuit.find_bit(qubit).index for step in circuit.data for qubit in step.qubits})
    place = {qubit: i for i, qubit in enumerate(used)}
    small = QuantumCircuit(len(used))
    small.add_register(*circuit.cregs)
    for step in circuit.data:
        small.append(step.operation, [place[circuit.find_bit(qubit).index] for qubit in step.qubits], step.clbits)
    return tuple(used), small


def part_of(target: Any, qubits: tuple[int, ...]) -> Any:
    """The target of some qubits of a chip, numbered anew from 0."""
    from qiskit.transpiler import Target

    place = {qubit: i for i, qubit in enumerate(qubits)}
    described = target.qubit_properties
    part = Target(
        num_qubits=len(qubits), dt=target.dt, qubit_properties=[described[q] for q in qubits] if described else None
    )
    for name in target.operation_names:
        kept = {
            tuple(place[qubit] for qubit in where): properties
            for where, properties in (target[name] or {}).items()
            if where is not None and all(qubit in place for qubit in where)
        }
        if kept:
            part.add_instruction(target.operation_from_name(name), kept, name=name)
    return part
