r"""A virtual chip: what a real one would return for a batch of compiled circuits, packed side by side.

Blocks on disjoint qubits are product states, so each is simulated by itself, and all that share a template as one
batch: a job of many small circuits on 72 qubits costs its blocks. With the gates ``U_g`` of a block in the order of
time, what follows each of them (``R_g``) and the readout errors ``p_w`` of its wires, all from a
:class:`~qpeft.chips.snapshot.ChipSnapshot` by way of :mod:`qpeft.chips.block_noise`,

    ρ = R_G U_G ··· R_1 U_1 (|0><0|),        p(b) = Σ_a Π_w p_w(b_w | a_w) <a|ρ|a>,

and the counts of a block are a multinomial draw from ``p``. Gates come as late as possible, and all blocks end
together (:mod:`qpeft.chips.schedule`). RZ takes no time and has no error. What decays during the readout is part of
its errors.

Not in the model: leakage, excited qubits, coherent errors, drift, and correlations between blocks.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qpeft.chips.block_noise import BlockNoise
from qpeft.chips.snapshot import ChipSnapshot
from qpeft.chips.template import NativeTemplate
from qpeft.circuits import Circuit, Gate, Input, Observable
from qpeft.errors import InputError
from qpeft.simulators import NoiseModel, noisy_probabilities, run_noisy
from qpeft.simulators.angles import check_angles

_NO_WEIGHTS = torch.zeros(0, dtype=torch.float64, device="cpu")


class Placed(Protocol):
    """A block of :mod:`qpeft.qpu.protocol`: number of its template, and its native angles."""

    @property
    def template(self) -> int: ...
    @property
    def angles(self) -> tuple[float, ...]: ...


class VirtualChip:
    """A simulated chip.

    Args:
        snapshot: The chip.
        crosstalk: Strength of the depolarising noise on a CZ for each CZ of another block that is on at the same time
            on an adjacent coupler, from 0 to 1. At 0 packed circuits behave as they would alone.

    Raises:
        InputError: ``crosstalk`` out of range.
    """

    def __init__(self, snapshot: ChipSnapshot, *, crosstalk: float = 0.0) -> None:
        self.snapshot = snapshot
        self.noise = BlockNoise(snapshot, crosstalk)

    def run(
        self,
        templates: Sequence[NativeTemplate],
        circuits: Sequence[Sequence[Placed]],
        shots: int,
        seed: int = 0,
    ) -> list[list[Tensor]]:
        """Run a batch.

        Args:
            templates: What blocks refer to.
            circuits: Each some blocks on disjoint qubits, which run side by side.
            shots: Shots of every circuit, at least 1.
            seed: Whole number from 0 to 2**63 - 1. The counts of a block follow from the seed, the shots, the block
                (template, qubits and angles), what happens to it, and how many equal blocks came before it in the
                call: a batch may be put in another order or split, and blocks keep their counts.

        Returns:
            Counts ``(2**k,)`` of every block of every circuit, int64; wire 0 is the most significant bit.

        Raises:
            InputError: An argument that does not fit the chip: a dead coupler, an unavailable qubit, blocks that share
                a qubit, a wrong number of angles, more than 10 wires.

        Example:
            >>> from qpeft.chips import ChipSnapshot, NativeTemplate, Qubit
            >>> from qpeft.circuits import Gate, Input
            >>> from qpeft.qpu.protocol import Block
            >>> qubit = Qubit(0, fidelity=0.99, p10=0.02, p01=0.05, t1_us=10.0, t2_us=2.0)
            >>> flip = Circuit(1, (Gate("RX", 0, 3.14159265), Gate("RZ", 0, Input(0))))
            >>> template = NativeTemplate(flip, (0,), (0,), lambda inputs, weights: inputs)
            >>> chip = VirtualChip(ChipSnapshot("one", (qubit,), ()))
            >>> [[counts]] = chip.run([template], [[Block(0, (0.3,))]], shots=1000)
            >>> 900 < int(counts[1]) < 980
            True
        """
        if isinstance(shots, bool) or not isinstance(shots, int) or shots < 1:
            raise InputError(f"shots must be a whole number of at least 1 (got {shots!r}); take 1000, for example.")
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2**63 - 1 (got {seed!r}); take 0, for example.")
        groups: dict[_Key, _Group] = {}
        known: dict[tuple[int, ...], list[_Group]] = {}  # groups of the blocks of a circuit with these templates
        for number, blocks in enumerate(circuits):
            used = tuple(block.template for block in blocks)
            if used not in known:
                known[used] = [self._group(groups, *placed) for placed in _side_by_side(templates, used)]
            for place, group in enumerate(known[used]):
                group.where.append((number, place))
        counts = [[torch.empty(0)] * len(blocks) for blocks in circuits]
        for key, group in groups.items():
            angles = _rows(group.circuit, [circuits[number][place] for number, place in group.where])
            found = _probabilities(group.circuit, torch.from_numpy(angles), group.noise)
            drawn = torch.from_numpy(_draw(found.numpy(), angles, shots, f"{seed} {shots} {key}"))
            for (number, place), row in zip(group.where, drawn.unbind(), strict=True):
                counts[number][place] = row
        return counts

    def _group(self, groups: dict[_Key, _Group], template: NativeTemplate, beside: list[NativeTemplate]) -> _Group:
        noise = self.noise.of(template, beside)
        return groups.setdefault((template.circuit.key, template.qubits, noise.key), _Group(template.circuit, noise))

    def probabilities(self, template: NativeTemplate, angles: Tensor, beside: Sequence[NativeTemplate] = ()) -> Tensor:
        """What :meth:`run` draws the counts of a block from.

        Args:
            template: The block.
            angles: Native angles ``(batch, n_angles)``, radians.
            beside: Blocks that run at the same time; they matter with crosstalk.

        Returns:
            ``(batch, 2**k)``, float64, with readout errors; wire 0 is the most significant bit. Differentiable once
            for the angles, and so for what the template made them of.

        Raises:
            InputError: As :meth:`run`.
        """
        return _probabilities(template.circuit, angles, self.noise.of(template, beside))

    def expectations(
        self,
        template: NativeTemplate,
        angles: Tensor,
        observables: Sequence[Observable | str] | None = None,
        beside: Sequence[NativeTemplate] = (),
        readout_errors: bool = True,
    ) -> Tensor:
        """Exact expectations with noise: what infinitely many shots would give on average.

        Args:
            template: The block.
            angles: Native angles ``(batch, n_angles)``, radians.
            observables: Pauli strings on the qubits of the circuit that was compiled; ``None`` means Z on each.
            beside: Blocks that run at the same time; they matter with crosstalk.
            readout_errors: ``False`` gives what perfect mitigation of the readout would.

        Returns:
            ``(batch, n_observables)`` in the precision of the angles. Differentiable once for the angles, and so for
            what the template made them of.

        Raises:
            InputError: As :meth:`run`, or an observable on a qubit that the circuit does not have.
        """
        texts = [f"Z{qubit}" for qubit in range(len(template.readout))] if observables is None else observables
        circuit = _observed(template.circuit.key, tuple(_moved(text, template.readout) for text in texts))
        return run_noisy(circuit, angles, _NO_WEIGHTS.to(angles), self.noise.of(template, beside, readout_errors))


_Key = tuple[str, tuple[int, ...], str]  # circuit, qubits, noise


class _Group:
    """Blocks that are simulated as one batch, and where each stands: (circuit, place in it)."""

    def __init__(self, circuit: Circuit, noise: NoiseModel) -> None:
        self.circuit = circuit
        self.noise = noise
        self.where: list[tuple[int, int]] = []


def _side_by_side(
    templates: Sequence[NativeTemplate], used: Sequence[int]
) -> list[tuple[NativeTemplate, list[NativeTemplate]]]:
    """The blocks of a circuit, each with the others."""
    wrong = [number for number in used if not 0 <= number < len(templates)]
    if wrong:
        raise InputError(f"a block has the template {wrong[0]}, but there are {len(templates)}; count from 0.")
    found = [templates[number] for number in used]
    taken = Counter(qubit for template in found for qubit in template.qubits)
    twice = [qubit for qubit, count in taken.items() if count > 1]
    if twice:
        raise InputError(f"two blocks of a circuit stand on qubit {twice[0]}; blocks must not share qubits.")
    return [(template, found[:place] + found[place + 1 :]) for place, template in enumerate(found)]


def _rows(circuit: Circuit, blocks: Sequence[Placed]) -> NDArray[np.float64]:
    """Angles of blocks: (blocks, n_angles)."""
    for block in blocks:
        if len(block.angles) != circuit.n_inputs:
            raise InputError(
                f"a block has {len(block.angles)} angles, its template takes {circuit.n_inputs}; "
                f"make them with NativeTemplate.angles."
            )
    return np.array([block.angles for block in blocks], dtype=np.float64).reshape(len(blocks), circuit.n_inputs)


def _probabilities(circuit: Circuit, angles: Tensor, noise: NoiseModel) -> Tensor:
    """``(batch, n_angles) -> (batch, 2**k)``"""
    check_angles(circuit, angles, _NO_WEIGHTS.to(angles))
    still = angles.new_zeros(len(angles), 1)
    return noisy_probabilities(_kept(circuit.key), torch.cat([angles, still], 1), _NO_WEIGHTS.to(angles), noise)


@lru_cache(maxsize=256)
def _kept(key: str) -> Circuit:
    """The circuit, given by its key, with RZ by one more angle on every wire in the end.

    What no input follows, the simulator does to observables, not to states; with all strings of Z as observables that
    is 4**k numbers for each of 2**k. These turns change nothing that is read, but now an input follows everything.
    """
    circuit = Circuit.from_key(key)
    turns = tuple(Gate("RZ", (wire,), Input(circuit.n_inputs)) for wire in range(circuit.n_qubits))
    return replace(circuit, gates=circuit.gates + turns)


def _draw(
    probabilities: NDArray[np.float64], angles: NDArray[np.float64], shots: int, context: str
) -> NDArray[np.int64]:
    """Multinomial counts ``(blocks, 2**k)``, each block from a random stream of its own."""
    shares = np.clip(probabilities, 0.0, None)
    shares /= shares.sum(1, keepdims=True)
    counts = np.empty(shares.shape, dtype=np.int64)
    stream = np.random.Philox(0)  # counts up: a new key is a new stream, without any setting up
    generator = np.random.Generator(stream)
    state = stream.state
    start = hashlib.blake2b(context.encode(), digest_size=16)
    met: defaultdict[bytes, int] = defaultdict(int)
    for row, share in enumerate(shares):
        content = angles[row].tobytes()
        own = start.copy()
        own.update(content + met[content].to_bytes(8, "little"))
        met[content] += 1
        state["state"]["key"] = np.frombuffer(own.digest(), dtype=np.uint64)
        stream.state = state
        counts[row] = generator.multinomial(shots, share)
    return counts


@lru_cache(maxsize=256)
def _observed(key: str, observables: tuple[str, ...]) -> Circuit:
    """The circuit, given by its key, with other observables."""
    return replace(Circuit.from_key(key), observables=tuple(map(Observable, observables)))


def _moved(observable: Observable | str, readout: Sequence[int]) -> str:
    """An observable of the original circuit on the wires that carry its qubits."""
    paulis = (Observable(observable) if isinstance(observable, str) else observable).paulis
    beyond = [qubit for _, qubit in paulis if qubit >= len(readout)]
    if beyond:
        raise InputError(
            f"observable {observable} names qubit {beyond[0]}, but the circuit has {len(readout)}; count from 0."
        )
    return " ".join(f"{letter}{readout[qubit]}" for letter, qubit in paulis)
