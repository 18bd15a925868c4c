"""The native kernel: circuits on the processor, compiled from C++ (``native/``), for batches in ordinary memory.

A plan (:mod:`qpeft.simulators.plan`) is made once per circuit. A call passes pointers and strides; it uses as many
threads as ``torch.get_num_threads()`` says, taken from the OpenMP library that torch itself has loaded, because a
second pool of threads would compete with torch's. Results are the same bits whatever the batch is cut into; gradients
of weights are sums over samples, and the same bits for a given number of threads.

``QPEFT_NATIVE=0`` in the environment turns the kernel off; ``QPEFT_ISA`` picks a lesser instruction set (``avx2``,
``baseline``) than the processor offers.
"""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

import qpeft.simulators
from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.simulators.plan import KernelSizes, make_plan

MAX_QUBITS = 24
_LARGE = 18  # from here on a state takes megabytes
_ABI = 6
_WEIGHTS, _MEMORY = -2, -3


def _find_library() -> Path | None:
    suffix = {"darwin": "libqpeft_native.dylib", "win32": "qpeft_native.dll"}.get(sys.platform, "libqpeft_native.so")
    for folder in qpeft.simulators.__path__:
        path = Path(folder, "_native", suffix)
        if path.is_file():
            return path
    return None


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | str:
    """The loaded library, or why there is none."""
    if os.environ.get("QPEFT_NATIVE") == "0":
        return "turned off by QPEFT_NATIVE=0"
    path = _find_library()
    if path is None:
        return "not built: install qpeft where there is a C++ compiler (GCC or Clang)"
    try:
        library = ctypes.CDLL(str(path))
        abi = library.qpeft_native_abi()
    except (OSError, AttributeError) as error:
        return f"cannot be loaded ({error}): install qpeft again"
    if abi != _ABI:
        return f"of another version (interface {abi}, expected {_ABI}): install qpeft again"
    library.qpeft_native_isa.restype = ctypes.c_char_p
    library.qpeft_native_peak.restype = c_double
    library.qpeft_native_peak.argtypes = [c_double]
    library.qpeft_native_use_openmp.argtypes = [c_void_p, c_void_p]
    library.qpeft_plan_create.restype = c_void_p
    library.qpeft_plan_create.argtypes = [c_void_p, c_int64, c_void_p, c_int64]
    library.qpeft_plan_destroy.argtypes = [c_void_p]
    library.qpeft_plan_pass_nonfinite.argtypes = [c_void_p]
    library.qpeft_plan_bytes.restype = c_int64
    library.qpeft_plan_bytes.argtypes = [c_void_p, c_int, c_int, c_int]
    batch: list[Any] = [c_void_p, c_int64, c_int64]  # pointer and strides
    library.qpeft_forward.restype = c_int64
    library.qpeft_forward.argtypes = [c_void_p, c_int, c_int64, *batch, c_int, c_void_p, c_void_p, c_int]
    library.qpeft_backward.restype = c_int64
    to_both: list[Any] = [c_int, c_void_p, c_void_p, c_void_p, c_int]
    library.qpeft_backward.argtypes = [c_void_p, c_int, c_int64, *batch, *batch, *to_both]
    try:
        loaded = ctypes.CDLL(None)  # what torch has loaded for everyone to see
        parallel, number = loaded.GOMP_parallel, loaded.omp_get_thread_num
    except (AttributeError, TypeError, OSError):
        pass  # the library starts threads of its own
    else:
        library.qpeft_native_use_openmp(ctypes.cast(parallel, c_void_p), ctypes.cast(number, c_void_p))
    return library


def available() -> bool:
    """Whether circuits on the processor run in the native kernel."""
    return not isinstance(_library(), str)


def description() -> str:
    """One line for people: the instruction set in use, or why the kernel is not there."""
    library = _library()
    return library if isinstance(library, str) else f"native kernel, {library.qpeft_native_isa().decode()}"


def peak_gflops(seconds: float = 0.2) -> float:
    """Multiply-adds of float32 that one core does in registers, as GFLOP/s (a multiply-add counts twice).

    Raises:
        InputError: There is no native kernel.
    """
    return _loaded().qpeft_native_peak(seconds)


def _loaded() -> ctypes.CDLL:
    library = _library()
    if isinstance(library, str):
        raise InputError(f"the native kernel is {library}.")
    return library


