"""Orthogonal matrices of circuits against the product of full matrices."""

import doctest

import pytest
import torch
from dense_orthogonal import dense
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.circuits import Circuit, Gate, Input, Weight, simplified_two_design
from qpeft.errors import InputError
from qpeft.tensornet import orthogonal, orthogonal_engine
from qpeft.tensornet.orthogonal_engine import OrthogonalEngine
from qpeft.tensornet.orthogonal_plan import make_plan

CPU = torch.device("cpu")
ANGLES = {"RY", "CRY"}
TWO_WIRES = {"CNOT", "CZ", "SWAP", "CRY"}


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


@st.composite
def real_circuits(draw):
    """Circuits of real gates over all wires and repeats of weights, with a partition of the wires."""
    n = draw(st.integers(1, 5))
    names = [name for name in ("RY", "CRY", "H", "X", "Z", "CNOT", "CZ", "SWAP") if n > 1 or name not in TWO_WIRES]
    gates, n_weights = [], 0
    for _ in range(draw(st.integers(0, 25))):
        name = draw(st.sampled_from(names))
        wires = tuple(draw(st.permutations(range(n)))[: 2 if name in TWO_WIRES else 1])
        angle = None
        if name in ANGLES:
            index = draw(st.integers(-1, n_weights))  # a constant, an old weight again, or the next one
            n_weights = max(n_weights, index + 1)
            angle = 0.7 if index < 0 else Weight(index, draw(st.sampled_from([1.0, -0.5, 2.0])))
        gates.append(Gate(name, wires, angle))
    cuts = draw(st.lists(st.booleans(), min_size=n - 1, max_size=n - 1))
    ends = [place + 1 for place, cut in enumerate(cuts) if cut] + [n]
    widths = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return Circuit(n, tuple(gates)), widths


@settings(max_examples=60, deadline=None)
@given(real_circuits(), st.booleans(), st.integers(0, 1000))
def test_random_circuits_on_random_groups_equal_full_matrices(case, transpose, seed):
    circuit, widths = case
    engine = OrthogonalEngine(make_plan(circuit, widths), CPU, torch.float64)
    weights = numbers(circuit.n_weights, seed=seed).requires_grad_()
    x = numbers(3, 1 << circuit.n_qubits, seed=seed).requires_grad_()
    matrix = dense(circuit, weights)
    expected = x @ (matrix if transpose else matrix.T)
    found = engine.apply(weights.detach(), x.detach(), transpose)
    torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-12)
    cotangent = numbers(*x.shape, seed=seed + 1)
    by_matrix = torch.autograd.grad(expected, (x, weights), cotangent, allow_unused=True, materialize_grads=True)
    by_steps = engine.differentiate(cotangent, found, weights.detach(), transpose, True)
    for a, b in zip(by_steps, by_matrix, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("n_qubits", "n_layers"), [(1, 1), (2, 2), (4, 3), (6, 1), (7, 2), (8, 1)])
def test_pauli_circuits_equal_full_matrices(n_qubits, n_layers, transpose):
    circuit = orthogonal.pauli_circuit(1 << n_qubits, n_layers)
    weights = numbers(circuit.n_weights).requires_grad_()
    x = numbers(4, 1 << n_qubits).requires_grad_()
    matrix = dense(circuit, weights)
    found = orthogonal.apply(circuit, weights, x, transpose)
    expected = x @ (matrix if transpose else matrix.T)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = numbers(*x.shape, seed=1)
    ours = torch.autograd.grad(found, (x, weights), cotangent)
    theirs = torch.autograd.grad(expected, (x, weights), cotangent)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("transpose", [False, True])
def test_gradients_equal_finite_differences(transpose):
    circuit = orthogonal.pauli_circuit(8, 1)
    weights, x = numbers(circuit.n_weights).requires_grad_(), numbers(2, 8).requires_grad_()
    assert torch.autograd.gradcheck(lambda w, v: orthogonal.apply(circuit, w, v, transpose), (weights, x))
    assert torch.autograd.gradcheck(lambda w: orthogonal.columns(circuit, w, 3), (weights,))
    # a circuit on three groups of wires, one random direction
    large = orthogonal.pauli_circuit(2048, 2)
    weights, x, direction = (
        numbers(large.n_weights).requires_grad_(),
        numbers(2, 2048),
        numbers(large.n_weights, seed=1),
    )
    cotangent = numbers(2, 2048, seed=2)
    (found,) = torch.autograd.grad(orthogonal.apply(large, weights, x, transpose), weights, cotangent)
    with torch.no_grad():
        up, down = (orthogonal.apply(large, weights + h * direction, x, transpose) for h in (1e-5, -1e-5))
    assert float(found @ direction) == pytest.approx(float(((up - down) * cotangent).sum()) / 2e-5, rel=1e-7)


