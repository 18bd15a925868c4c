"""What every engine promises beyond its numbers: any memory layout, any batch, the same bits again, bounded memory."""

import psutil
import pytest
import torch
from engines import CHOSEN, ENGINES, LIGHT_CONES, STATE_VECTOR, everything
from random_cases import samples

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring, simplified_two_design
from qpeft.errors import InputError
from qpeft.simulators.native import NativeEngine

MIXED = Circuit(
    3,
    (
        *(Gate("RY", wire, Input(wire)) for wire in range(3)),
        Gate("CRX", (0, 2), Weight(0)),
        Gate("RZ", 1, Weight(1)),
        Gate("SWAP", (1, 2)),
        Gate("CRY", (2, 1), Weight(0, -0.5)),
        Gate("H", 0),
    ),
    ("X0 Y2", "Z1", "Y1"),
)
CIRCUITS = {
    "fixed encoding": rotation_cnot_ring(4, 2),
    "real": simplified_two_design(5, 1),
    "all kinds of observables": MIXED,
    "inputs read again": qtha_block(4, 2),
}


def cases(circuits=CIRCUITS):
    return [
        pytest.param(param.values[0], circuit, id=f"{param.id}, {name}", marks=param.marks)
        for param in ENGINES
        for name, circuit in circuits.items()
        if param.values[0] is not LIGHT_CONES or LIGHT_CONES.build(circuit) is not None
    ]


each = pytest.mark.parametrize(("engine", "circuit"), cases())
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
LARGE = {
    "fixed encoding": rotation_cnot_ring(8, 2),
    "near neighbours": qtha_block(9, 1),
    "inputs read again": qtha_block(9, 2),
    "real": simplified_two_design(10, 1),
}
each_large = pytest.mark.parametrize(("engine", "circuit"), cases(LARGE))


def strided(values):
    """The same numbers in every second row and third column of something larger."""
    if values.dim() == 1:
        return strided(values[:, None])[:, 0]
    spread = torch.full((2 * values.shape[0] + 1, 3 * values.shape[1] + 1), torch.nan, dtype=values.dtype)
    inner = spread[1::2, 1::3]
    inner.copy_(values)
    return inner


LAYOUTS = {
    "transposed": lambda values: values.t().contiguous().t(),
    "strided": strided,
    "shifted": lambda values: torch.cat([values.new_zeros(1), values.flatten()])[1:].view(values.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@each_dtype
@each
def test_any_memory_layout(engine, circuit, dtype, layout):
    built = engine.build(circuit)
    values = samples(circuit, 19, dtype=dtype)
    before = [value.clone() for value in values]
    expected = everything(built, *values)
    found = everything(built, *(LAYOUTS[layout](value) for value in values))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert all(map(torch.equal, values, before))


@each
def test_expanded_values(engine, circuit):
    """One number, or one sample, seen many times, as a sum's gradient and a broadcast input are."""
    built = engine.build(circuit)
    inputs, weights, _ = samples(circuit, 1)
    one = torch.ones(()).double().expand(17, circuit.n_observables)
    found = everything(built, inputs.expand(17, -1), weights, one)
    expected = everything(built, inputs.repeat(17, 1), weights, one.contiguous())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@each_dtype
@each
def test_empty_batch(engine, circuit, dtype):
    outputs, to_inputs, to_weights = everything(engine.build(circuit), *samples(circuit, 0, dtype=dtype))
    assert outputs.shape == (0, circuit.n_observables)
    assert outputs.dtype == to_inputs.dtype == dtype
    assert to_inputs.shape == (0, circuit.n_inputs)
    assert to_weights.shape == (circuit.n_weights,)
    assert (to_weights == 0).all()


@pytest.mark.parametrize("engine", [param for param in ENGINES if not param.values[0].reads_once])
def test_circuit_without_angles(engine):
    bell = Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))), ("Z0", "Z0 Z1", "X0 X1", "Y0 Y1"))
    values = torch.zeros(3, 0), torch.zeros(0), torch.ones(3, 4)
    outputs, to_inputs, to_weights = everything(engine.build(bell), *values)
    torch.testing.assert_close(outputs, torch.tensor([[0.0, 1.0, 1.0, -1.0]] * 3))
    assert to_inputs.shape == (3, 0)
    assert to_weights.shape == (0,)


