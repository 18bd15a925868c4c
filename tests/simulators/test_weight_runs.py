"""Which steps become one matrix, and when. That its numbers are right is tested as the engine "matrices"."""

import pytest

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine
from qpeft.simulators.weight_runs import WeightRun


def runs_of(circuit):
    steps = StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights).steps
    return steps, [step for step in steps if isinstance(step, WeightRun)]


def test_runs_end_where_inputs_are_read():
    steps, runs = runs_of(qtha_block(4, 3))
    assert [isinstance(step, WeightRun) for step in steps] == [True, False, True, False, True]
    assert [run.parts for run in runs] == [1, 2, 2]  # the first ring of phases makes the state complex
    steps, runs = runs_of(rotation_cnot_ring(4, 3))
    assert (len(steps), len(runs), runs[0].parts) == (1, 1, 1)


def test_a_single_step_stays_as_it_is():
    gates = (Gate("RY", 0, Input(0)), Gate("CRY", (0, 1), Weight(0)), Gate("CRY", (1, 0), Input(0)))
    steps, runs = runs_of(Circuit(2, gates))
    assert (len(steps), runs) == (2, [])


@pytest.mark.parametrize(
    ("circuit", "batch", "pays"),
    [
        (rotation_cnot_ring(6, 4), 4096, True),
        (simplified_two_design(5, 4), 4096, True),
        (rotation_cnot_ring(6, 4), 64, False),  # fewer samples than columns
        (rotation_cnot_ring(6, 1), 4096, False),  # shallow
        (rotation_cnot_ring(8, 2), 4096, False),  # many products for few steps
        (rotation_cnot_ring(10, 40), 10**6, False),  # the matrix is too large to keep
    ],
)
def test_matrices_are_used_where_they_pay(circuit, batch, pays):
    _, (run,) = runs_of(circuit)
    assert run.pays(batch) == pays
