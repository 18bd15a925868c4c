"""Programs on the virtual chip: parts, bits, what is refused; joined shots and corrected readout."""

import math
from random import Random

import numpy as np
import pytest
import torch

from loopback import agrees, grid_chip, packed_job
from qpeft.chips.virtual import VirtualChip
from qpeft.circuits import Circuit, Gate
from qpeft.circuits.circuit import GATES
from qpeft.cloud.in_place import nativize
from qpeft.cloud.machine import run_programs
from qpeft.cloud.program import best_place, plan_program
from qpeft.errors import InputError
from qpeft.qpu.providers.origin_program import packed_program
from qpeft.simulators import probabilities

SETTINGS = {"mapping": False, "amend": 0}
CHIP = grid_chip()


def vector(row):
    """Counts or frequencies of all bit strings, bit 0 least significant."""
    out = np.zeros(1 << len(row.bits))
    for key, value in zip(row.keys, row.values, strict=True):
        out[int(key, 16)] += value
    return out


def test_a_packed_program_is_cut_into_its_blocks():
    job = packed_job(2)
    plan = plan_program(packed_program(job, job.circuits[0], 12), CHIP, mapping=False)
    assert [part.template.qubits for part in plan.parts] == [(2, 3, 6), (8, 9)]
    assert [part.bits for part in plan.parts] == [(1, 0, 2), (4, 3)]
    assert plan.n_bits == 5
    assert plan.text == packed_program(job, job.circuits[0], 12)
    again = plan_program(packed_program(job, packed_job(2, seed=1).circuits[0], 12), CHIP, mapping=False)
    assert again.parts[0].template is plan.parts[0].template
    assert again.angles != plan.angles
    assert sorted(plan.angles[1]) == sorted(job.circuits[0][1].angles)


def test_a_cloud_task_is_what_the_chip_says():
    """The path through program text gives the distributions of the templates it was written from."""
    job = packed_job(2, shots=10_000)
    chip = VirtualChip(CHIP)
    rows = run_programs(chip, [packed_program(job, c, 12) for c in job.circuits], 10_000, SETTINGS, seed=3)
    for row, blocks in zip(rows, job.circuits, strict=True):
        offset = 0
        whole = vector(row)
        for block in blocks:
            k = len(job.templates[block.template].qubits)
            inner = whole.reshape(-1, 1 << k, 1 << offset).sum(axis=(0, 2))
            exact = chip.probabilities(job.templates[block.template], torch.tensor([block.angles]).double())[0]
            assert agrees(torch.from_numpy(inner), exact)
            offset += k
        assert whole.sum() == 10_000


def test_parts_are_independent():
    """Two qubits that are each read as 0 or 1 half of the time are read in all four ways equally often."""
    text = "QINIT 12\nCREG 2\nH q[2]\nH q[8]\nMEASURE q[2],c[0]\nMEASURE q[8],c[1]\n"
    [row] = run_programs(VirtualChip(grid_chip(readout=(0.0, 0.0))), [text], 10_000, SETTINGS, seed=0)
    assert agrees(torch.from_numpy(vector(row)), torch.full((4,), 0.25, dtype=torch.float64))


def test_bits_follow_the_measurements():
    text = "QINIT 12\nCREG 4\nX q[2]\nX q[8]\nMEASURE q[8],c[3]\nMEASURE q[9],c[1]\nMEASURE q[2],c[0]\n"
    quiet = grid_chip(readout=(0.0, 0.0))
    [row] = run_programs(VirtualChip(quiet), [text], 1000, SETTINGS, seed=0)
    assert len(row.bits) == 3
    assert vector(row).argmax() == 0b101


def test_unread_qubits_are_summed_over():
    text = "QINIT 12\nCREG 1\nH q[2]\nCNOT q[2],q[3]\nX q[9]\nMEASURE q[3],c[0]\n"
    plan = plan_program(text, CHIP, mapping=False)
    assert len(plan.parts) == 1
    [row] = run_programs(VirtualChip(CHIP), [text], 1000, SETTINGS, seed=0)
    assert len(row.bits) == 1
    assert 400 < vector(row)[0] < 620


def test_many_bits():
    """Bit strings longer than a machine word."""
    wide = grid_chip(rows=20, readout=(0.0, 0.0))
    qubits = wide.live_qubits[:70]
    lines = [f"X q[{q}]" for q in qubits[::2]] + [f"MEASURE q[{q}],c[{bit}]" for bit, q in enumerate(qubits)]
    [row] = run_programs(VirtualChip(wide), ["QINIT 80\nCREG 70\n" + "\n".join(lines)], 100, SETTINGS, seed=0)
    common = int(row.keys[int(np.argmax(row.values))], 16)
    assert common == sum(1 << bit for bit in range(0, 70, 2))


def test_amendment_takes_readout_errors_out():
    text = packed_program(packed_job(1), packed_job(1).circuits[0], 12)
    noisy, quiet = VirtualChip(grid_chip(readout=(0.05, 0.12))), VirtualChip(grid_chip(readout=(0.0, 0.0)))
    amended = run_programs(noisy, [text], 10_000, {"mapping": False, "amend": 1}, seed=0)[0]
    plain = run_programs(noisy, [text], 10_000, SETTINGS, seed=0)[0]
    clean = run_programs(quiet, [text], 10_000, SETTINGS, seed=1)[0]
    target = vector(clean) / 10_000
    assert sum(amended.values) == pytest.approx(1)
    assert abs(vector(amended) - target).sum() < 0.06 < abs(vector(plain) / 10_000 - target).sum()


