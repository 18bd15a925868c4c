"""What needs a CUDA device: the same numbers there as on the processor, and the same commands. Run with::

pytest -m gpu tests/gpu
"""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from qpeft import QTHAConfig, load
from qpeft.adapters.execution import run_on
from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring
from qpeft.data import encode, question_and_answer
from qpeft.evaluation import measure_loss
from qpeft.execution import OnExecutor
from qpeft.layer import QuantumLayer
from qpeft.models import load_tokenizer
from qpeft.qpu.settings import ExecutionSettings, open_executor
from qpeft.simulators import NoiseModel, cuda, exact, native, run, triton_engine
from qpeft.training import RunFolder, make_recipe, train
from qpeft.training.footprint import Sizes
from qpeft.training.run_folder import read_metrics
from tiny_base import recipe_values

DEVICE = "cuda"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

GATES = (
    *(Gate("RX", (k,), Input(k)) for k in range(3)), Gate("CNOT", (0, 2)), Gate("RZ", (2,), Input(1, 2.0)),
    Gate("SWAP", (1, 2)), Gate("CRY", (2, 0), Input(0)), Gate("H", (1,)), Gate("CRX", (0, 1), Weight(0)),
)  # fmt: skip
CIRCUITS = [
    *(qtha_block(n, layers, order, ring) for n, layers, order, ring in (
        (1, 1, "published", "ring"), (4, 2, "published", "ring"), (4, 1, "older", "ring"), (5, 2, "older", "none"),
        (8, 2, "published", "ring"), (10, 1, "published", "ring"))),
    rotation_cnot_ring(6, 2),
    Circuit(3, GATES, ("Z0", "X1", "Y0 Y2")),
]  # fmt: skip


@pytest.fixture(params=["triton", "torch", "cpu"])
def choice(request, monkeypatch):
    """Each of the ways to run circuits whose tensors are on the device."""
    monkeypatch.setenv("QPEFT_CUDA", request.param)
    if request.param == "triton" and triton_engine.problem() is not None:
        pytest.skip(f"Triton {triton_engine.problem()}")
    if request.param == "cpu" and not native.available():
        pytest.skip(native.description())
    exact.engine.cache_clear()
    yield request.param
    exact.engine.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("circuit", CIRCUITS, ids=lambda circuit: f"{circuit.n_qubits}q{len(circuit.gates)}g")
def test_circuits(choice, circuit, dtype):
    torch.manual_seed(0)
    inputs, weights = torch.randn(1003, circuit.n_inputs, dtype=dtype), 3 * torch.randn(circuit.n_weights)
    cotangent = torch.randn(1003, circuit.n_observables, dtype=dtype)

    def results(device):
        x, w = (tensor.to(device).requires_grad_() for tensor in (inputs, weights))
        outputs = run(circuit, x, w)
        return outputs, *torch.autograd.grad(outputs, (x, w), cotangent.to(device))

    tolerance = 1e-9 if dtype == torch.float64 else 2e-5
    for found, again, expected in zip(results(DEVICE), results(DEVICE), results("cpu"), strict=True):
        assert found.device.type == DEVICE
        assert choice == "torch" or torch.equal(found, again)
        limit = max(tolerance, 1e-6 if found.dtype == torch.float32 else 0) * max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=limit)


def test_one_sample_does_not_spoil_others(choice):
    layer = QuantumLayer(qtha_block(3, 2)).to(DEVICE)
    inputs = torch.randn(600, 3, device=DEVICE)
    inputs[77, 1] = float("nan")
    spoilt = layer(inputs).isnan()
    assert spoilt[77].any()
    assert spoilt.any(1).sum() == 1


def test_the_machine_says_what_runs(choice):
    names = {"triton": "Triton kernels", "torch": "plain torch, because QPEFT_CUDA", "cpu": "the native kernel"}
    assert cuda.description().startswith(names[choice])


@pytest.mark.parametrize(
    "options",
    [
        {"executor": "noisy", "noise": NoiseModel.uniform(depolarizing=0.01, readout=0.02)},
        {"executor": "shots", "shots": 200_000, "seed": 1},
        {"executor": "shots", "shots": 200_000, "seed": 1, "marginals": True, "gradient": "adjoint"},
        {"executor": "shots", "shots": 200_000, "seed": 1, "noise": NoiseModel.uniform(depolarizing=0.01)},
    ],
)
def test_noise_and_shots(options):
    torch.manual_seed(0)
    layer = QuantumLayer(qtha_block(3, 1), **options)
    inputs = torch.randn(2, 4, 3)

    def results(device):
        own = copy.deepcopy(layer).to(device)
        x = inputs.to(device).requires_grad_()
        outputs = own(x)
        return outputs, *torch.autograd.grad(outputs.sum(), (x, own.weight))

    exactly = options["executor"] == "noisy"
    for found, expected in zip(results(DEVICE), results("cpu"), strict=True):
        assert found.device.type == DEVICE
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5 if exactly else 0.1)


