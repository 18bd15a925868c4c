"""The native kernel from Python: how it is found and switched off, threads, errors, large registers.

Numbers, memory layouts and repeated bits are tested for all engines in ``test_references.py`` and ``test_engines.py``,
and below Python in ``native/tests``.
"""

import ctypes
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engines import NATIVE, STATE_VECTOR, everything
from random_cases import random_circuit, samples

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block, rotation_cnot_ring
from qpeft.errors import InputError
from qpeft.simulators import exact, native, run

if not native.available():
    pytest.skip(f"the native kernel is {native.description()}", allow_module_level=True)

CIRCUIT = qtha_block(4, 2)


@pytest.fixture
def loaded_anew(monkeypatch):
    """Forgets the library and all engines, before the test and after it."""

    def forget():
        native._library.cache_clear()
        exact.engine.cache_clear()

    forget()
    yield monkeypatch
    monkeypatch.undo()
    forget()


# --- finding and loading ------------------------------------------------------------------------------------------


def test_description_names_the_instruction_set():
    name = native.description().removeprefix("native kernel, ")
    assert name in ("avx512", "avx2", "neon", "baseline")
    assert native.peak_gflops(0.01) > 1


def assert_torch_takes_over(reason):
    """The same numbers, in torch; whoever asks for the kernel itself, or for too much, is told the reason."""
    assert not native.available()
    assert native.description() == reason
    assert "\n" not in reason
    values = samples(CIRCUIT, 9)
    assert not isinstance(exact.engine(CIRCUIT.key), native.NativeEngine)
    expected = STATE_VECTOR.build(CIRCUIT).evaluate(*values[:2])
    torch.testing.assert_close(run(CIRCUIT, *values[:2]), expected, rtol=0, atol=1e-12)
    for ask in (native.peak_gflops, lambda: native.NativeEngine(CIRCUIT)):
        with pytest.raises(InputError) as raised:
            ask()
        assert str(raised.value) == f"the native kernel is {reason}."
    large = rotation_cnot_ring(21, 1)
    with pytest.raises(InputError, match="21 qubits need the native kernel, which is "):
        run(large, *samples(large, 1)[:2])


def test_switched_off(loaded_anew):
    loaded_anew.setenv("QPEFT_NATIVE", "0")
    assert_torch_takes_over("turned off by QPEFT_NATIVE=0")


def test_not_built(loaded_anew):
    loaded_anew.setattr("qpeft.simulators.__path__", [])
    assert_torch_takes_over("not built: install qpeft where there is a C++ compiler (GCC or Clang)")


def test_a_library_of_another_version(loaded_anew):
    loaded_anew.setattr(native, "_ABI", 1000)
    abi = ctypes.CDLL(str(native._find_library())).qpeft_native_abi()
    assert_torch_takes_over(f"of another version (interface {abi}, expected 1000): install qpeft again")


@pytest.mark.parametrize("what", ["no library", "another library"])
def test_a_library_that_cannot_be_loaded(loaded_anew, tmp_path, what):
    path = tmp_path / native._find_library().name
    if what == "no library":
        path.write_text("this is no library")
    else:
        shutil.copy(np.linalg._umath_linalg.__file__, path)  # loads, and has nothing of ours
    loaded_anew.setattr(native, "_find_library", lambda: path)
    reason = native.description()
    assert reason.startswith("cannot be loaded (")
    assert reason.endswith("): install qpeft again")
    assert str(path) in reason
    assert_torch_takes_over(reason)


