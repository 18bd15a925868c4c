"""The one entry: what it takes and refuses, large registers, and its operators inside torch's machinery.

That the numbers are right is the business of ``test_references.py``, for each engine by itself.
"""

import pytest
import torch
from engines import CHOSEN, ENGINES
from torch.utils.checkpoint import checkpoint

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring
from qpeft.errors import InputError
from qpeft.simulators import MAX_QUBITS, exact, run


def angles_for(circuit, batch, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(batch, circuit.n_inputs, dtype=torch.float64, generator=generator) * 2
    weights = torch.randn(circuit.n_weights, dtype=torch.float64, generator=generator) * 2
    return inputs.to(dtype).requires_grad_(), weights.to(dtype).requires_grad_()


@pytest.mark.parametrize("n_layers", [1, 2])
def test_every_angle_of_the_published_order_has_a_gradient(n_layers):
    n = 4
    circuit = qtha_block(n, n_layers)
    inputs, weights = angles_for(circuit, 5)
    run(circuit, inputs, weights).square().sum().backward()
    assert (weights.grad.abs() > 1e-6).all()
    older = qtha_block(n, n_layers, gate_order="older")
    inputs, weights = angles_for(older, 5)
    run(older, inputs, weights).square().sum().backward()
    assert (weights.grad[:-n].abs() > 1e-6).all()
    assert (weights.grad[-n:] == 0).all()


@pytest.mark.parametrize(
    ("inputs", "weights", "words"),
    [
        (torch.zeros(3, 3), torch.zeros(8), r"inputs must have the shape \(batch, 2\) \(got \(3, 3\)\)"),
        (torch.zeros(2), torch.zeros(8), r"inputs must have the shape"),
        (torch.zeros(3, 2), torch.zeros(7), r"weights must have the shape \(8,\) \(got \(7,\)\)"),
        (torch.zeros(3, 2), torch.zeros(1, 8), r"weights must have the shape"),
        (torch.zeros(3, 2, dtype=torch.int64), torch.zeros(8), "floating point"),
        (torch.zeros(3, 2, dtype=torch.complex64), torch.zeros(8), "floating point"),
        (torch.zeros(3, 2, device="meta"), torch.zeros(8), "one device"),
    ],
)
def test_wrong_shapes_types_and_devices(inputs, weights, words):
    with pytest.raises(InputError, match=words):
        run(qtha_block(2, 1), inputs, weights)


def test_too_many_qubits():
    n = MAX_QUBITS + 1
    with pytest.raises(InputError, match=f"at most {MAX_QUBITS} qubits"):
        run(qtha_block(n, 1), torch.zeros(1, n), torch.zeros(4 * n))


def test_a_large_register():
    """Fourteen qubits of a GHZ-like state, whose expectations are known."""
    n = 14
    gates = [Gate("RY", 0, Input(0)), *(Gate("CNOT", (i, i + 1)) for i in range(n - 1)), Gate("RZ", 0, Weight(0))]
    circuit = Circuit(n, tuple(gates), ("Z0", "Z13", " ".join(f"X{i}" for i in range(n))))
    inputs, weights = torch.tensor([[0.3], [1.2]], requires_grad=True), torch.tensor([0.7], requires_grad=True)
    outputs = run(circuit, inputs, weights)
    x = inputs.detach()[:, 0]
    expected = torch.stack([x.cos(), x.cos(), x.sin() * weights.detach().cos()], 1)
    torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5)
    outputs[:, 2].sum().backward()
    torch.testing.assert_close(inputs.grad[:, 0], x.cos() * weights.detach().cos(), rtol=0, atol=1e-5)
    torch.testing.assert_close(weights.grad, -weights.detach().sin() * x.sin().sum(), rtol=0, atol=1e-5)


def test_memory_stays_bounded_and_nothing_is_kept_for_backward():
    circuit = qtha_block(10, 2)
    inputs, weights = angles_for(circuit, 2000, dtype=torch.float32)  # all states at once: 16 MB per step
    saved = []

    def keep(tensor):
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(circuit, inputs, weights)
    assert sum(saved) <= inputs.numel() + weights.numel()


@pytest.fixture(params=ENGINES)
def circuit(request, monkeypatch):
    """A circuit that each engine can run, with that engine behind the operators."""
    engine = request.param
    if engine is not CHOSEN:
        monkeypatch.setattr(exact, "engine", lambda key, device="cpu", check=True: engine.build(Circuit.from_key(key)))
    return rotation_cnot_ring(3, 2)


def gradients(outputs, inputs, weights):
    return torch.autograd.grad(outputs.square().sum(), (inputs, weights))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operator_contract(circuit, dtype):
    """Schemas, fake tensors, autograd registration, tracing with dynamic shapes."""
    inputs, weights = angles_for(circuit, 3, dtype=dtype)
    torch.library.opcheck(torch.ops.qpeft.expectations.default, (inputs, weights, circuit.key, True))
    values = torch.ones(3, 3, dtype=dtype), inputs.detach(), weights.detach(), circuit.key, True
    torch.library.opcheck(torch.ops.qpeft.expectations_backward.default, values)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiles_as_one_graph(circuit, backend):
    inputs, weights = angles_for(circuit, 5, dtype=torch.float32)
    compiled = torch.compile(lambda x, w: run(circuit, x.sin(), w * 2), fullgraph=True, backend=backend)
    for batch in (5, 9):  # the second asks for a dynamic shape
        inputs, weights = angles_for(circuit, batch, dtype=torch.float32)
        outputs, expected = compiled(inputs, weights), run(circuit, inputs.sin(), weights * 2)
        assert torch.equal(outputs, expected)
        for a, b in zip(gradients(outputs, inputs, weights), gradients(expected, inputs, weights), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing(circuit, reentrant):
    inputs, weights = angles_for(circuit, 6)
    expected = gradients(run(circuit, inputs, weights), inputs, weights)
    checkpoint(lambda x, w: run(circuit, x, w), inputs, weights, use_reentrant=reentrant).square().sum().backward()
    for a, b in zip((inputs.grad, weights.grad), expected, strict=True):
        assert torch.equal(a, b)


def test_used_twice_in_one_graph(circuit):
    inputs, weights = angles_for(circuit, 3)
    assert torch.autograd.gradcheck(lambda x, w: run(circuit, run(circuit, x, w), w), (inputs, weights))


def test_only_what_asks_for_a_gradient_gets_one(circuit):
    inputs, weights = angles_for(circuit, 4)
    both = gradients(run(circuit, inputs, weights), inputs, weights)
    run(circuit, inputs, weights.detach()).square().sum().backward()
    assert torch.equal(inputs.grad, both[0])
    run(circuit, inputs.detach(), weights).square().sum().backward()
    assert torch.equal(weights.grad, both[1])
    assert not run(circuit, inputs.detach(), weights.detach()).requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_another_dtype(circuit, dtype):
    inputs, weights = angles_for(circuit, 4, dtype=torch.float32)
    other = weights.detach().to(dtype).requires_grad_()
    outputs = run(circuit, inputs, other)
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs, run(circuit, inputs, other.detach().float()), rtol=0, atol=2e-6)
    outputs.sum().backward()
    assert other.grad.dtype == dtype


def test_autocast_changes_nothing(circuit):
    inputs, weights = angles_for(circuit, 20, dtype=torch.float32)
    expected = run(circuit, inputs, weights)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = run(circuit, inputs, weights)
        under = gradients(outputs, inputs, weights)
    assert torch.equal(outputs, expected)
    assert all(map(torch.equal, under, gradients(expected, inputs, weights)))
