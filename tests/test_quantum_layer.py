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
from qpeft.simulators import run
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


def test_example_in_the_docstring():
    assert doctest.testmod(qpeft.layer).failed == 0