@pytest.mark.parametrize("wanted", ["avx512", "avx2", "baseline", "neon", "unknown", ""])
def test_a_lesser_instruction_set(loaded_anew, tmp_path, wanted):
    """One that the processor or the build lacks gives the least of them; each has the same numbers."""
    best, values = native.description(), samples(CIRCUIT, 20)
    expected = everything(native.NativeEngine(CIRCUIT), *values)
    copy = tmp_path / native._find_library().name  # loaded beside the other, so that it chooses again
    shutil.copy(native._find_library(), copy)
    native._library.cache_clear()
    loaded_anew.setattr(native, "_find_library", lambda: copy)
    loaded_anew.setenv("QPEFT_ISA", wanted)
    found = native.description()
    least = "native kernel, neon" if "neon" in best else "native kernel, baseline"
    assert found in ({best} if not wanted else {f"native kernel, {wanted}", least})
    for a, b in zip(everything(native.NativeEngine(CIRCUIT), *values), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


PROGRAM = """
import os, torch
from qpeft.circuits import qtha_block
from qpeft.simulators import exact, native, run

for _ in range(2):
    print(native.description(), float(run(qtha_block(3, 1), torch.ones(1, 3), torch.ones(12))[0, 0]), sep=": ")
    os.environ.pop("QPEFT_NATIVE", None)
    native._library.cache_clear()
    exact.engine.cache_clear()
"""


def test_switches_in_the_environment_of_a_program():
    switches = {"QPEFT_NATIVE": "0", "QPEFT_ISA": "baseline"}  # the program takes the first away after a while
    command = [sys.executable, "-c", PROGRAM]
    ran = subprocess.run(command, env={**os.environ, **switches}, capture_output=True, text=True, check=True)
    descriptions, numbers = zip(*(line.split(": ") for line in ran.stdout.splitlines()), strict=True)
    assert descriptions[0] == "turned off by QPEFT_NATIVE=0"
    assert descriptions[1] in ("native kernel, baseline", "native kernel, neon")
    assert float(numbers[0]) == pytest.approx(float(numbers[1]), abs=1e-6)


# --- threads ------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_the_kernel_takes_the_number_of_threads_from_torch(threads, monkeypatch):
    built, values = native.NativeEngine(CIRCUIT), samples(CIRCUIT, 3)
    asked = []
    monkeypatch.setattr(built, "_forward", lambda *arguments: asked.append(arguments[-1]) or -1)
    monkeypatch.setattr(built, "_backward", lambda *arguments: asked.append(arguments[-1]) or -1)
    for number in (1, 3):
        threads(number)
        everything(built, *values)
    assert asked == [1, 1, 3, 3]


@pytest.mark.parametrize("number", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads, number):
    """Weights' gradients are sums over samples, which threads share out."""
    built, values = native.NativeEngine(CIRCUIT), samples(CIRCUIT, 4000)
    threads(1)
    expected = everything(built, *values)
    threads(number)
    found = everything(built, *values)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    torch.testing.assert_close(found[2], expected[2], rtol=1e-12, atol=1e-10)
    assert all(map(torch.equal, found, everything(built, *values)))


@pytest.mark.parametrize("number", [1, 2])
def test_calls_from_several_threads_at_once(threads, number):
    threads(number)
    built, values = native.NativeEngine(CIRCUIT), samples(CIRCUIT, 4000)
    expected = everything(built, *values)
    start = threading.Barrier(4)

    def call(_):
        torch.set_num_threads(number)  # OpenMP keeps it for each thread
        start.wait()
        return [everything(built, *values) for _ in range(5)]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(call, range(4)):
            for found in results:
                assert all(map(torch.equal, found, expected))


def test_an_engine_may_be_forgotten_while_others_of_its_circuit_work():
    first, second = native.NativeEngine(CIRCUIT), native.NativeEngine(CIRCUIT)
    values = samples(CIRCUIT, 5)
    expected = everything(first, *values)
    del first
    assert all(map(torch.equal, everything(second, *values), expected))


# --- errors -------------------------------------------------------------------------------------------------------


def assert_both_refuse(built, values, error, words):
    for call in (lambda: built.evaluate(*values[:2]), lambda: built.differentiate(values[2], *values[:2])):
        with pytest.raises(error) as raised:
            call()
        assert str(raised.value) == words


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_angle_that_is_not_finite_is_named(dtype):
    built = native.NativeEngine(CIRCUIT)
    inputs, weights, cotangent = samples(CIRCUIT, 40, dtype=dtype)
    inputs[37, 0], inputs[36, 3], inputs[36, 2] = torch.inf, torch.nan, -torch.inf
    words = "input 2 of sample 36 is -inf; angles must be finite numbers of radians."
    assert_both_refuse(built, (inputs, weights, cotangent), InputError, words)
    weights[5] = torch.nan
    words = "weight 5 is nan; angles must be finite numbers of radians."
    assert_both_refuse(built, (inputs, weights, cotangent), InputError, words)


def test_angles_that_overflow_are_named():
    circuit = Circuit(2, (Gate("RY", 0, Input(0, 4.0)), Gate("CRX", (0, 1), Weight(0, 4.0))))
    built = native.NativeEngine(circuit)
    largest = torch.finfo(torch.float32).max
    values = torch.tensor([[1.0], [largest]]), torch.ones(1), torch.ones(2, 2)
    words = "an angle of sample 1 overflows; angles must be finite numbers of radians."
    assert_both_refuse(built, values, InputError, words)
    values = torch.ones(2, 1), torch.tensor([torch.finfo(torch.float64).max], dtype=torch.float64), torch.ones(2, 2)
    words = "an angle of the weights overflows; angles must be finite numbers of radians."
    assert_both_refuse(built, values, InputError, words)


def test_values_that_nothing_reads_may_be_anything():
    gates = (Gate("RY", 0, Input(0)), Gate("RY", 1, Input(1)), Gate("RX", 1, Weight(0)))
    built = native.NativeEngine(Circuit(2, gates, ("Z0",)))
    inputs, weights = torch.tensor([[0.5, torch.nan]]), torch.tensor([torch.inf])
    torch.testing.assert_close(built.evaluate(inputs, weights), inputs[:, :1].cos())
    to_inputs, to_weights = built.differentiate(torch.ones(1, 1), inputs, weights)
    torch.testing.assert_close(to_inputs, torch.stack([-inputs[:, 0].sin(), torch.zeros(1)], 1))
    assert to_weights.tolist() == [0.0]


def test_no_memory_in_the_kernel(monkeypatch):
    built = native.NativeEngine(CIRCUIT)
    monkeypatch.setattr(built, "_forward", lambda *_: native._MEMORY)
    monkeypatch.setattr(built, "_backward", lambda *_: native._MEMORY)
    words = "the state of one sample does not fit into memory; use fewer qubits or fewer threads"
    assert_both_refuse(built, samples(CIRCUIT, 2), MemoryError, words)


def test_no_memory_for_a_plan(monkeypatch):
    monkeypatch.setattr(native._loaded(), "qpeft_plan_create", lambda *_: None)
    with pytest.raises(MemoryError, match="no memory for the plan of a circuit on 4 qubits"):
        native.NativeEngine(CIRCUIT)


def test_a_circuit_larger_than_the_memory(threads, monkeypatch):
    circuit = rotation_cnot_ring(18, 2)
    built = native.NativeEngine(circuit)
    monkeypatch.setattr(native.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    threads(2)
    with pytest.raises(InputError, match=r"^the circuit needs 0\.\d GiB in 2 thread\(s\), and 0\.0 GiB are free; use"):
        built.evaluate(*samples(circuit, 3)[:2])
    assert native.NativeEngine(CIRCUIT).evaluate(*samples(CIRCUIT, 2)[:2]).shape == (2, 4)


# --- large registers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [13, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_registers_against_the_state_vector(n, dtype):
    """Samples in the lanes of a vector at 13 qubits, amplitudes at 16."""
    circuit = random_circuit(np.random.default_rng(n), n, 60)
    values = samples(circuit, 3, dtype=dtype)
    found = everything(NATIVE.build(circuit), *values)
    expected = everything(STATE_VECTOR.build(circuit), *(value.double() for value in values))
    limit = 1e-5 if dtype == torch.float32 else 1e-10
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=limit * max(1.0, float(b.abs().max())))
