r"""The slow, obvious reference: one sample at a time as a dense state in double precision, gradients by the adjoint.

With ψ the final state and λ = Σ_i g_i Z_i ψ, every gate U = exp(-iθP/2) (P restricted to the control's |1>) adds
∂/∂θ Σ_i g_i <Z_i> = Im<λ|P|ψ> at its place, both vectors being walked back through the circuit gate by gate.
"""

from __future__ import annotations

import numpy
from numpy import ndarray

from peers.program import Program, Step


def evaluate(
    program: Program, inputs: ndarray, weights: ndarray, cotangent: ndarray
) -> tuple[ndarray, ndarray, ndarray]:
    """Outputs ``(batch, n)``, gradients ``(batch, n_inputs)`` and, sample by sample, ``(batch, n_weights)``."""
    outputs = numpy.zeros(cotangent.shape)
    to_inputs = numpy.zeros(inputs.shape)
    to_weights = numpy.zeros((len(inputs), len(weights)))
    for row, x in enumerate(inputs.astype(float)):
        angles = {"x": x, "w": weights.astype(float)}
        gradients = {"x": to_inputs[row], "w": to_weights[row]}
        outputs[row] = _one(program, angles, cotangent[row].astype(float), gradients)
    return outputs, to_inputs, to_weights


def _one(program: Program, angles: dict, cotangent: ndarray, gradients: dict) -> ndarray:
    n = program.n_qubits
    state = numpy.zeros([2] * n, complex)
    state[(0,) * n] = 1
    for step in program.steps:
        state = _apply(step, state, angles, 1)
    signs = [numpy.array([1.0, -1.0]).reshape([2 if axis == wire else 1 for axis in range(n)]) for wire in range(n)]
    probabilities = numpy.abs(state) ** 2
    adjoint = sum(g * sign for g, sign in zip(cotangent, signs, strict=True)) * state
    for step in reversed(program.steps):
        if step.source is not None:
            generated = _generator(step, state)
            gradients[step.source][step.place] += numpy.vdot(adjoint, generated).imag
        state, adjoint = _apply(step, state, angles, -1), _apply(step, adjoint, angles, -1)
    return numpy.array([(sign * probabilities).sum() for sign in signs])


def _apply(step: Step, state: ndarray, angles: dict, sense: int) -> ndarray:
    if step.name == "CNOT":
        matrix = numpy.array([[0, 1], [1, 0]])
    else:
        half = sense * angles[step.source][step.place] / 2
        if step.name == "RY":
            matrix = numpy.array([[numpy.cos(half), -numpy.sin(half)], [numpy.sin(half), numpy.cos(half)]])
        else:
            matrix = numpy.diag([numpy.exp(-1j * half), numpy.exp(1j * half)])
    acted = _matrix_on(matrix, state, step.wires[-1])
    return _where_controlled(step, acted, state)


def _generator(step: Step, state: ndarray) -> ndarray:
    pauli = numpy.array([[0, -1j], [1j, 0]]) if step.name == "RY" else numpy.diag([1.0, -1.0])
    return _where_controlled(step, _matrix_on(pauli, state, step.wires[-1]), numpy.zeros_like(state))


def _matrix_on(matrix: ndarray, state: ndarray, wire: int) -> ndarray:
    return numpy.moveaxis(numpy.tensordot(matrix, state, (1, wire)), 0, wire)


def _where_controlled(step: Step, on: ndarray, off: ndarray) -> ndarray:
    if len(step.wires) == 1:
        return on
    result = off.copy()
    place = (slice(None),) * step.wires[0] + (1,)
    result[place] = on[place]
    return result
