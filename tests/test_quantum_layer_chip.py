"""QuantumLayer on executors: values from there, gradients by rule, tokens chosen, nothing left behind."""

import copy
import math

import pytest
import torch
from torch import nn

from qpeft.chips import ChipSnapshot
from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block
from qpeft.errors import InputError
from qpeft.execution import Constant, OnExecutor, Padding
from qpeft.gradients import RULE_BIAS, count_circuits, shift_gradient, spsa_gradient
from qpeft.layer import QuantumLayer
from qpeft.qpu.broker import Broker
from qpeft.qpu.executor import ChipExecutor
from qpeft.qpu.mitigation import Mitigation
from qpeft.qpu.providers import open_provider
from qpeft.qpu.report import RowCount
from qpeft.qpu.tokens import Tokens
from qpeft.simulators import run, run_shots

CIRCUIT = Circuit(
    2,
    (Gate("RY", 0, Input(0)), Gate("RY", 1, Input(1)), Gate("CRZ", (0, 1), Weight(0)), Gate("RY", 1, Weight(1)),
     Gate("RY", 0, Weight(2, 0.5)), Gate("CRZ", (1, 0), Weight(0, -1.0)), Gate("RX", 0, Input(1, 0.7))),
    ("Z0", "Z0 Z1"),
)  # fmt: skip


class Simulated:
    """An executor that estimates from shots, or computes exactly, and remembers what it was asked."""

    name = "simulated"

    def __init__(self, shots=None):
        self.shots = shots
        self.asked = []

    def expectations(self, circuit, inputs, weights, purpose="forward"):
        assert not inputs.requires_grad or not torch.is_grad_enabled()
        self.asked.append((purpose, len(inputs)))
        if self.shots is None:
            return run(circuit, inputs, weights)
        return run_shots(circuit, inputs, weights, self.shots, seed=len(self.asked))


class Modelled(Simulated):
    """With a model of itself that is a little wrong."""

    def twin(self, circuit, inputs, weights):
        return 0.9 * run(circuit, inputs, weights)


def layer_on(executor, circuit=CIRCUIT, **options):
    torch.manual_seed(0)
    layer = QuantumLayer(circuit)
    layer.execution = OnExecutor(executor, **options)
    return layer


def samples(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def virtual(chip, tmp_path, **options):
    provider = open_provider("virtual-wukong", chip=chip)
    return ChipExecutor(Broker(provider, tmp_path), **options)


def exact_gradients(inputs, weight, cotangent, circuit=CIRCUIT):
    points = inputs.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    return torch.autograd.grad(run(circuit, *points), points, cotangent.double())


def test_values_come_from_the_executor_and_gradients_from_the_rule():
    inputs = samples(5, 2)
    cotangent = torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for rule, factor in (("shift", 1.0), ("twin", 0.9)):
        executor = Modelled()
        layer = layer_on(executor, gradient=rule)
        outputs = layer(inputs)
        assert torch.equal(outputs, run(CIRCUIT, inputs, layer.weight))
        found = torch.autograd.grad(outputs, (inputs, layer.weight), cotangent)
        for a, b in zip(found, exact_gradients(inputs, layer.weight, cotangent), strict=True):
            torch.testing.assert_close(a.double(), factor * b, rtol=0, atol=1e-6)
        count = count_circuits(CIRCUIT, rule, 5)
        assert [asked[1] for asked in executor.asked] == [
            count.forward,
            *([count.gradient] if rule == "shift" else []),
        ]
        assert [asked[0] for asked in executor.asked] == ["forward", "gradient"][: len(executor.asked)]


def test_without_gradients_calls_are_evaluations():
    executor = Modelled()
    layer = layer_on(executor)
    with torch.no_grad():
        layer(samples(5, 2))
    layer.requires_grad_(False)
    layer(samples(5, 2).detach())
    assert executor.asked == [("evaluation", 5)] * 2


def test_rows_without_gradient_cost_nothing():
    executor = Simulated()
    layer = layer_on(executor, gradient="shift")
    inputs = samples(2, 6, 2)
    (layer(inputs)[:, 2:4] ** 2).sum().backward()
    assert executor.asked[1] == ("gradient", count_circuits(CIRCUIT, "shift", 4).gradient)
    assert (inputs.grad[:, :2] == 0).all()
    assert (inputs.grad[:, 2:4] != 0).all()
    expected = layer_on(Modelled(), gradient="shift")
    again = samples(2, 6, 2)
    (expected(again)[:, 2:4] ** 2).sum().backward()
    assert torch.equal(layer.weight.grad, expected.weight.grad)


def test_spsa_is_unbiased_up_to_its_step():
    inputs, weight = samples(1, 2).detach(), torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)
    cotangent = torch.tensor([[0.8, -0.5]], dtype=torch.float64)
    rows = 40_000  # many equal rows are many independent draws
    errors = []
    for step in (0.1, 0.4):
        generator = torch.Generator().manual_seed(3)
        draws = spsa_gradient(
            CIRCUIT, inputs.repeat(rows, 1), weight, cotangent.repeat(rows, 1), step=step, generator=generator
        )
        to_inputs, to_weight = exact_gradients(inputs, weight, cotangent)
        noise = draws.inputs.std(0) / rows**0.5
        bias = (draws.inputs.mean(0) - to_inputs[0]).abs()
        errors.append((bias / to_inputs[0].norm()).max())
        assert (bias < 4.5 * noise + step**2 * to_inputs[0].norm()).all()
        assert (draws.weights / rows - to_weight).abs().max() < 4.5 * noise.max() + step**2 * to_weight.norm()
    assert errors[0] < errors[1]