def test_amendment_of_many_bits():
    lines = [f"MEASURE q[{q}],c[{bit}]" for bit, q in enumerate(grid_chip(rows=5).live_qubits)]
    chip = VirtualChip(grid_chip(rows=5, readout=(0.1, 0.1)))
    text = f"QINIT 20\nCREG {len(lines)}\n" + "\n".join(lines)
    [row] = run_programs(chip, [text], 1000, {"mapping": False, "amend": 1}, seed=0)
    assert len(row.bits) == 19
    assert sum(row.values) == pytest.approx(1)
    assert max(zip(row.values, row.keys, strict=True))[1] == "0x0"


def test_mapping_moves_a_program_to_live_qubits():
    """Qubits 0, 1 and 5 of the program: a dead coupler and an unavailable qubit, if they were the chip's."""
    text = "QINIT 6\nCREG 3\nX q[0]\nCNOT q[0],q[1]\nCNOT q[1],q[5]\n"
    text += "MEASURE q[0],c[0]\nMEASURE q[1],c[1]\nMEASURE q[5],c[2]"
    quiet = grid_chip(readout=(0.0, 0.0))
    with pytest.raises(InputError, match="program 0: qubit 5 is not available"):
        run_programs(VirtualChip(quiet), [text], 1000, SETTINGS, seed=0)
    [row] = run_programs(VirtualChip(quiet), [text], 1000, {"mapping": True, "amend": 0}, seed=0)
    assert vector(row).argmax() == 0b111
    assert "q[5]" not in row.program
    replayed = run_programs(VirtualChip(quiet), [row.program], 1000, SETTINGS, seed=0)[0]
    assert vector(replayed).argmax() == 0b111


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("CZ q[0],q[1]\nMEASURE q[0],c[0]", "no live coupler"),
        ("CZ q[2],q[8]\nMEASURE q[2],c[0]", "no live coupler"),
        ("H q[5]\nMEASURE q[5],c[0]", "not available"),
        ("H q[30]\nMEASURE q[30],c[0]", "not available"),
        ("H q[2]", "measures nothing"),
        ("MEASURE q[2],c[0]\nMEASURE q[2],c[1]", "measured twice"),
        ("FLY q[2]\nMEASURE q[2],c[0]", "line 3"),
    ],
)
def test_what_the_chip_cannot_run(lines, words):
    with pytest.raises(InputError, match=words):
        plan_program(f"QINIT 40\nCREG 4\n{lines}", CHIP, mapping=False)


def test_gates_in_place_are_the_same_gates():
    random = Random(0)
    gates = [Gate("RY", wire, 0.4 + wire) for wire in range(3)]
    for name in [name for name in GATES for _ in range(3)]:
        kind = GATES[name]
        angle = random.uniform(-4, 4) if kind.has_angle else None
        gates.append(Gate(name, tuple(random.sample(range(3), kind.n_wires)), angle))
    circuit = Circuit(3, tuple(gates))
    native = nativize(circuit)
    assert {gate.name for gate in native.gates} == {"RX", "RZ", "CZ"}
    nothing = torch.zeros(1, 0, dtype=torch.float64)
    torch.testing.assert_close(
        probabilities(native, nothing, nothing[0]), probabilities(circuit, nothing, nothing[0]), atol=1e-9, rtol=0
    )


def test_best_places_are_connected_and_disjoint():
    first = best_place(CHIP, 4)
    second = best_place(CHIP, 4, set(first))
    pairs = {coupler.qubits for coupler in CHIP.live_couplers}
    assert not set(first) & set(second)
    for place in (first, second):
        reached, todo = {place[0]}, [place[0]]
        while todo:
            a = todo.pop()
            for b in place:
                if b not in reached and tuple(sorted((a, b))) in pairs:
                    reached.add(b)
                    todo.append(b)
        assert reached == set(place)
    with pytest.raises(InputError, match="no 12 connected qubits"):
        best_place(CHIP, 12)


def test_native_angles_are_kept_to_the_digit():
    text = "QINIT 12\nCREG 1\nRX q[2],(1.57079633)\nRZ q[2],(0.12345678)\nRX q[2],(1.57079633)\nMEASURE q[2],c[0]\n"
    plan = plan_program(text, CHIP, mapping=False)
    assert plan.angles == ((0.12345678,),)
    assert plan.parts[0].template.circuit.gates[0].angle == pytest.approx(math.pi / 2, abs=1e-8)


def test_angles_in_other_words():
    """Expressions and numbers side by side: no angle lands on another gate."""
    lines = ["RX q[2],(pi/2)", "RZ q[2],(pi/4)", "RZ q[2],(0.5)", "RX q[2],(pi/2)", "MEASURE q[2],c[0]"]
    plan = plan_program("QINIT 12\nCREG 1\n" + "\n".join(lines), CHIP, mapping=False)
    angles = [gate.angle for gate in plan.parts[0].template.circuit.gates if gate.name == "RZ"]
    assert angles == pytest.approx([math.pi / 4, 0.5])
    for wrong in ("1e999", "nan", "1.2.3"):
        with pytest.raises(InputError, match="line 4"):
            plan_program(f"QINIT 12\nCREG 1\n{lines[0]}\nRZ q[2],({wrong})\n{lines[4]}", CHIP, mapping=False)
