"""QuantumLayer: shapes, dtypes, initialisation, copies, and life inside torch's machinery."""

import copy
import doctest
import math
import os
import pickle
import socket

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import qpeft.layer
from qpeft.circuits import qtha_block, rotation_cnot_ring
from qpeft.errors import InputError
from qpeft.layer import QuantumLayer
from qpeft.simulators import NoiseModel, run, run_noisy, run_shots
from two_processes import leave, run_on_two_processes


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return QuantumLayer(qtha_block(3, 2))


def samples(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def test_one_real_parameter_called_weight(layer):
    assert [(name, p.shape, p.dtype) for name, p in layer.named_parameters()] == [("weight", (24,), torch.float32)]
    assert list(layer.children()) == []
    assert list(layer.buffers()) == []


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3), (2, 0, 3)])
def test_leading_dimensions_are_kept(layer, shape):
    inputs = samples(*shape)
    outputs = layer(inputs)
    assert outputs.shape == shape
    flat = run(layer.circuit, inputs.reshape(-1, 3) if 0 not in shape else torch.zeros(0, 3), layer.weight)
    torch.testing.assert_close(outputs.reshape(flat.shape), flat)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_computes_in_float32_at_least_and_returns_the_input_type(layer, dtype):
    inputs = samples(4, 3, dtype=dtype)
    outputs = layer(inputs)
    assert outputs.dtype == dtype
    torch.testing.assert_close(outputs, layer(inputs.double()).to(dtype), rtol=0, atol=torch.finfo(dtype).eps)
    outputs.sum().backward()
    assert inputs.grad.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32


def test_strided_inputs(layer):
    inputs = samples(3, 7).t()
    torch.testing.assert_close(layer(inputs), layer(inputs.contiguous()))


def test_wrong_inputs_executors_and_initialisers_are_named(layer):
    with pytest.raises(InputError, match=r"must be 3 \(got shape \(5, 4\)\)"):
        layer(torch.zeros(5, 4))
    with pytest.raises(InputError, match="must be 3"):
        layer(torch.tensor(0.5))
    with pytest.raises(InputError, match="unknown executor 'qpu'; available: exact"):
        QuantumLayer(qtha_block(2, 1), executor="qpu")
    with pytest.raises(InputError, match="unknown initialiser 'ones'"):
        QuantumLayer(qtha_block(2, 1), init="ones")


def test_initialisation_follows_the_seed():
    circuit = qtha_block(8, 20)
    torch.manual_seed(3)
    first = QuantumLayer(circuit)
    torch.manual_seed(3)
    second = QuantumLayer(circuit)
    assert torch.equal(first.weight, second.weight)
    assert -math.pi <= first.weight.min() < -0.9 * math.pi
    assert 0.9 * math.pi < first.weight.max() <= math.pi
    first.reset_parameters()
    assert not torch.equal(first.weight, second.weight)
    assert (QuantumLayer(circuit, init="zeros").weight == 0).all()
    assert 0.08 < QuantumLayer(circuit, init="normal").weight.std() < 0.12


def test_copies_pickles_and_states(layer, tmp_path):
    inputs = samples(4, 3)
    expected = layer(inputs)
    assert torch.equal(copy.deepcopy(layer)(inputs), expected)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(inputs), expected)
    torch.save(layer.state_dict(), tmp_path / "angles.pt")
    fresh = QuantumLayer(layer.circuit, init="zeros")
    fresh.load_state_dict(torch.load(tmp_path / "angles.pt", weights_only=True))
    assert torch.equal(fresh(inputs), expected)
    assert "n_qubits=3" in repr(layer)
    assert "executor='exact'" in repr(layer)


def test_cast_module_keeps_angles_usable(layer):
    inputs = samples(4, 3)
    halved = copy.deepcopy(layer).to(torch.bfloat16)
    outputs = halved(inputs)
    outputs.sum().backward()
    assert halved.weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(outputs, layer(inputs), rtol=0, atol=0.2)  # bfloat16 angles


def gradients(layer, inputs, outputs):
    return torch.autograd.grad(outputs.square().sum(), (inputs, layer.weight))