@pytest.mark.parametrize(("width", "n_layers"), [(4096, 1), (4096, 2), (4096, 3), (2048, 4), (576, 2), (2, 1)])
def test_the_circuit_is_the_two_design_without_its_inputs(width, n_layers):
    circuit = orthogonal.pauli_circuit(width, n_layers)
    q = circuit.n_qubits
    assert 1 << (q - 1) < width <= 1 << q
    assert circuit.n_weights == (2 * n_layers + 1) * q - 2 * n_layers  # the count in the paper
    assert circuit.n_inputs == 0
    bound = simplified_two_design(q, n_layers).bind(inputs=[0.0] * q)
    weights, x = numbers(circuit.n_weights), numbers(2, 1 << q)
    torch.testing.assert_close(orthogonal.apply(bound, weights, x), orthogonal.apply(circuit, weights, x))


@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("n_qubits", [3, 8])
def test_the_matrix_is_orthogonal(n_qubits, dtype, limit):
    circuit = orthogonal.pauli_circuit(1 << n_qubits, 3)
    matrix = orthogonal.columns(circuit, numbers(circuit.n_weights, dtype=dtype), 1 << n_qubits)
    assert matrix.dtype == dtype
    identity = torch.eye(1 << n_qubits, dtype=torch.float64)
    assert (matrix.double().T @ matrix.double() - identity).abs().max() < limit
    assert (matrix.double() @ matrix.double().T - identity).abs().max() < limit


