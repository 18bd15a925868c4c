"""The Triton kernels without a GPU: their numbers in the interpreter, their compilation, and when they are chosen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qpeft.circuits import qtha_block
from qpeft.errors import InputError
from qpeft.simulators import cuda, exact, native, triton_engine
from qpeft.simulators.lightcone import LightConeEngine
from qpeft.simulators.statevector import StateVectorEngine

HERE = Path(__file__).parent
TOLERANCES = {"torch.float32": 2e-5, "torch.float64": 1e-10}
CIRCUIT = qtha_block(3, 2)


def run_apart(script, **environment):
    pytest.importorskip("triton")
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    done = subprocess.run(
        [sys.executable, str(HERE / script)],
        env={**os.environ, **threads, **environment}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_interpreter_agrees_with_dense_matrices_and_with_torch():
    cases = run_apart("interpreted.py", TRITON_INTERPRET="1")
    assert len(cases) == 44
    for case in cases:
        assert max(case["errors"]) < TOLERANCES[case["dtype"]], case


@pytest.mark.slow
def test_the_kernels_compile_for_gpus():
    found = run_apart("compiled.py", TRITON_INTERPRET="0")
    assert {(case["kernel"], case["capability"]) for case in found} == {
        (kernel, capability) for kernel in ("forward_kernel", "backward_kernel") for capability in (80, 90)
    }
    assert all(case["bytes"] > 1000 for case in found)


@pytest.fixture
def engines_anew(monkeypatch):
    exact.engine.cache_clear()
    yield monkeypatch
    exact.engine.cache_clear()


def chosen():
    return type(exact.engine(CIRCUIT.key, "cuda"))


def test_triton_is_chosen_where_it_works(engines_anew):
    pytest.importorskip("triton")
    engines_anew.setattr(triton_engine, "problem", lambda: None)
    assert chosen() is triton_engine.TritonEngine
    assert type(exact.engine(qtha_block(9, 2).key, "cuda")) is StateVectorEngine
    assert cuda.description() == "Triton kernels up to 8 qubits, plain torch above"


def test_torch_takes_over_where_triton_does_not_work(engines_anew):
    engines_anew.setattr(triton_engine, "problem", lambda: "is not installed")
    assert chosen() in (StateVectorEngine, LightConeEngine)
    assert cuda.description() == "plain torch, because Triton is not installed"


def test_a_kernel_that_fails_is_a_reason_and_no_traceback(engines_anew):
    def fail(circuit):
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    engines_anew.setattr(triton_engine.importlib.util, "find_spec", lambda name: object())
    engines_anew.setattr(torch.cuda, "is_available", lambda: True)
    engines_anew.setattr(torch, "linspace", lambda *a, device, linspace=torch.linspace: linspace(*a))
    engines_anew.setattr(torch, "empty", lambda *a, device, empty=torch.empty: empty(*a))
    engines_anew.setattr(triton_engine, "TritonEngine", fail)
    triton_engine.problem.cache_clear()
    assert triton_engine.problem() == "does not work here (Failed to find C compiler.)"
    triton_engine.problem.cache_clear()


def test_torch_on_request(engines_anew):
    engines_anew.setenv("QPEFT_CUDA", "torch")
    engines_anew.setattr(triton_engine, "problem", lambda: None)
    assert chosen() in (StateVectorEngine, LightConeEngine)
    assert cuda.description() == "plain torch, because QPEFT_CUDA=torch"


@pytest.mark.skipif(not native.available(), reason="the native kernel is not built; install a compiler")
def test_the_processor_on_request(engines_anew):
    engines_anew.setenv("QPEFT_CUDA", "cpu")
    assert chosen() is cuda.PinnedEngine
    assert cuda.description() == "the native kernel on the processor, because QPEFT_CUDA=cpu"
    pinned, kernel = cuda.PinnedEngine(CIRCUIT), native.NativeEngine(CIRCUIT, check=False)
    inputs, weights, cotangent = torch.randn(5, 3), torch.randn(CIRCUIT.n_weights), torch.randn(5, 3)
    assert torch.equal(pinned.evaluate(inputs, weights), kernel.evaluate(inputs, weights))
    both = zip(
        pinned.differentiate(cotangent.double(), inputs, weights),
        kernel.differentiate(cotangent, inputs, weights),
        strict=True,
    )
    assert all(torch.equal(a, b) for a, b in both)


def test_another_request_is_refused(engines_anew):
    engines_anew.setenv("QPEFT_CUDA", "gpu")
    with pytest.raises(InputError, match=r"QPEFT_CUDA must be one of triton, torch, cpu \(got 'gpu'\)"):
        chosen()
