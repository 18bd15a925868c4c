"""TensorCircuit-NG's density matrix on jax: one sample's circuit with depolarising noise, ``vmap``, ``jit``, ``vjp``.

After every gate, ``ρ -> (1 - p) ρ + p tr_i(ρ) I/2`` on each of its wires: the Pauli errors X, Y, Z with p/4 each. The
variable ``QPEFT_BENCH_DEPOLARIZING`` holds ``p``.
"""

from __future__ import annotations

import os
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
        error = float(os.environ["QPEFT_BENCH_DEPOLARIZING"]) / 4

        def one(x: Any, w: Any) -> Any:
            circuit = tc.DMCircuit(n)
            angles = {"x": x, "w": w}
            for name, wires, source, index in program.steps:
                gate = getattr(circuit, name.lower())
                if source is None:
                    gate(*wires)
                else:
                    gate(*wires, theta=angles[source][index])
                for wire in wires:
                    circuit.depolarizing(wire, px=error, py=error, pz=error)
            probabilities = jnp.real(jnp.diagonal(circuit.densitymatrix())).reshape([2] * n)
            marginals = [probabilities.sum([axis for axis in range(n) if axis != wire]) for wire in range(n)]
            return jnp.stack([marginal[0] - marginal[1] for marginal in marginals])

        batched = jax.vmap(one, in_axes=(0, None))

        def differentiated(x: Any, w: Any, cotangent: Any) -> Any:
            outputs, back = jax.vjp(batched, x, w)
            return outputs, *back(cotangent)

        self._forward, self._both = jax.jit(batched), jax.jit(differentiated)

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
