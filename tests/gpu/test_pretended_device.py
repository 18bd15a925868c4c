"""What computes circuits keeps to the device of its inputs, and finds the same numbers there as on the processor."""

import pytest
import torch
from pretended_device import CUDA, MixedDevices, PretendedDevice

from qpeft.circuits import Circuit, Gate, Weight, qtha_block, rotation_cnot_ring
from qpeft.gradients import shift_gradient, spsa_gradient
from qpeft.qpu.settings import ExecutionSettings, open_executor
from qpeft.simulators import NoiseModel, density, outcomes, run, run_noisy, run_shots
from qpeft.simulators.lightcone import LightConeEngine
from qpeft.simulators.lowering import lower
from qpeft.simulators.statevector import StateVectorEngine
from qpeft.tensornet.orthogonal_engine import OrthogonalEngine
from qpeft.tensornet.orthogonal_plan import make_plan

NOISE = NoiseModel.uniform(depolarizing=0.01, readout=0.03)
CIRCUITS = [qtha_block(4, 2), rotation_cnot_ring(5, 1), qtha_block(3, 1, "older", "none")]
ENGINES = {
    "state vector": lambda c: StateVectorEngine(lower(c), c.n_inputs, c.n_weights),
    "light cones": LightConeEngine.for_circuit,
    "noise": lambda c: density._engine(c.key, NOISE.reduce(c).key),
    "probabilities": lambda c: outcomes._engine(c.key, "cuda"),
}


def draw(circuit, rows=5):
    generator = torch.Generator().manual_seed(1)
    shapes = (rows, circuit.n_inputs), (circuit.n_weights,), (rows, circuit.n_observables)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def assert_the_same_on_cuda(evaluate, *tensors):
    """Same bits, and all results on the device."""
    expected = evaluate(*tensors)
    with PretendedDevice():
        found = evaluate(*(tensor.to("cuda") for tensor in tensors))
        assert all(result.device == CUDA for result in found)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def test_the_pretended_device_refuses_what_a_real_one_would():
    with PretendedDevice():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (2 * there[1:] + torch.tensor(1.0)).device == CUDA
        assert torch.zeros_like(there).device == there.new_zeros(2).T.device == here.to(there).device == CUDA
        assert here.device == there.cpu().device == there.to("cpu").device == torch.device("cpu")
        for refused in (lambda: there + here, lambda: torch.stack([here, there]), lambda: there @ here, there.numpy):
            with pytest.raises(MixedDevices):
                refused()


@pytest.mark.parametrize("circuit", CIRCUITS, ids=["re-uploading", "ring", "product"])
@pytest.mark.parametrize("engine", ENGINES)
def test_engines(engine, circuit):
    built = ENGINES[engine](circuit)
    if built is None:
        assert engine == "light cones"
        return
    inputs, weights, cotangent = draw(circuit)
    if engine == "probabilities":
        cotangent = torch.randn(5, 1 << circuit.n_qubits)
    assert_the_same_on_cuda(
        lambda g, x, w: (built.evaluate(x, w), *built.differentiate(g, x, w)), cotangent, inputs, weights
    )


def test_orthogonal_matrices():
    turns = (Gate("RY", (wire,), Weight(wire)) for wire in range(4))
    plan = make_plan(Circuit(4, (*turns, Gate("CZ", (0, 1)), Gate("CNOT", (2, 3)))))
    weights, x = torch.randn(4), torch.randn(6, 16)

    def apply(weights, x):
        return (OrthogonalEngine(plan, x.device, x.dtype).apply(weights, x, transpose=False),)

    assert_the_same_on_cuda(apply, weights, x)


@pytest.fixture
def host_generators(monkeypatch):
    """Random numbers of the pretended device come from the processor."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())


@pytest.mark.parametrize("noise", [None, NOISE], ids=["ideal", "noise"])
@pytest.mark.parametrize("marginals", [False, True])
def test_shots(host_generators, marginals, noise):
    circuit = qtha_block(3, 2)
    reduced = None if noise is None else noise.reduce(circuit)
    assert_the_same_on_cuda(lambda x, w: (run_shots(circuit, x, w, 50, 1, reduced, marginals),), *draw(circuit)[:2])


def test_gradient_rules():
    circuit = qtha_block(2, 1)
    assert_the_same_on_cuda(lambda x, w, g: tuple(shift_gradient(circuit, x, w, _on_torch, g)), *draw(circuit))

    def spsa(x, w, g):
        return tuple(spsa_gradient(circuit, x, w, g, _on_torch, 2, generator=torch.Generator().manual_seed(3)))

    assert_the_same_on_cuda(spsa, *draw(circuit))


def _on_torch(circuit, inputs, weights):
    return StateVectorEngine(lower(circuit), circuit.n_inputs, circuit.n_weights).evaluate(inputs, weights)


def test_operators_of_the_simulators():
    circuit = qtha_block(3, 2)
    with PretendedDevice():
        inputs, weights, _ = (tensor.to("cuda") for tensor in draw(circuit))
        exact, noisy = run(circuit, inputs, weights), run_noisy(circuit, inputs, weights, NOISE)
        assert exact.device == noisy.device == CUDA
        assert (exact - noisy).abs().max() < 0.5


def test_a_chip_takes_activations_of_a_device_and_returns_there():
    circuit = qtha_block(2, 1)
    inputs, weights, _ = draw(circuit)

    def found():
        executor = open_executor(ExecutionSettings("virtual-wukong", shots=200, seed=3))
        try:
            values = executor.expectations(circuit, *angles)
            return values, executor.twin(circuit, *angles)
        finally:
            executor.close()

    angles = inputs, weights
    expected = found()
    with PretendedDevice():
        angles = inputs.to("cuda"), weights.to("cuda")
        results = found()
        assert all(result.device == CUDA for result in results)
    for a, b in zip(results, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