def test_autocast_changes_nothing(layer):
    inputs = samples(20, 3)
    expected = layer(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = layer(inputs)
        under = gradients(layer, inputs, outputs)
    assert torch.equal(outputs, expected)
    for a, b in zip(under, gradients(layer, inputs, expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(layer, reentrant):
    inputs = samples(6, 3)
    outputs = checkpoint(layer, inputs, use_reentrant=reentrant)
    outputs.square().sum().backward()
    found = inputs.grad.clone(), layer.weight.grad.clone()
    for a, b in zip(found, gradients(layer, inputs, layer(inputs)), strict=True):
        assert torch.equal(a, b)


def test_used_twice_in_one_graph(layer):
    inputs = samples(6, 3)
    twice = gradients(layer, inputs, layer(layer(inputs)))
    precise = layer.double()
    inputs64 = inputs.detach().double().requires_grad_()
    expected = gradients(precise, inputs64, precise(precise(inputs64)))
    for a, b in zip(twice, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)
    assert torch.autograd.gradcheck(lambda x: precise(precise(x)), (inputs64,))


@pytest.mark.parametrize("ansatz", [qtha_block, rotation_cnot_ring])
def test_compiles_as_one_graph(ansatz):
    torch.manual_seed(0)
    layer = QuantumLayer(ansatz(2, 2))
    inputs = samples(4, 5, 2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    outputs = compiled(inputs)
    assert torch.equal(outputs, layer(inputs))
    for a, b in zip(gradients(layer, inputs, outputs), gradients(layer, inputs, layer(inputs)), strict=True):
        assert torch.equal(a, b)
    longer = samples(4, 9, 2)
    assert torch.equal(compiled(longer), layer(longer))  # another batch size


def test_learns():
    torch.manual_seed(0)
    layer = QuantumLayer(qtha_block(2, 2))
    head = nn.Linear(2, 1)
    inputs = torch.randn(64, 2)
    targets = (inputs[:, :1] * inputs[:, 1:]).sign()
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.05)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (head(layer(inputs)) - targets).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def _ddp_worker(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    layer = nn.parallel.DistributedDataParallel(QuantumLayer(qtha_block(2, 1)))
    inputs = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    layer(inputs[4 * rank : 4 * rank + 4]).square().mean().backward()
    torch.save(layer.module.weight.grad, f"{folder}/{rank}.pt")
    leave()


def test_data_parallel_on_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_on_two_processes(_ddp_worker, port, str(tmp_path))
    torch.manual_seed(0)
    layer = QuantumLayer(qtha_block(2, 1))
    inputs = torch.randn(8, 2, generator=torch.Generator().manual_seed(1))
    layer(inputs).square().mean().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found, layer.weight.grad, rtol=1e-5, atol=1e-7)


NOISE = NoiseModel.uniform(depolarizing=0.03, readout=(0.02, 0.05))


def layer_with(executor, circuit=None, **options):
    torch.manual_seed(0)
    return QuantumLayer(circuit or qtha_block(2, 2), executor=executor, **options)


def test_noisy_executor_computes_noisy_expectations():
    layer = layer_with("noisy", noise=NOISE)
    inputs = samples(4, 5, 2)
    outputs = layer(inputs)
    expected = run_noisy(layer.circuit, inputs.view(-1, 2), layer.weight, NOISE)
    assert torch.equal(outputs.view(-1, 2), expected)
    for a, b in zip(gradients(layer, inputs, outputs), gradients(layer, inputs, expected), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    assert "executor='noisy', noise=True, gradient='adjoint'" in repr(layer)


@pytest.mark.parametrize("options", [{"noise": NOISE}, {}, {"marginals": True}])
def test_shots_executor_estimates_without_bias(options):
    """Many equal rows are many independent estimates, of outputs and of gradients by the shift rule."""
    layer = layer_with("shots", shots=20, seed=3, **options)
    rows = 4000
    point = torch.tensor([[0.4, -1.1]], dtype=torch.float64)
    inputs = point.repeat(rows, 1).requires_grad_()
    weight = layer.weight.detach().double()
    cotangent = torch.tensor([0.7, -1.3], dtype=torch.float64)
    outputs = layer(inputs)
    to_inputs, to_weight = torch.autograd.grad(outputs, (inputs, layer.weight), cotangent.expand(rows, 2))

    point.requires_grad_()
    weight.requires_grad_()
    model = options.get("noise", NoiseModel())
    exact = run_noisy(layer.circuit, point, weight, model)
    by_inputs, by_weight = torch.autograd.grad(exact, (point, weight), cotangent[None])
    for found, expected in ((outputs, exact), (to_inputs, by_inputs)):
        error = found.std(0) / rows**0.5
        assert ((found.mean(0) - expected[0]).abs() < 4.5 * error).all()
        assert (error > 0).all()
    # Of the mean over rows: at most the norm of the rule's coefficients over all gates, shots of every output aside.
    assert (to_weight.double() / rows - by_weight).abs().max() < 4.5 * 2 / (20 * rows) ** 0.5


def test_loss_gradients_from_shots_are_unbiased():
    """The backward pass uses shots of its own: with those of the forward pass, products would be biased."""
    layer = layer_with("shots", rotation_cnot_ring(1, 1), shots=4, seed=1)
    rows = 100_000
    inputs = torch.full((rows, 1), 0.9, dtype=torch.float64, requires_grad=True)
    layer(inputs).square().sum().backward()
    point = torch.tensor([[0.9]], dtype=torch.float64, requires_grad=True)
    exact = run(layer.circuit, point, layer.weight.detach())
    (slope,) = torch.autograd.grad(exact.sum(), point)
    expected = 2 * exact.detach() * slope
    error = inputs.grad.std() / rows**0.5
    assert abs(expected) > 20 * error
    assert abs(inputs.grad.mean() - expected) < 4.5 * error


@pytest.mark.parametrize("noise", [None, NOISE])
def test_adjoint_gradients_of_shots_are_those_of_the_expectations(noise):
    layer = layer_with("shots", shots=10, noise=noise, gradient="adjoint")
    exact = layer_with("exact") if noise is None else layer_with("noisy", noise=noise)
    inputs = samples(6, 2)
    outputs = layer(inputs)
    assert not torch.equal(outputs, exact(inputs))
    expected = exact(inputs)
    for a, b in zip(
        torch.autograd.grad(outputs.sum(), (inputs, layer.weight)),
        torch.autograd.grad(expected.sum(), (inputs, exact.weight)),
        strict=True,
    ):
        assert torch.equal(a, b)


def test_seeds_of_shots():
    inputs = samples(50, 2)
    layer = layer_with("shots", shots=10, seed=5)
    first, second = layer(inputs), layer(inputs)
    assert not torch.equal(first, second)
    assert torch.equal(first, run_shots(layer.circuit, inputs, layer.weight, 10, seed=5))
    again = layer_with("shots", shots=10, seed=5)
    torch.manual_seed(77)  # other random numbers do not matter
    assert torch.equal(again(inputs), first)
    resumed = layer_with("shots", shots=10, seed=5)
    resumed.load_state_dict(again.state_dict())
    assert torch.equal(resumed(inputs), second)
    assert torch.equal(copy.deepcopy(again)(inputs), again(inputs))

    free = layer_with("shots", shots=10)
    assert list(free.state_dict()) == ["weight"]
    torch.manual_seed(1)
    outputs = free(inputs)
    torch.manual_seed(1)
    assert torch.equal(free(inputs), outputs)
    assert not torch.equal(free(inputs), outputs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_repeats_shots(reentrant):
    layer = layer_with("shots", shots=10, gradient="adjoint")
    seen = []

    def section(x):
        outputs = layer(x)
        seen.append(outputs.detach())
        return outputs.square()

    inputs = samples(6, 2)
    checkpoint(section, inputs, use_reentrant=reentrant).sum().backward()
    assert len(seen) == 2
    assert torch.equal(*seen)


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "noisy", "noise": NOISE},
        {"executor": "shots", "shots": 50, "seed": 0, "noise": NOISE},
        {"executor": "shots", "shots": 50, "seed": 0, "gradient": "adjoint", "marginals": True},
    ],
)
def test_other_executors_compile_as_one_graph(options):
    inputs = samples(5, 2)
    layer, same = layer_with(**options), layer_with(**options)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for _ in range(2):  # the second call uses the second seed
        outputs, expected = compiled(inputs), same(inputs)
        assert torch.equal(outputs, expected)
        for a, b in zip(gradients(layer, inputs, outputs), gradients(same, inputs, expected), strict=True):
            assert torch.equal(a, b)


def test_other_executors_keep_types_and_shapes():
    for layer in (layer_with("noisy", noise=NOISE), layer_with("shots", shots=5, seed=0)):
        for shape in ((2,), (0, 2), (3, 4, 2)):
            inputs = samples(*shape, dtype=torch.bfloat16)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                outputs = layer(inputs)
            assert (outputs.shape, outputs.dtype) == (shape, torch.bfloat16)
            outputs.sum().backward()
            assert inputs.grad.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"executor": "noisy"}, "'noisy' needs noise="),
        ({"noise": NOISE}, "'exact' knows no noise"),
        ({"executor": "shots"}, "'shots' needs shots="),
        ({"executor": "shots", "shots": 0}, "'shots' needs shots="),
        ({"executor": "shots", "shots": 5, "seed": -1}, "seed must be"),
        ({"shots": 5}, "do nothing with the executor 'exact'"),
        ({"executor": "noisy", "noise": NOISE, "seed": 1}, "do nothing with the executor 'noisy'"),
        ({"gradient": "shift"}, "unknown gradient rule 'shift' of the executor 'exact'; available: adjoint"),
        ({"executor": "noisy", "noise": NoiseModel(couplers=[])}, "coupler"),
    ],
)
def test_options_that_do_not_fit_are_named(options, words):
    with pytest.raises(InputError, match=words):
        QuantumLayer(qtha_block(2, 1), **options)


def test_example_in_the_docstring():
    assert doctest.testmod(qpeft.layer).failed == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_activation_that_is_not_finite_spoils_its_own_sample_only(value):
    """As those of tokens that nobody attends to may be; :func:`qpeft.simulators.run` refuses them."""
    layer = QuantumLayer(qtha_block(3, 2))
    inputs = torch.randn(20, 3)
    good = layer(inputs)
    inputs[17, 1] = value
    outputs = layer(inputs)
    assert outputs[17].isnan().all()
    others = [sample for sample in range(20) if sample != 17]
    assert torch.equal(outputs[others], good[others])
    inputs.requires_grad_()
    layer(inputs)[others].sum().backward()
    assert inputs.grad[others].isfinite().all()