class NativeEngine:
    """A circuit in the native kernel.

    Args:
        circuit: The circuit, at most 24 qubits.
        probabilities: Whether to return the ``2**n_qubits`` probabilities of basis states instead of the observables.
        check: Whether a NaN or infinite angle is an error; if not, what depends on it is NaN.

    Raises:
        InputError: There is no native kernel.
    """

    def __init__(self, circuit: Circuit, probabilities: bool = False, check: bool = True) -> None:
        library = _loaded()
        sizes = KernelSizes(library.qpeft_native_vector_bytes(), library.qpeft_native_max_radix())
        ints, numbers = make_plan(circuit, sizes, probabilities)
        self.n_inputs = circuit.n_inputs
        self.n_weights = circuit.n_weights
        self.n_outputs = 1 << circuit.n_qubits if probabilities else circuit.n_observables
        self._forward = library.qpeft_forward
        self._backward = library.qpeft_backward
        self._destroy = library.qpeft_plan_destroy
        self._plan = library.qpeft_plan_create(ints.ctypes.data, ints.size, numbers.ctypes.data, numbers.size)
        if not self._plan:
            raise MemoryError(f"no memory for the plan of a circuit on {circuit.n_qubits} qubits")
        if not check:
            library.qpeft_plan_pass_nonfinite(self._plan)
        # Small circuits are not checked at every call: their states fit into a core's cache.
        self._bytes = library.qpeft_plan_bytes if circuit.n_qubits >= _LARGE else None

    def __del__(self) -> None:
        if getattr(self, "_plan", None):
            self._destroy(self._plan)
            self._plan = None

    def evaluate(self, inputs: Tensor, weights: Tensor) -> Tensor:
        """``(batch, n_inputs), (n_weights,) -> (batch, n_outputs)``."""
        weights = _weights(weights)
        self._check_memory(inputs, backward=False)
        outputs = torch.empty(inputs.shape[0], self.n_outputs, dtype=inputs.dtype)
        status = self._forward(
            self._plan,
            inputs.dtype == torch.float64,
            inputs.shape[0],
            inputs.data_ptr(),
            *inputs.stride(),
            weights.dtype == torch.float64,
            weights.data_ptr(),
            outputs.data_ptr(),
            torch.get_num_threads(),
        )
        if status != -1:
            _refuse(status, inputs, weights)
        return outputs

    def differentiate(self, gradient: Tensor, inputs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """``(batch, n_outputs), ... -> (batch, n_inputs), (n_weights,)``; gradients of weights in their dtype."""
        weights = _weights(weights)
        self._check_memory(inputs, backward=True)
        to_inputs = torch.empty(inputs.shape, dtype=inputs.dtype)
        to_weights = torch.empty(self.n_weights, dtype=weights.dtype)
        status = self._backward(
            self._plan,
            inputs.dtype == torch.float64,
            inputs.shape[0],
            gradient.data_ptr(),
            *gradient.stride(),
            inputs.data_ptr(),
            *inputs.stride(),
            weights.dtype == torch.float64,
            weights.data_ptr(),
            to_inputs.data_ptr(),
            to_weights.data_ptr(),
            torch.get_num_threads(),
        )
        if status != -1:
            _refuse(status, inputs, weights)
        return to_inputs, to_weights

    def _check_memory(self, inputs: Tensor, backward: bool) -> None:
        if self._bytes is None:
            return
        threads = max(1, min(torch.get_num_threads(), inputs.shape[0]))
        needed = self._bytes(self._plan, inputs.dtype == torch.float64, backward, threads)
        free = psutil.virtual_memory().available
        if needed > free:
            raise InputError(
                f"the circuit needs {needed / 2**30:.1f} GiB in {threads} thread(s), and {free / 2**30:.1f} GiB are "
                f"free; use fewer qubits, float32 or torch.set_num_threads(1)."
            )


def _weights(weights: Tensor) -> Tensor:
    if weights.dtype not in (torch.float32, torch.float64):
        weights = weights.float()
    return weights.contiguous()


def _refuse(status: int, inputs: Tensor, weights: Tensor) -> None:
    if status == _MEMORY:
        raise MemoryError("the state of one sample does not fit into memory; use fewer qubits or fewer threads")
    if status == _WEIGHTS:
        values, name, whose = weights, "weight {}", "the weights"
    else:
        values, name, whose = inputs[status], f"input {{}} of sample {status}", f"sample {status}"
    wrong = (~values.isfinite()).nonzero().flatten().tolist()
    what = f"{name.format(wrong[0])} is {values[wrong[0]].item()}" if wrong else f"an angle of {whose} overflows"
    raise InputError(f"{what}; angles must be finite numbers of radians.")
