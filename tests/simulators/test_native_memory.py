"""Calls and plans of the native kernel give back all memory: measured over millions of circuits."""

import ctypes

import psutil
import pytest
import torch
from random_cases import samples

from qpeft.circuits import qtha_block, rotation_cnot_ring
from qpeft.simulators import native
from qpeft.simulators.plan import KernelSizes, make_plan

if not native.available():
    pytest.skip(f"the native kernel is {native.description()}", allow_module_level=True)

pytestmark = pytest.mark.slow

CIRCUITS = 10**8
BATCH = 16384


def mebibytes():
    """That this process holds now."""
    return psutil.Process().memory_info().rss / 2**20


@pytest.mark.parametrize("n_threads", [1, 2])
def test_a_hundred_million_circuits(n_threads):
    circuit = rotation_cnot_ring(4, 1)
    built = native.NativeEngine(circuit)
    inputs, weights, cotangent = samples(circuit, BATCH, dtype=torch.float32)

    def calls(count):
        for _ in range(count):
            built.evaluate(inputs, weights)
            built.differentiate(cotangent, inputs, weights)
        return mebibytes()

    before_test = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        before = calls(100)
        assert calls(CIRCUITS // BATCH) - before < 4
    finally:
        torch.set_num_threads(before_test)


def test_ten_thousand_plans():
    library = native._loaded()
    sizes = KernelSizes(library.qpeft_native_vector_bytes(), library.qpeft_native_max_radix())
    ints, numbers = make_plan(qtha_block(8, 3), sizes)

    def plans(count):
        for _ in range(count):
            plan = library.qpeft_plan_create(ints.ctypes.data, ints.size, numbers.ctypes.data, numbers.size)
            library.qpeft_plan_destroy(ctypes.c_void_p(plan))
            refused = library.qpeft_plan_create(ints.ctypes.data, ints.size - 1, numbers.ctypes.data, numbers.size)
            assert plan
            assert not refused
        return mebibytes()

    before = plans(100)
    assert plans(10_000) - before < 4


def test_engines_that_come_and_go():
    values = {n: samples(qtha_block(n, 2), 64) for n in (2, 5, 9)}

    def engines(count):
        for _ in range(count):
            for n, (inputs, weights, cotangent) in values.items():
                built = native.NativeEngine(qtha_block(n, 2))
                built.evaluate(inputs, weights)
                built.differentiate(cotangent, inputs, weights)
        return mebibytes()

    before = engines(20)
    assert engines(300) - before < 4