@pytest.mark.parametrize("n_qubits", [11, 12, 13, 14])
def test_the_transpose_is_the_inverse(n_qubits):
    circuit = orthogonal.pauli_circuit(1 << n_qubits, 4)
    weights, x = numbers(circuit.n_weights, dtype=torch.float32), numbers(3, 1 << n_qubits, dtype=torch.float32)
    for transpose in (False, True):
        y = orthogonal.apply(circuit, weights, x, transpose)
        torch.testing.assert_close(y.norm(dim=1), x.norm(dim=1), rtol=1e-6, atol=0)
        assert (y - x).abs().max() > 1
        torch.testing.assert_close(orthogonal.apply(circuit, weights, y, not transpose), x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("n_qubits", [4, 8, 11])
def test_zero_angles_leave_the_signs_of_the_fixed_gates(n_qubits):
    width = 1 << n_qubits
    x = numbers(2, width)
    even, odd = orthogonal.pauli_circuit(width, 2), orthogonal.pauli_circuit(width, 1)
    assert torch.equal(orthogonal.apply(even, torch.zeros(even.n_weights).double(), x), x)
    signs = orthogonal.apply(odd, torch.zeros(odd.n_weights).double(), torch.ones(width).double())
    assert torch.equal(signs.abs(), torch.ones_like(signs))
    assert int((signs < 0).sum()) not in (0, width)
    turns = Circuit(n_qubits, tuple(Gate("RY", wire, Weight(wire)) for wire in range(n_qubits)))
    assert torch.equal(orthogonal.apply(turns, torch.zeros(n_qubits).double(), x), x)


@pytest.mark.parametrize(("n_qubits", "k"), [(3, 8), (6, 1), (7, 5)])
def test_columns_are_columns(n_qubits, k):
    circuit = orthogonal.pauli_circuit(1 << n_qubits, 2)
    weights = numbers(circuit.n_weights).requires_grad_()
    expected = dense(circuit, weights)[:, :k]
    found = orthogonal.columns(circuit, weights, k)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    cotangent = numbers(1 << n_qubits, k, seed=1)
    (ours,) = torch.autograd.grad(found, weights, cotangent)
    (theirs,) = torch.autograd.grad(expected, weights, cotangent)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    torch.testing.assert_close(orthogonal.columns(circuit, weights, k, n_rows=5), found[:5])


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), [(5, None), (5, 8), (3, 7), (8, 6), (1, 1)])
def test_padding_applies_a_corner_of_the_matrix(in_features, out_features, transpose):
    circuit = orthogonal.pauli_circuit(8, 2)
    weights, x = numbers(circuit.n_weights).requires_grad_(), numbers(4, 2, in_features).requires_grad_()
    matrix = dense(circuit, weights)
    corner = (matrix.T if transpose else matrix)[: out_features or in_features, :in_features]
    found = orthogonal.apply_padded(circuit, weights, x, out_features, transpose)
    torch.testing.assert_close(found, x @ corner.T, rtol=0, atol=1e-12)
    assert (found.norm(dim=-1) <= x.norm(dim=-1) + 1e-12).all()
    cotangent = numbers(*found.shape, seed=1)
    ours = torch.autograd.grad(found, (x, weights), cotangent)
    theirs = torch.autograd.grad(x @ corner.T, (x, weights), cotangent)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_single_precision_gradients():
    circuit = orthogonal.pauli_circuit(4096, 4)
    weights, x, cotangent = numbers(circuit.n_weights), numbers(64, 4096), numbers(64, 4096, seed=1)
    results = []
    for dtype in (torch.float64, torch.float32):
        w, v = weights.to(dtype).requires_grad_(), x.to(dtype).requires_grad_()
        y = orthogonal.apply(circuit, w, v)
        results.append((y, *torch.autograd.grad(y, (v, w), cotangent.to(dtype))))
    for precise, rough in zip(*results, strict=True):
        assert rough.dtype == torch.float32
        assert (rough.double() - precise).abs().max() < 3e-6 * precise.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_computed_in_single(dtype):
    circuit = orthogonal.pauli_circuit(256, 3)
    weights = numbers(circuit.n_weights, dtype=torch.float32).requires_grad_()
    x = numbers(6, 256, dtype=dtype).requires_grad_()
    y = orthogonal.apply(circuit, weights, x)
    single = orthogonal.apply(circuit, weights, x.float())
    assert torch.equal(y, single.to(dtype))
    cotangent = numbers(6, 256, seed=1, dtype=dtype)
    to_x, to_weights = torch.autograd.grad(y, (x, weights), cotangent)
    assert (to_x.dtype, to_weights.dtype) == (dtype, torch.float32)
    expected = torch.autograd.grad(single, (x, weights), cotangent.float())
    torch.testing.assert_close(to_x, expected[0].to(dtype))
    # the output is kept in its own precision
    assert (to_weights - expected[1]).abs().max() < 2e-2 * expected[1].abs().max()


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("n_qubits", [4, 8, 11])
def test_chunking_changes_nothing_but_rounding(n_qubits, transpose, monkeypatch):
    circuit = orthogonal.pauli_circuit(1 << n_qubits, 2)
    weights, x = numbers(circuit.n_weights).requires_grad_(), numbers(7, 1 << n_qubits).requires_grad_()
    cotangent = numbers(7, 1 << n_qubits, seed=1)
    whole = orthogonal.apply(circuit, weights, x, transpose)
    whole = whole, *torch.autograd.grad(whole, (x, weights), cotangent)
    for rows in (3, 0.5):
        monkeypatch.setattr(orthogonal_engine, "_CHUNK_NUMBERS", int(2 * rows * (1 << n_qubits)))
        parts = orthogonal.apply(circuit, weights, x, transpose)
        parts = parts, *torch.autograd.grad(parts, (x, weights), cotangent)
        for a, b in zip(parts, whole, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("n_layers", [1, 4, 8])
@pytest.mark.parametrize("n_qubits", [8, 11, 12, 13, 14])
def test_the_plan_has_one_layer_of_small_blocks_for_each_layer_of_the_circuit(n_qubits, n_layers):
    plan = make_plan(orthogonal.pauli_circuit(1 << n_qubits, n_layers))
    assert sum(plan.widths) == n_qubits
    assert max(plan.widths) <= 4 <= plan.widths[-1]
    assert len(plan.layers) == n_layers + 1


@pytest.mark.parametrize("shape", [(256,), (0, 256), (2, 0, 256), (2, 3, 256)])
def test_shapes(shape):
    circuit = orthogonal.pauli_circuit(256, 1)
    weights, x = numbers(circuit.n_weights).requires_grad_(), numbers(*shape).requires_grad_()
    y = orthogonal.apply(circuit, weights, x)
    assert y.shape == shape
    torch.testing.assert_close(y, x @ dense(circuit, weights).T, rtol=0, atol=1e-12)
    y.sum().backward()
    assert x.grad.shape == shape
    assert weights.grad.shape == weights.shape


def test_strided_vectors():
    circuit = orthogonal.pauli_circuit(256, 1)
    weights = numbers(circuit.n_weights)
    base = numbers(256, 6, 4)
    for x in (base[:, :, 0].T, base[:, ::2].permute(2, 1, 0), base[:, 0, 0].expand(3, 256)):
        assert not x.is_contiguous()
        x = x.detach().requires_grad_()
        y = orthogonal.apply(circuit, weights, x)
        torch.testing.assert_close(y, orthogonal.apply(circuit, weights, x.contiguous()))
        (found,) = torch.autograd.grad(y, x, numbers(256, *y.shape[:-1]).movedim(0, -1))
        assert found.shape == x.shape


def test_circuits_without_weights_or_gates():
    x = numbers(3, 1024)
    nothing = torch.zeros(0, dtype=torch.float64, requires_grad=True)
    y = orthogonal.apply(Circuit(10, ()), nothing, x)
    assert torch.equal(y, x)
    assert y.data_ptr() != x.data_ptr()
    y.sum().backward()
    assert nothing.grad.shape == (0,)
    swap = Circuit(10, (Gate("SWAP", (0, 9)), Gate("CNOT", (2, 8)), Gate("H", 5)))
    torch.testing.assert_close(orthogonal.apply(swap, nothing, x), x @ dense(swap, nothing).T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_numbers_spoil_their_own_vectors_only(value):
    circuit = orthogonal.pauli_circuit(256, 2)
    weights, x = numbers(circuit.n_weights), numbers(4, 256)
    good = orthogonal.apply(circuit, weights, x)
    x[2, 17] = value
    y = orthogonal.apply(circuit, weights, x)
    assert not y[2].isfinite().any()
    torch.testing.assert_close(y[[0, 1, 3]], good[[0, 1, 3]])
    weights[0] = value
    assert orthogonal.apply(circuit, weights, x).isnan().all()


PAULI = orthogonal.pauli_circuit(16, 1)
W = torch.zeros(PAULI.n_weights)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: orthogonal.apply(PAULI, W, torch.zeros(3, 12)),
            r"x must have the shape \(\.\.\., 16\) \(got \(3, 12\)",
        ),
        (lambda: orthogonal.apply(PAULI, W, torch.tensor(1.0)), r"x must have the shape"),
        (
            lambda: orthogonal.apply(PAULI, W[:-1], torch.zeros(3, 16)),
            r"weights must have the shape \(10,\) \(got \(9,\)",
        ),
        (lambda: orthogonal.apply(PAULI, W[None], torch.zeros(3, 16)), r"weights must have the shape"),
        (lambda: orthogonal.apply(PAULI, W.int(), torch.zeros(3, 16)), r"weights must be real floating point"),
        (lambda: orthogonal.apply(PAULI, W, torch.zeros(3, 16).int()), r"x must be real floating point"),
        (lambda: orthogonal.apply(PAULI, W, torch.zeros(3, 16) * 1j), r"x must be real floating point"),
        (lambda: orthogonal.apply(PAULI, W, torch.zeros(3, 16, device="meta")), r"x is on meta, weights on cpu"),
        (
            lambda: orthogonal.apply(simplified_two_design(4, 1), W, torch.zeros(3, 16)),
            r"takes 4 inputs, but an orthog",
        ),
        (
            lambda: orthogonal.apply(Circuit(1, (Gate("RZ", 0, Weight(0)),)), torch.zeros(1), torch.zeros(2)),
            r"gate RZ on \(0,\) is not a real matrix",
        ),
        (
            lambda: orthogonal.columns(Circuit(1, (Gate("Y", 0),)), torch.zeros(0), 1),
            r"gate Y on \(0,\) is not a real matrix, so the circuit is not orthogonal; use the gates RY CRY H X Z CZ",
        ),
        (
            lambda: orthogonal.apply(Circuit(1, (Gate("RY", 0, Input(0)),)), torch.zeros(0), torch.zeros(2)),
            r"takes 1 inputs",
        ),
        (lambda: orthogonal.apply(Circuit(21, ()), torch.zeros(0), torch.zeros(2)), r"at most 20 wires \(got 21\)"),
        (lambda: orthogonal.columns(PAULI, W, 17), r"k must be a whole number from 1 to 16, .* \(got 17\)"),
        (lambda: orthogonal.columns(PAULI, W, 0), r"k must be"),
        (lambda: orthogonal.columns(PAULI, W, 2, n_rows=2.0), r"n_rows must be .* \(got 2\.0\)"),
        (lambda: orthogonal.apply_padded(PAULI, W, torch.zeros(3, 17)), r"the length of x must be .* \(got 17\)"),
        (lambda: orthogonal.apply_padded(PAULI, W, torch.zeros(3, 0)), r"the length of x must be .* \(got 0\)"),
        (lambda: orthogonal.apply_padded(PAULI, W, torch.zeros(3, 9), 17), r"out_features must be .* \(got 17\)"),
        (lambda: orthogonal.pauli_circuit(1, 1), r"width must be a whole number from 2 to 1048576 \(got 1\)"),
        (lambda: orthogonal.pauli_circuit(16, 0), r"n_layers must be"),
    ],
)
def test_bad_input_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_examples_in_the_docstrings():
    torch.manual_seed(0)
    assert doctest.testmod(orthogonal).failed == 0
