"""TensorCircuit-NG's density matrix on jax: one sample's circuit with depolarising noise, ``vmap``, ``jit``, ``vjp``.

After every gate, ``ρ -> (1 - p) ρ + p tr_i(ρ) I/2`` on each of its wires: the Pauli errors X, Y, Z with p/4 each. The
variable ``QPEFT_BENCH_DEPOLARIZING`` holds ``p``.
"""

from __future__ import annotations

import os
from typing import Any

import adapter_tensorcircuit
import jax.numpy as jnp
import tensorcircuit as tc
from adapter_tensorcircuit import use_threads

__all__ = ["Layer", "use_threads"]

ERROR = float(os.environ["QPEFT_BENCH_DEPOLARIZING"]) / 4


class Layer(adapter_tensorcircuit.Layer):
    @staticmethod
    def empty(n_qubits: int) -> Any:
        return tc.DMCircuit(n_qubits)

    def after_gate(self, circuit: Any, wires: Any) -> None:
        for wire in wires:
            circuit.depolarizing(wire, px=ERROR, py=ERROR, pz=ERROR)

    @staticmethod
    def probabilities(circuit: Any) -> Any:
        return jnp.real(jnp.diagonal(circuit.densitymatrix()))