@pytest.mark.parametrize("gradient", ["twin", "shift", "spsa"])
def test_a_chip_serves_activations_of_the_device(gradient):
    executor = open_executor(ExecutionSettings("virtual-wukong", shots=100, seed=3))
    layer = QuantumLayer(qtha_block(2, 1)).to(DEVICE)
    layer.execution = OnExecutor(executor, gradient)
    inputs = torch.randn(2, 3, 2, device=DEVICE, requires_grad=True)
    outputs = layer(inputs)
    outputs.sum().backward()
    executor.close()
    assert outputs.device.type == inputs.grad.device.type == layer.weight.grad.device.type == DEVICE
    assert inputs.grad.isfinite().all()


def adapted(base, dtype=torch.float32):
    torch.manual_seed(0)
    config = QTHAConfig(r=2, bond_dim=2, inner_features=8, target_modules=["q_proj", "v_proj"], init_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=dtype), config)


def step(model, device):
    """Loss and adapter after one step of gradient descent."""
    ids = torch.randint(0, 200, (3, 24), generator=torch.Generator().manual_seed(2)).to(device)
    model = copy.deepcopy(model).to(device).train()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    torch.optim.SGD(trained.values(), lr=0.1).step()
    return loss.item(), {name: parameter.detach().cpu() for name, parameter in trained.items()}


def test_a_training_step_equals_that_of_the_processor(choice, llama_base):
    model = adapted(llama_base)
    (loss, found), (expected_loss, expected) = step(model, DEVICE), step(model, "cpu")
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-4, atol=1e-5)


def test_a_bfloat16_base_keeps_a_float32_adapter(llama_base):
    model = adapted(llama_base, torch.bfloat16)
    (loss, found), (expected, _) = step(model, DEVICE), step(model, "cpu")
    assert loss == pytest.approx(expected, rel=2e-2)
    assert all(values.dtype == torch.float32 and values.isfinite().all() for values in found.values())


def test_what_is_saved_on_the_device_loads_on_the_processor(llama_base, tmp_path):
    ids = torch.arange(20)[None]
    model = adapted(llama_base).to(DEVICE).eval()
    with torch.no_grad():
        expected = model(ids.to(DEVICE)).logits.cpu()
        model.save_pretrained(tmp_path)
        found = load(tmp_path)
        found = (found[0] if isinstance(found, tuple) else found).cpu().eval()
        torch.testing.assert_close(found(ids).logits, expected, rtol=0, atol=1e-4)


def test_evaluation_equals_that_of_the_processor(llama_base):
    tokenizer = load_tokenizer(str(llama_base))
    samples = [encode(question_and_answer(f"what is {k}?", str(k)), tokenizer) for k in range(6)]
    model = adapted(llama_base).eval()
    expected = measure_loss(model, samples)
    assert measure_loss(model.to(DEVICE), samples).loss == pytest.approx(expected.loss, rel=1e-5)


def test_the_control_of_a_constant_circuit(llama_base):
    model = adapted(llama_base).to(DEVICE).eval()
    ids = torch.arange(20, device=DEVICE)[None]
    with torch.no_grad():
        ordinary = model(ids).logits
        with run_on(model, branch="off"):
            assert not torch.equal(model(ids).logits, ordinary)
        assert torch.equal(model(ids).logits, ordinary)


def test_a_run_with_diagnostics_follows_that_of_the_processor(llama_base, tmp_path):
    def losses(device, name):
        changes = {"model__device": device, "training__diagnostics_steps": 2, "training__logging_steps": 1}
        folder = tmp_path / name
        train(make_recipe(recipe_values(llama_base, folder, **changes)))
        return [line["loss"] for line in read_metrics(RunFolder(folder).metrics) if "loss" in line]

    assert losses(DEVICE, "there") == pytest.approx(losses("cpu", "here"), rel=1e-3)


@pytest.mark.parametrize("method", ["lora", "qtha"])
def test_estimated_memory_is_what_a_step_takes(method):
    shape = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1536, num_hidden_layers=6, num_attention_heads=8,
        num_key_value_heads=4,
    )  # fmt: skip
    adapter = {
        "lora": LoraConfig(r=4, target_modules=["q_proj", "v_proj"]),
        "qtha": QTHAConfig(r=4, inner_features=64, bond_dim=2, target_modules=["q_proj", "v_proj"]),
    }[method]
    tokens = 4 * 512
    estimated = Sizes(shape, adapter, torch.bfloat16, 512, False, libraries=0.0).footprint(tokens).peak
    model = get_peft_model(AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16), adapter).to(DEVICE).train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad])
    ids = torch.randint(512, (4, 512), device=DEVICE)
    for _ in range(2):  # the first step makes the optimizer's state and compiles kernels
        torch.cuda.reset_peak_memory_stats()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.cuda.max_memory_allocated() == pytest.approx(estimated, rel=0.25)