def test_spsa_in_a_layer_costs_two_circuits_a_direction():
    executor = Simulated()
    layer = layer_on(executor, gradient="spsa", n_directions=4)
    inputs = samples(3, 2)
    layer(inputs).sum().backward()
    assert executor.asked == [("forward", 3), ("gradient", count_circuits(CIRCUIT, "spsa", 3, 4).gradient)]
    assert inputs.grad.shape == (3, 2)
    assert layer.weight.grad.shape == (3,)
    for options in ({"n_directions": 0}, {"step": 0.0}, {"step": 2.0}):
        with pytest.raises(InputError):
            spsa_gradient(CIRCUIT, inputs.detach(), torch.zeros(3), torch.ones(3, 2), **options)


@pytest.mark.parametrize("noisy", [False, True])
def test_shift_gradients_of_the_virtual_chip_have_no_bias(tmp_path, noisy):
    """Without noise against the exact gradient; with noise against shifts of the twin, which knows the noise."""
    rows = 200
    point = samples(1, 2).detach()
    weight = torch.tensor([0.4, -0.7, 1.1], dtype=torch.float64)
    chip = ChipSnapshot.fully_connected(8)
    if noisy:
        chip = ChipSnapshot.fully_connected(
            8, fidelity=0.99, two_qubit_fidelity=0.93, readout_error=0.04, t1_us=10.0, t2_us=3.0
        )
    executor = virtual(chip, tmp_path, shots=200, mitigation=Mitigation(calibration_shots=10_000))
    found = shift_gradient(CIRCUIT, point.repeat(rows, 1), weight, executor.expectations)
    expected = shift_gradient(CIRCUIT, point, weight, executor.twin if noisy else run)
    for estimates, truth in zip(found, expected, strict=True):  # (rows, observables, angles)
        error = estimates.std(0) / rows**0.5
        left = 0.01 * truth[0].abs().max() if noisy else 0.0  # of the readout's calibration
        assert ((estimates.mean(0) - truth[0]).abs() < 4.5 * error + left).all()
    executor.close()


@pytest.mark.parametrize("noisy", [False, True])
def test_twin_gradients_are_derivatives_of_the_twin(tmp_path, noisy):
    chip = ChipSnapshot.fully_connected(4, two_qubit_fidelity=0.93 if noisy else 1.0, t2_us=3.0 if noisy else 1e9)
    layer = layer_on(virtual(chip, tmp_path, shots=100), gradient="twin")
    inputs = samples(3, 2)
    cotangent = torch.tensor([0.7, -1.3], dtype=torch.float64).expand(3, 2)
    found = torch.autograd.grad(layer(inputs), (inputs, layer.weight), cotangent)
    twin = layer.execution.executor.twin
    weight = layer.weight.detach().double()
    if not noisy:
        for a, b in zip(found, exact_gradients(inputs, weight, cotangent), strict=True):
            torch.testing.assert_close(a.double(), b, rtol=0, atol=1e-5)
    for k in range(3):
        step = 1e-5 * torch.eye(3, dtype=torch.float64)[k]
        rise = (twin(CIRCUIT, inputs.detach(), weight + step) - twin(CIRCUIT, inputs.detach(), weight - step)) / 2e-5
        assert found[1][k].item() == pytest.approx((rise * cotangent).sum().item(), abs=2e-3)
    layer.execution.executor.close()