@each_dtype
@each
def test_every_slice_of_the_batch_gives_what_the_whole_does(engine, circuit, dtype):
    """Native: the same bits. Matrix products of torch round differently for different numbers of columns."""
    built = engine.build(circuit)
    inputs, weights, cotangent = samples(circuit, 67, dtype=dtype)
    outputs, to_inputs, to_weights = everything(built, inputs, weights, cotangent)
    limit = 4e-6 if dtype == torch.float32 else 1e-13
    for start, stop in [(0, 67), (40, 41), (1, 3), (3, 20), (20, 67)]:
        part = slice(start, stop)
        found = built.evaluate(inputs[part], weights)
        if engine.same_bits_in_any_chunk:
            assert torch.equal(found, outputs[part]), f"samples {start} to {stop}"
        torch.testing.assert_close(found, outputs[part], rtol=0, atol=limit)
        found = built.differentiate(cotangent[part], inputs[part], weights)[0]
        torch.testing.assert_close(found, to_inputs[part], rtol=0, atol=4 * limit)
    parts = [slice(0, 16), slice(16, 20), slice(20, 67)]
    summed = sum(built.differentiate(cotangent[part], inputs[part], weights)[1] for part in parts)
    torch.testing.assert_close(summed, to_weights, rtol=0, atol=20 * limit)


@each_large
def test_a_batch_of_several_chunks(engine, circuit):
    """2,500 samples against 100 at a time."""
    built = engine.build(circuit)
    inputs, weights, cotangent = samples(circuit, 2500, dtype=torch.float32)
    outputs, to_inputs, to_weights = everything(built, inputs, weights, cotangent)
    pieces = zip(inputs.split(100), cotangent.split(100), strict=True)
    found = [everything(built, part, weights, of_part) for part, of_part in pieces]
    torch.testing.assert_close(outputs, torch.cat([f[0] for f in found]), rtol=0, atol=4e-6)
    torch.testing.assert_close(to_inputs, torch.cat([f[1] for f in found]), rtol=0, atol=2e-5)
    summed = sum(f[2].double() for f in found)
    torch.testing.assert_close(to_weights.double(), summed, rtol=0, atol=1e-5 * float(summed.abs().max()))


@each_large
def test_single_precision(engine, circuit):
    built = engine.build(circuit)
    values = samples(circuit, 40, dtype=torch.float32)
    rough, precise = everything(built, *values), everything(built, *(value.double() for value in values))
    for a, b in zip(rough, precise, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5 * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("circuit", [rotation_cnot_ring(11, 2), qtha_block(13, 2), simplified_two_design(15, 1)])
@each_dtype
def test_large_registers(circuit, dtype):
    """Beyond what full matrices can hold: the chosen engine against the state vector in double precision."""
    values = samples(circuit, 3, dtype=dtype)
    found = everything(CHOSEN.build(circuit), *values)
    expected = everything(STATE_VECTOR.build(circuit), *(value.double() for value in values))
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=limit * max(1.0, float(b.abs().max())))


@pytest.mark.parametrize("threads", [1, 2])
@each_large
def test_the_same_bits_again(engine, circuit, threads):
    built = engine.build(circuit)
    values = samples(circuit, 300, dtype=torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        first, second = everything(built, *values), everything(built, *values)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@each
def test_bad_angles_are_refused_or_spoil_their_own_samples_only(engine, circuit, value):
    built = engine.build(circuit)
    inputs, weights, cotangent = samples(circuit, 20)
    if engine is CHOSEN or isinstance(built, NativeEngine):
        bad = inputs.clone()
        bad[2, 0] = value
        for angles in ((bad, weights), (inputs, weights * value)):
            with pytest.raises(InputError, match="must be finite numbers of radians"):
                built.evaluate(*angles)
        return
    good, to_inputs, _ = everything(built, inputs, weights, cotangent)
    inputs[2, 0] = value
    outputs, changed, to_weights = everything(built, inputs, weights, cotangent)
    others = [sample for sample in range(20) if sample != 2]
    torch.testing.assert_close(outputs[others], good[others], rtol=0, atol=1e-12)
    torch.testing.assert_close(changed[others], to_inputs[others], rtol=0, atol=1e-12)
    assert outputs[2].isnan().any()
    assert to_weights.isnan().any()
    assert built.evaluate(inputs, weights * value).isnan().any(1).all()


def megabytes():
    """That this process holds now."""
    return psutil.Process().memory_info().rss / 2**20


@pytest.mark.slow
@each_large
def test_many_calls_need_no_more_memory_than_some(engine, circuit):
    built = engine.build(circuit)
    values = samples(circuit, 100, dtype=torch.float32)

    def calls(count):
        for _ in range(count):
            everything(built, *values)
        return megabytes()

    before = calls(100)
    assert calls(600) - before < 20  # one state of this batch takes 0.2 MB or 0.4 MB


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_many_circuits_need_no_more_memory_than_some(engine):
    def circuits(numbers):
        for number in numbers:
            circuit = rotation_cnot_ring(5, 2)
            circuit = Circuit(5, (*circuit.gates, Gate("RX", 0, 1e-3 * number)))
            everything(engine.build(circuit), *samples(circuit, 4))
        return megabytes()

    before = circuits(range(400))
    assert circuits(range(400, 1000)) - before < 20
