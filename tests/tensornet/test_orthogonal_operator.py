"""The orthogonal matrix as an operator inside torch: what it keeps, compiling, autocast, checkpoints, processes."""

import os
import socket

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qpeft.tensornet import orthogonal
from two_processes import leave, run_on_two_processes


class Turned(nn.Module):
    """x -> U x"""

    def __init__(self, width=256, n_layers=2):
        super().__init__()
        self.circuit = orthogonal.pauli_circuit(width, n_layers)
        self.weight = nn.Parameter(torch.randn(self.circuit.n_weights, generator=torch.Generator().manual_seed(0)))

    def forward(self, x):
        return orthogonal.apply(self.circuit, self.weight, x)


class Update(nn.Module):
    """x -> U diag(s) Vᵀ x with the first columns of U and V: both factors from one circuit."""

    def __init__(self, width=256, rank=3):
        super().__init__()
        self.circuit = orthogonal.pauli_circuit(width, 2)
        self.weight = nn.Parameter(torch.randn(2, self.circuit.n_weights, generator=torch.Generator().manual_seed(0)))
        self.scale = nn.Parameter(torch.ones(rank))

    def forward(self, x):
        u, v = (orthogonal.columns(self.circuit, w, len(self.scale)) for w in self.weight)
        return (x @ v * self.scale) @ u.T


def vectors(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def gradients(module, x, y):
    return torch.autograd.grad(y.square().sum(), (x, *module.parameters()), retain_graph=True)


def saved(compute):
    """Tensors kept for the backward pass."""
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        compute()
    return kept


@pytest.mark.parametrize("n_layers", [1, 8])
def test_kept_memory_does_not_grow_with_depth(n_layers):
    module, x = Turned(1024, n_layers), vectors(5, 1024)
    kept = saved(lambda: module(x))
    assert sorted(tensor.shape for tensor in kept) == sorted([module.weight.shape, x.shape])
    kept = saved(lambda: orthogonal.columns(module.circuit, module.weight, 3))
    assert sorted(tensor.shape for tensor in kept) == sorted([module.weight.shape, (3, 1024)])


def test_frozen_weights_keep_nothing_of_the_vectors():
    module, x = Turned(), vectors(5, 256)
    expected = gradients(module, x, module(x))[0]
    module.weight.requires_grad_(False)
    kept = saved(lambda: module(x))
    assert [tensor.shape for tensor in kept] == [module.weight.shape]
    (found,) = torch.autograd.grad(module(x).square().sum(), x)
    torch.testing.assert_close(found, expected)


def test_gradient_of_the_weights_alone():
    module, x = Turned(), vectors(5, 256)
    expected = gradients(module, x, module(x))[1]
    (found,) = torch.autograd.grad(module(x.detach()).square().sum() + module(x).sum() * 0, module.weight)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(module, x, module(x.detach()) + 0 * x)[1], expected)


def test_used_twice_in_one_graph():
    module, x = Turned(), vectors(5, 256)
    twice = gradients(module, x, module(module(x)) * 2)
    precise, x64 = Turned().double(), x.detach().double().requires_grad_()
    first = precise(x64)
    expected = gradients(precise, x64, precise(first) * 2)
    for a, b in zip(twice, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-3)


def test_second_derivatives_are_refused():
    module, x = Turned(), vectors(5, 256)
    (first,) = torch.autograd.grad(module(x).pow(3).sum(), module.weight, create_graph=True)
    with pytest.raises(RuntimeError, match="orthogonal_backward"):
        first.sum().backward()


def test_compiles_as_one_graph():
    module, x = nn.Sequential(Turned(), Update()), vectors(4, 5, 256)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    y = compiled(x)
    torch.testing.assert_close(y, module(x))
    for a, b in zip(gradients(module, x, y), gradients(module, x, module(x)), strict=True):
        torch.testing.assert_close(a, b)
    longer = vectors(4, 9, 256)
    torch.testing.assert_close(compiled(longer), module(longer))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_operators_keep_torch_s_rules(dtype, transpose):
    module = Turned(128)
    x = vectors(3, 128).detach().to(dtype).requires_grad_()
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        torch.ops.qpeft.orthogonal.default, (x, module.weight, module.circuit.key, transpose), test_utils=tests
    )
    arguments = (x.detach(), x.detach(), module.weight.detach(), module.circuit.key, transpose)
    for needs_x in (False, True):
        torch.library.opcheck(torch.ops.qpeft.orthogonal_backward.default, (*arguments, needs_x), test_utils=tests)


def test_operator_keeps_torch_s_rules_when_traced():
    module, x = Turned(16, 1), vectors(3, 16)
    torch.library.opcheck(torch.ops.qpeft.orthogonal.default, (x, module.weight, module.circuit.key, False))


def test_autocast_changes_nothing():
    module, x = Turned(), vectors(5, 256)
    expected = module(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(x)
        under = gradients(module, x, y)
    assert torch.equal(y, expected)
    for a, b in zip(under, gradients(module, x, expected), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(reentrant):
    module, x = Turned(), vectors(5, 256)
    checkpoint(module, x, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip((x.grad, module.weight.grad), gradients(module, x, module(x)), strict=True):
        assert torch.equal(a, b)


def test_the_same_bits_again():
    module, x = Turned(2048), vectors(40, 2048)
    first, second = ((y := module(x), *gradients(module, x, y)) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_learns_a_rotation():
    target, module = Turned(32, 1), Turned(32, 1)
    with torch.no_grad():
        module.weight += 0.3 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(2))
    x = vectors(32, 32).detach()
    wanted = target(x).detach()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = (module(x) - wanted).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 1e-2 * losses[0]


def _ddp_worker(rank, port, folder):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    module = nn.parallel.DistributedDataParallel(Update(16))
    module(vectors(8, 16)[4 * rank : 4 * rank + 4]).square().mean().backward()
    torch.save([p.grad for p in module.module.parameters()], f"{folder}/{rank}.pt")
    leave()


@pytest.mark.slow
def test_data_parallel_on_two_processes(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run_on_two_processes(_ddp_worker, port, str(tmp_path))
    module = Update(16)
    module(vectors(8, 16)).square().mean().backward()
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for a, p in zip(found, module.parameters(), strict=True):
            torch.testing.assert_close(a, p.grad, rtol=1e-4, atol=1e-6)