def test_chosen_tokens_go_to_the_executor_and_others_to_the_simulator():
    class Ten(Simulated):
        def expectations(self, circuit, inputs, weights, purpose="forward"):
            return super().expectations(circuit, inputs, weights, purpose) + 10

    inputs = samples(2, 5, 2)
    padding = Padding(torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]))
    for tokens, chip in (
        ("all", [[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]]),
        ("last", [[0, 0, 0, 0, 1], [0, 0, 0, 0, 1]]),
        ("every 2", [[0, 0, 1, 0, 1], [0, 1, 0, 1, 0]]),
    ):
        layer = layer_on(Ten(), gradient="shift", tokens=Tokens.parse(tokens), padding=padding)
        outputs = layer(inputs)
        chosen = torch.tensor(chip, dtype=torch.bool)
        exact = run(CIRCUIT, inputs.view(-1, 2), layer.weight.double()).view(2, 5, 2)
        torch.testing.assert_close(outputs, exact + 10 * chosen[..., None], rtol=0, atol=1e-6)
        assert layer.execution.rows == RowCount(int(chosen.sum()), int((~chosen).sum()))
        found = torch.autograd.grad(outputs, (inputs, layer.weight), torch.ones_like(outputs))
        flat = exact_gradients(inputs.view(-1, 2), layer.weight, torch.ones(10, 2))
        torch.testing.assert_close(found[0].view(-1, 2), flat[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1].double(), flat[1], rtol=0, atol=1e-4)


