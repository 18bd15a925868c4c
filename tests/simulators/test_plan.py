"""How circuits become plans of the native kernel: chains, parts, cones, frames, sweeps, kept states.

What a plan computes is compared with the references in ``test_references.py``; here is what it leaves out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from random_cases import random_circuit

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.simulators import plan
from qpeft.simulators.lowering import PauliMask, Permutation

SIZES = plan.KernelSizes(vector_bytes=64, max_radix=4)
SIGNS, TABLE, LANE_PHASE, PASS, CONTROLLED = range(5)
TURN, PHASE = range(2)


@dataclass
class Operation:
    kind: int
    complex_in: int
    complex_out: int
    gradient_after: int
    turns: list[list[int]]  # angle, flip, parity, odd
    terms: list[list[int]]  # mask, angle, sign
    bases: list[int]


@dataclass
class Group:
    members: list[list[int]]  # value, whether it starts from -1, wires
    n_coefficients: int
    n_slots: int
    levels: list[list[tuple[list[int], int]]]  # runs: letters and number of sums
    targets: list[list[int]]
    pairs: list[list[int]]
    angles: list[list[int]]  # of each rotation, by member
    coefficients: list[list[int]]  # slot, whether negative


@dataclass
class Part:
    n_bits: int
    chains: list[list[int]]  # kinds
    operations: list[Operation]
    n_buffers: int
    buffers: list[int]  # of every boundary
    ends_in_pass: int
    values: list[list[int]]  # flips, signs, n_y, whether negative, bit
    order: list[int]
    members: list[int]  # of the groups of a last pass that the backward pass begins in
    starts: list[int]
    groups: list[Group]  # of polynomials, instead of a state


@dataclass
class Plan:
    by_amplitudes: int
    n_shared: int
    angles: list[tuple[list[int], list[int]]]  # numbers of inputs and of weights
    parts: list[Part]
    outputs: list[list[int]]


def read(circuit: Circuit, sizes: plan.KernelSizes = SIZES, probabilities: bool = False) -> Plan:
    """A plan as the kernel reads it."""
    ints, numbers = plan.make_plan(circuit, sizes, probabilities)
    rest = iter(ints.tolist())

    def take(count: int) -> list[int]:
        return [next(rest) for _ in range(count)]

    def listed() -> list[int]:
        return take(next(rest))

    def operation() -> Operation:
        kind, *flags = take(4)
        turns, terms, bases = [], [], []
        if kind in (PASS, CONTROLLED):
            turns = [take(4) for _ in range(next(rest))]
            take(2 if kind == CONTROLLED else 0)
            bases = listed()
        else:
            terms = [take(3) for _ in range(next(rest))]
        return Operation(kind, *flags, turns, terms, bases)

    def group() -> Group:
        n_members, n_coefficients, n_slots, n_levels = take(4)
        levels, targets = [], []
        for _ in range(n_levels):
            levels.append([(listed(), next(rest)) for _ in range(next(rest))])
            targets.append(take(sum(count for _, count in levels[-1])))
        pairs, angles = [], []
        for _ in range(next(rest)):
            pairs.append(take(2 * next(rest)))
            angles.append(take(n_members))
        members = [take(2 + n_levels) for _ in range(n_members)]
        coefficients = [take(2) for _ in range(n_coefficients)]
        return Group(members, n_coefficients, n_slots, levels, targets, pairs, angles, coefficients)

    def part() -> Part:
        n_bits, _, _ = take(3)
        chains = [[take(2)[0] for _ in range(next(rest))] for _ in range(n_bits)]
        operations = [operation() for _ in range(next(rest))]
        n_buffers = next(rest)
        buffers = take(len(operations) + 1)
        ends_in_pass = next(rest)
        values = [take(5) for _ in range(next(rest))]
        take(1)
        order = listed()
        members = take(1 << len(operations[-1].turns)) if ends_in_pass else []
        starts = take(len(operations[-1].bases)) if ends_in_pass else []
        groups = [group() for _ in range(next(rest))]
        ending = order, members, starts
        return Part(n_bits, chains, operations, n_buffers, buffers, ends_in_pass, values, *ending, groups)

    n_inputs, n_weights, by_amplitudes, is_probabilities, n_shared = take(5)
    assert (n_inputs, n_weights, is_probabilities) == (circuit.n_inputs, circuit.n_weights, probabilities)
    angles = [(listed(), listed()) for _ in range(next(rest))]
    parts = [part() for _ in range(next(rest))]
    result = Plan(by_amplitudes, n_shared, angles, parts, [listed() for _ in range(next(rest))])
    assert list(rest) == []
    assert len(numbers) == sum(1 + len(inputs) + len(weights) for inputs, weights in angles)
    return result


def kinds(part: Part) -> list[int]:
    return [operation.kind for operation in part.operations]


def random_circuits(count: int, most_qubits: int) -> Iterator[Circuit]:
    for seed in range(count):
        rng = np.random.default_rng(seed)
        yield random_circuit(rng, int(rng.integers(1, most_qubits + 1)), int(rng.integers(40)))


@pytest.fixture
def states(monkeypatch):
    """No polynomials."""
    monkeypatch.setattr(plan._Part, "expand", lambda part: None)


# --- parts, cones, chains -----------------------------------------------------------------------------------------


def test_one_layer_of_a_cnot_ring_is_single_qubits():
    """Pulled back through the ring, every Z is a product over wires that nothing entangles."""
    found = read(rotation_cnot_ring(6, 1))
    assert [part.n_bits for part in found.parts] == [1] * 6
    assert all(part.operations == [] and part.chains == [[TURN, PHASE, TURN]] for part in found.parts)
    assert sorted(map(len, found.outputs)) == [2, 3, 4, 5, 5, 6]  # Z_0 Z_1, Z_0 Z_1 Z_2, ..., and around the ring


@pytest.mark.parametrize("order", ["published", "older"])
def test_one_layer_of_qtha_is_polynomials_of_one_structure(order):
    found = read(qtha_block(9, 1, order))
    (whole,) = found.parts
    assert (whole.n_bits, whole.operations) == (9, [])
    (group,) = whole.groups
    assert sorted(value for value, *_ in group.members) == list(range(9))
    assert group.n_coefficients == (44 if order == "published" else 5)
    assert all(len(set(wires)) == len(wires) for _, _, *wires in group.members)
    assert {len(wires) for _, _, *wires in group.members} == {5 if order == "published" else 3}
    assert [len(output) for output in found.outputs] == [1] * 9


def test_cones_are_states_where_inputs_enter_late():
    """Two re-uploading layers on a ring so wide that nine qubits of it cost less."""
    found = read(qtha_block(14, 2))
    assert [part.n_bits for part in found.parts] == [9] * 14
    assert not any(part.groups for part in found.parts)


def test_levels_of_polynomials_use_every_number_once():
    circuits = [*random_circuits(200, 6), *(qtha_block(n, 1) for n in range(5, 9))]
    groups = [group for circuit in circuits for part in read(circuit).parts for group in part.groups]
    assert len(groups) > 10
    for group in groups:
        numbers = group.n_coefficients
        for runs, targets in zip(group.levels, group.targets, strict=True):
            assert sum(len(letters) * count for letters, count in runs) == numbers
            assert sorted(targets) == list(range(len(targets)))
            numbers = len(targets)
        assert numbers <= 1
        slots = [slot for pair in group.pairs for slot in pair]
        assert max(slots, default=0) < group.n_slots
        assert all(slot < group.n_slots for slot, _ in group.coefficients)


@pytest.mark.usefixtures("states")
def test_observables_with_one_cone_share_it():
    gates = [*(Gate("RX", wire, Weight(wire)) for wire in range(6)), Gate("CRX", (0, 1), 0.3)]
    found = read(Circuit(6, tuple(gates), ("Z0 Z1", "X0 X1", "Z1 X0", "Z5")))
    assert [part.n_bits for part in found.parts] == [2, 1]
    assert found.outputs == [[0], [1], [2], [3]]


def test_two_layers_stay_whole():
    found = read(qtha_block(5, 2))
    assert [part.n_bits for part in found.parts] == [5]


@pytest.mark.usefixtures("states")
def test_gates_before_anything_entangles_become_chains():
    gates = [Gate("RY", 0, Input(0)), Gate("RZ", 0, Weight(0)), Gate("RY", 0, 0.4), Gate("RX", 1, Weight(1))]
    entangled = [*gates, Gate("CRY", (0, 1), Weight(2)), Gate("RX", 0, Weight(3)), Gate("RY", 1, 0.3)]
    (whole,) = read(Circuit(2, tuple(entangled), ("Y0 X1",))).parts
    # by bit, wire 1 first; RX is RZ RY RZ, of which |0> takes the first alone
    assert whole.chains == [[TURN, PHASE], [TURN, PHASE, TURN]]
    assert CONTROLLED in kinds(whole)
    assert len(whole.operations) > 2


def test_gates_on_idle_wires_are_chains_though_others_are_entangled():
    gates = (Gate("H", 0), Gate("CRY", (0, 1), 0.5), Gate("RY", 2, Weight(0)), Gate("CRY", (1, 0), Input(0)))
    found = read(Circuit(3, gates, ("Z0 X1", "X2", "X1 Z2")))
    pair, alone = sorted(found.parts, key=lambda part: -part.n_bits)
    assert (pair.n_bits, kinds(pair)) == (2, [CONTROLLED, CONTROLLED])
    assert (alone.n_bits, alone.operations, alone.chains) == (1, [], [[TURN]])
    assert sorted(map(len, found.outputs)) == [1, 1, 2]


@pytest.mark.usefixtures("states")
def test_constants_and_permutations_cost_nothing():
    moves = Gate("X", 0), Gate("CNOT", (0, 1)), Gate("SWAP", (1, 2)), Gate("Y", 2)
    gates = [Gate("H", 0), *moves, *moves, *moves]
    found = read(Circuit(3, tuple(gates), ("Z0", "Z1 Z2")))
    assert all(part.operations == [] for part in found.parts)


# --- operations ---------------------------------------------------------------------------------------------------


def test_sweeps_are_few_and_balanced():
    turns = [Gate("RY", wire, Weight(wire)) for wire in range(7)]
    circuit = Circuit(7, (*turns, *(Gate("CZ", (wire, wire + 1)) for wire in range(6)), *turns))
    for max_radix, expected in ((4, {3, 4}), (3, {2, 3}), (2, {1, 2}), (1, {1})):
        (whole,) = read(circuit, plan.KernelSizes(16, max_radix), probabilities=True).parts
        assert {len(o.turns) for o in whole.operations if o.kind == PASS} == expected


@pytest.mark.usefixtures("states")
def test_real_circuits_stay_real_and_signs_are_told_from_phases():
    real = read(simplified_two_design(5, 2))
    assert {kind for part in real.parts for kind in kinds(part)} == {PASS, SIGNS}
    assert not any(o.complex_out for part in real.parts for o in part.operations)
    more = (Gate("S", 0), Gate("H", 0))
    circuit = simplified_two_design(5, 2)
    phased = read(Circuit(5, circuit.gates + more, ("Z0 Z1 Z2 Z3 Z4",)))
    assert TABLE in kinds(phased.parts[0])
    assert phased.parts[0].operations[-1].complex_out


def test_phases_with_inputs_are_told_from_those_without():
    gates = [Gate("H", wire) for wire in range(2)] + [Gate("CZ", (0, 1))]
    gates += [Gate("CRZ", (0, 1), Input(0)), Gate("RZ", 0, Weight(0)), Gate("H", 0), Gate("H", 1)]
    found = read(Circuit(2, tuple(gates), ("Z0 Z1",)))
    (whole,) = found.parts
    assert kinds(whole) == [TABLE, LANE_PHASE, PASS]
    table, lanes, _ = whole.operations
    assert all(angle < found.n_shared for _, angle, _ in table.terms)
    assert all(angle >= found.n_shared for _, angle, _ in lanes.terms)


@pytest.mark.usefixtures("states")
def test_every_group_of_a_sweep_is_met_once():
    for circuit in random_circuits(30, 6):
        for part in read(circuit).parts:
            for operation in part.operations:
                if operation.kind != PASS:
                    continue
                flips = [flip for _, flip, _, _ in operation.turns]
                slots = [
                    base ^ int(np.bitwise_xor.reduce([flip for k, flip in enumerate(flips) if member >> k & 1] or [0]))
                    for base in operation.bases
                    for member in range(1 << len(flips))
                ]
                assert sorted(slots) == list(range(1 << part.n_bits))


@pytest.mark.usefixtures("states")
def test_equal_angles_are_one_and_those_of_the_batch_come_last():
    gates = [Gate("RY", wire, Weight(0)) for wire in range(3)] + [Gate("CRX", (0, 1), Input(0))]
    gates += [Gate("CRX", (1, 2), Input(0)), Gate("CRX", (2, 0), Weight(0))]
    found = read(Circuit(3, tuple(gates), ("Z0", "Y1", "Z2")))
    assert [inputs for inputs, _ in found.angles].count([0]) == 1
    assert [weights for _, weights in found.angles].count([0]) == 1
    assert all(not inputs for inputs, _ in found.angles[: found.n_shared])
    assert all(inputs for inputs, _ in found.angles[found.n_shared :])


def test_large_circuits_are_one_state_without_lists_of_slots():
    n = plan.SAMPLE_QUBITS + 1
    for probabilities in (False, True):
        found = read(qtha_block(n, 4), probabilities=probabilities)
        assert found.by_amplitudes
        (whole,) = found.parts
        assert whole.n_bits == n
        assert all(operation.bases == [] for operation in whole.operations)
        assert len(whole.order) == (1 << n if probabilities else 0)
    assert not read(rotation_cnot_ring(n, 1)).by_amplitudes  # its parts are small


# --- kept states --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("states")
@pytest.mark.parametrize("history_bytes", [plan._HISTORY_BYTES, 1])
def test_every_operation_finds_a_state(history_bytes, monkeypatch):
    """Kept, or before the first kept one, from which it is computed back; each buffer holds one kept state."""
    monkeypatch.setattr(plan, "_HISTORY_BYTES", history_bytes)
    for circuit in random_circuits(60, 6):
        for part in read(circuit).parts:
            kept = [boundary for boundary, buffer in enumerate(part.buffers) if buffer >= 0]
            assert [part.buffers[boundary] for boundary in kept] == list(range(len(kept)))
            assert part.n_buffers == max(1, len(kept))
            assert history_bytes > 1 or len(kept) <= 2
            if not part.operations:
                continue
            last = len(part.operations) - part.ends_in_pass
            assert (kept or [0])[-1] == last
            for boundary, buffer in enumerate(part.buffers[: last + 1]):
                if buffer < 0 and boundary < last:  # works in the buffer of the next kept one
                    assert -1 - buffer == min(k for k, b in enumerate(kept) if b > boundary)
            for i, operation in enumerate(part.operations):
                wanted = i + operation.gradient_after
                found = operation.kind == SIGNS or wanted == 0 or wanted in kept or wanted < kept[0]
                assert found, f"operation {i} of {circuit.key}"
                assert not (operation.gradient_after and operation.complex_out and not operation.complex_in)
                assert not (operation.gradient_after and i == last)


@pytest.mark.usefixtures("states")
def test_about_every_second_state_is_kept():
    (part,) = read(simplified_two_design(3, 20)).parts
    kept = sum(buffer >= 0 for buffer in part.buffers)
    assert kept <= len(part.operations) / 2 + 2


# --- slots --------------------------------------------------------------------------------------------------------


def parity(value: int) -> int:
    return value.bit_count() % 2


def random_permutation(rng: np.random.Generator, n: int) -> Permutation:
    result = Permutation([1 << i for i in range(n)], int(rng.integers(1 << n)))
    for _ in range(3 * n):
        a, b = (int(bit) for bit in rng.permutation(n)[:2])
        columns = [1 << i for i in range(n)]
        columns[a] |= 1 << b
        result = result.then(Permutation(columns, 0))
    return result


@pytest.mark.parametrize("n", [2, 3, 5])
def test_a_frame_says_where_amplitudes_are(n):
    """Against the states themselves: slot -> basis state, permuted one after the other."""
    rng = np.random.default_rng(n)
    frame, states = plan._Frame(n), list(range(1 << n))
    for _ in range(4):
        step = random_permutation(rng, n)
        frame.permute(step)
        states = [step.linear(state) ^ step.offset for state in states]
        for slot, state in enumerate(states):
            for mask in range(1 << n):
                slots, odd = frame.parity(mask)
                assert parity(slot & slots) ^ odd == parity(state & mask)
                assert states[slot ^ frame.flip(mask)] == state ^ mask
        for wire in range(n):
            turn = frame.rotation(wire, None)
            bit = 1 << (n - 1 - wire)
            first = [slot for slot in range(1 << n) if parity(slot & turn.parity) == turn.odd]
            assert not any(states[slot] & bit for slot in first)
            assert {states[slot ^ turn.flip] for slot in first} == {states[slot] ^ bit for slot in first}


def test_measured_strings_are_bits_of_the_order():
    rng = np.random.default_rng(0)
    for _ in range(40):
        n = int(rng.integers(1, 7))
        masks = [int(mask) for mask in rng.integers(1, 1 << n, size=rng.integers(1, 6))]
        values = [PauliMask(0, mask, 0) for mask in masks] + [PauliMask(1, 1, 1)]
        bits, order = plan._measuring_order(plan._Part(n, [], [], values))
        assert sorted(order.tolist()) == list(range(1 << n))
        assert sorted(bits.values()) == list(range(len(bits)))
        spanned = {0}
        for number, mask in enumerate(masks):  # those that are sums of earlier ones have none
            assert (number in bits) == (mask not in spanned)
            spanned |= {other ^ mask for other in spanned}
        for number, bit in bits.items():
            assert all(parity(int(slot) & masks[number]) == place >> bit & 1 for place, slot in enumerate(order))
        assert len(masks) not in bits


@pytest.mark.usefixtures("states")
def test_a_last_pass_knows_the_places_of_its_members():
    """Where the backward pass begins in it: slots of the measuring order by group and member, strings as bits."""
    circuits = [
        *random_circuits(200, 6),
        *(ansatz(n, 2) for ansatz in (qtha_block, rotation_cnot_ring) for n in (3, 5, 8)),
    ]
    parts = [part for circuit in circuits for part in read(circuit).parts if part.ends_in_pass]
    assert len(parts) > 20
    assert {len(part.operations[-1].turns) for part in parts} >= {1, 3, 4}
    for part in parts:
        turns, bases = part.operations[-1].turns, part.operations[-1].bases
        for place, slot in enumerate(part.order):
            group, k = divmod(place, 1 << len(turns))
            member = part.members[k] ^ part.starts[group]
            flips = [flip for i, (_, flip, _, _) in enumerate(turns) if member >> i & 1]
            assert slot == int(np.bitwise_xor.reduce([bases[group], *flips]))
        for base in bases:
            assert all(parity(base & mask) == odd for _, _, mask, odd in turns)
        for flips, signs, _, _, bit in part.values:
            assert flips == 0
            assert all(parity(slot & signs) == place >> bit & 1 for place, slot in enumerate(part.order))


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_slots_are_spread_over_the_cache(n):
    """Wires keep their amplitudes, and those that differ in upper wires alone differ in lower bits of their slots."""
    half = n // 2
    rng = np.random.default_rng(n)
    wires = [plan._Rotation(None, 1 << bit, 1 << bit, 0) for bit in range(n)]
    masks = [int(mask) for mask in rng.integers(1 << n, size=4)]
    spread = plan._spread(plan._Part(n, [], [plan._Rotations(wires)], [PauliMask(mask, mask, 0) for mask in masks]))
    slots = [
        row << half | (column ^ row & (1 << half) - 1) for row in range(1 << n - half) for column in range(1 << half)
    ]
    assert sorted(slots) == list(range(1 << n))
    for bit, turn in enumerate(spread.steps[0].turns):
        for state, slot in enumerate(slots):
            assert slots[state ^ 1 << bit] == slot ^ turn.flip
            assert parity(slot & turn.parity) == state >> bit & 1
    for mask, value in zip(masks, spread.values, strict=True):
        for state, slot in enumerate(slots):
            assert slots[state ^ mask] == slot ^ value.flips
            assert parity(slot & value.signs) == parity(state & mask)


def test_outcomes_are_in_the_order_of_basis_states():
    gates = (Gate("X", 0), Gate("CNOT", (0, 2)), Gate("SWAP", (0, 1)))
    (whole,) = read(Circuit(3, gates, ("Z0",)), probabilities=True).parts
    assert whole.order[0b011] == 0  # all amplitude stays in slot 0, which is |011> at the end
    assert sorted(whole.order) == list(range(8))
