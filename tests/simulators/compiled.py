"""Compiles the Triton kernels for GPUs that need not be there: prints the bytes of machine code of each."""

import json
import sys

from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qpeft.simulators import triton_kernels

N_QUBITS = 4
INTEGERS = {"steps", "observables", "permutations"}
COUNTS = {"batch", "n_steps", "n_observables", "n_inputs", "n_sampled", "n_rows", "n_phases"}


def main():
    constants = {"N": N_QUBITS, "I": N_QUBITS, "BLOCK": 64, "COMPLEX": True, "FLIPS": True}
    for kernel in (triton_kernels.forward_kernel, triton_kernels.backward_kernel):
        kinds = dict.fromkeys(INTEGERS, "*i32") | dict.fromkeys(COUNTS, "i32")
        kinds |= dict.fromkeys(constants, "constexpr")
        source = ASTSource(kernel, {name: kinds.get(name, "*fp32") for name in kernel.arg_names}, constants)
        for capability in (80, 90):
            code = compile(source, target=GPUTarget("cuda", capability, 32)).asm["cubin"]
            print(json.dumps({"kernel": kernel.__name__, "capability": capability, "bytes": len(code)}))


if __name__ == "__main__":
    sys.exit(main())