def test_pooled_sequences_run_one_circuit():
    executor = Simulated()
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]])
    layer = layer_on(executor, gradient="shift", tokens=Tokens("pooled"), padding=Padding(mask))
    inputs = samples(3, 4, 2)
    outputs = layer(inputs)
    assert executor.asked == [("forward", 2)]
    means = torch.stack([inputs[0, 2:].mean(0), inputs[1].mean(0)])
    expected = run(CIRCUIT, means, layer.weight.double())
    torch.testing.assert_close(outputs[0, 2:], expected[:1].expand(2, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs[1], expected[1:].expand(4, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(outputs[2], run(CIRCUIT, inputs[2], layer.weight.double()), rtol=0, atol=1e-6)
    assert layer.execution.rows == RowCount(chip=2, simulated=6, covered=4)
    assert layer.execution.rows.share == 0.5
    (found,) = torch.autograd.grad(outputs[1].sum(), inputs)
    (by_mean,) = torch.autograd.grad(4 * expected[1].sum(), inputs)
    torch.testing.assert_close(found, by_mean, rtol=0, atol=1e-5)


def test_rows_that_are_no_angles_stay_on_the_simulator():
    executor = Simulated()
    layer = layer_on(executor, gradient="shift")
    inputs = samples(4, 2).detach()
    inputs[1, 0] = float("nan")
    outputs = layer(inputs)
    assert outputs.isnan().any(1).tolist() == [False, True, False, False]
    assert executor.asked == [("forward", 3)]


@pytest.mark.parametrize("shape", [(2,), (0, 2), (3, 2), (2, 3, 2), (2, 2, 3, 2), (2, 0, 2)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_shapes_and_types_are_kept(shape, dtype):
    layer = layer_on(Modelled())
    inputs = samples(*shape, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = layer(inputs)
    assert (outputs.shape, outputs.dtype) == (shape, dtype)
    outputs.sum().backward()
    assert inputs.grad.dtype == dtype
    torch.testing.assert_close(layer.double()(inputs), layer.double()(inputs.double()).to(dtype), atol=8e-3, rtol=0)


def test_nothing_chosen_asks_nothing():
    executor = Modelled()
    for tokens in ("last", "pooled", "every 9"):
        layer = layer_on(executor, tokens=Tokens.parse(tokens), padding=Padding(torch.zeros(2, 3)))
        outputs = layer(samples(2, 3, 2))
        outputs.sum().backward()
        assert layer.execution.rows == RowCount(simulated=6)
        assert layer.weight.grad.abs().sum() > 0
    assert executor.asked == []


def test_flat_rows_have_no_positions():
    with pytest.raises(InputError, match=r"tokens='last' needs inputs \(batch, sequence, 2\)"):
        layer_on(Modelled(), tokens=Tokens("last"))(samples(3, 2))


def test_layers_take_executors_and_names():
    torch.manual_seed(0)
    layer = QuantumLayer(CIRCUIT, Modelled())
    assert layer.execution.gradient == "twin"
    assert "execution='simulated', tokens='all', gradient='twin'" in repr(layer)
    assert QuantumLayer(CIRCUIT, Simulated()).execution.gradient == "shift"
    named = QuantumLayer(CIRCUIT, "virtual-wukong", shots=300, seed=4, gradient="spsa")
    assert named.execution.executor.shots == 300
    assert named(samples(3, 2)).shape == (3, 2)
    assert list(named.state_dict()) == ["weight"]
    for options, words in (
        ({"executor": Simulated(), "gradient": "twin"}, "has no model of itself"),
        ({"executor": Simulated(), "gradient": "adjoint"}, "available: twin, shift, spsa"),
        ({"executor": Simulated(), "shots": 5}, "the executor's own"),
        ({"executor": "virtual-wukong", "marginals": True}, "brings its own noise"),
        ({"executor": "virtual-wukong", "shots": 5}, "shots must be"),
        ({"executor": "virtual"}, "unknown executor 'virtual'"),
    ):
        with pytest.raises(InputError, match=words):
            QuantumLayer(CIRCUIT, **options)


def test_copies_share_the_executor_and_state_dicts_know_nothing_of_it():
    layer = layer_on(Modelled())
    plain = QuantumLayer(CIRCUIT)
    assert list(layer.state_dict()) == list(plain.state_dict())
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain.weight, layer.weight)
    other = copy.deepcopy(layer)
    other(samples(2, 2))
    assert other.execution.rows.chip == 2
    assert layer.execution.rows.chip == 0


def test_constants_stand_in_for_circuits():
    layer = QuantumLayer(CIRCUIT)
    layer.execution = Constant(torch.tensor([0.5, -0.25]))
    inputs = samples(2, 3, 2, dtype=torch.bfloat16)
    outputs = layer(inputs)
    assert outputs.dtype == torch.bfloat16
    assert torch.equal(outputs, torch.tensor([0.5, -0.25], dtype=torch.bfloat16).expand(2, 3, 2))
    assert layer.execution.rows == RowCount(simulated=6)


def test_every_rule_says_how_far_it_is_off():
    assert set(RULE_BIAS) == {"adjoint", "shift", "spsa", "twin"}
    assert all(RULE_BIAS.values())


def test_learns_on_the_virtual_chip(tmp_path):
    torch.manual_seed(0)
    chip = ChipSnapshot.fully_connected(12, two_qubit_fidelity=0.97, readout_error=0.03, t1_us=20.0, t2_us=5.0)
    executor = virtual(chip, tmp_path, shots=500)
    layer = QuantumLayer(qtha_block(2, 1), executor, init="normal")
    head = nn.Linear(2, 1)
    inputs = torch.randn(24, 2)
    targets = (inputs[:, :1] * 0.9).sin()
    optimiser = torch.optim.Adam([*layer.parameters(), *head.parameters()], lr=0.1)
    losses = []
    for _ in range(15):
        optimiser.zero_grad()
        loss = (head(layer(inputs)) - targets).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert math.isclose(executor.report().rows["forward"], 15 * 24)
    executor.close()


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(InputError, match=r"run from one process.* \(got 2 processes\)"):
        layer_on(Modelled())


def test_compilers_step_aside():
    layer = layer_on(Modelled(), gradient="shift")
    compiled = torch.compile(layer, backend="eager")
    inputs = samples(3, 2)
    assert torch.equal(compiled(inputs), layer(inputs))
