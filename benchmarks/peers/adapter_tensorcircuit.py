"""TensorCircuit-NG on jax: the circuit of one sample, ``vmap`` over the batch, ``jit``, ``vjp`` inside the ``jit``.

The expectations are read from ``state()``, which was 1.4 to 1.8 times faster here than one ``expectation_ps`` each.
XLA on the CPU has no call for its number of threads: it takes as many as the process has cores, and the worker is
pinned. Compiled programs are kept in the folder that ``JAX_COMPILATION_CACHE_DIR`` names.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy
import tensorcircuit as tc
from program import Program

tc.set_backend("jax")
tc.set_dtype("complex64")
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def use_threads(threads: int) -> None:
    """Nothing to call: XLA follows the cores of the process."""


class Layer:
    def __init__(self, program: Program, inputs: Any, weights: Any, cotangent: Any) -> None:
        self.inputs, self.weights, self.cotangent = map(self.array, (inputs, weights, cotangent))

        n = program.n_qubits

        def one(x: Any, w: Any) -> Any:
            circuit = self.empty(n)
            angles = {"x": x, "w": w}
            for name, wires, source, index in program.steps:
                gate = getattr(circuit, name.lower())
                if source is None:
                    gate(*wires)
                else:
                    gate(*wires, theta=angles[source][index])
                self.after_gate(circuit, wires)
            probabilities = self.probabilities(circuit).reshape([2] * n)
            marginals = [probabilities.sum([axis for axis in range(n) if axis != wire]) for wire in range(n)]
            return jnp.stack([marginal[0] - marginal[1] for marginal in marginals])

        batched = jax.vmap(one, in_axes=(0, None))

        def differentiated(x: Any, w: Any, cotangent: Any) -> Any:
            outputs, back = jax.vjp(batched, x, w)
            return outputs, *back(cotangent)

        self._forward, self._both = jax.jit(batched), jax.jit(differentiated)

    @staticmethod
    def empty(n_qubits: int) -> Any:
        return tc.Circuit(n_qubits)

    def after_gate(self, circuit: Any, wires: Any) -> None:
        """Nothing happens between the gates of a circuit without noise."""

    @staticmethod
    def probabilities(circuit: Any) -> Any:
        return jnp.square(jnp.abs(circuit.state()))

    def forward(self) -> Any:
        return jax.block_until_ready(self._forward(self.inputs, self.weights))

    def both(self) -> Any:
        return jax.block_until_ready(self._both(self.inputs, self.weights, self.cotangent))

    @staticmethod
    def array(values: Any) -> Any:
        return jnp.asarray(values, dtype=jnp.float32)

    @staticmethod
    def numpy(values: Any) -> Any:
        return numpy.asarray(values)
