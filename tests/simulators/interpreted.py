"""The Triton kernels in Triton's interpreter, in a process of its own: ``TRITON_INTERPRET`` is read when they are
defined, and would change them for everyone else.

Prints one line a case: its name, the dtype, and the largest error of outputs, gradient of inputs, gradient of weights,
beside dense matrices and beside the torch engine, whichever is larger.
"""

import json
import sys
from dataclasses import replace

import dense_reference
import numpy as np
import torch
from engines import STATE_VECTOR, everything
from random_cases import random_circuit, samples

from qpeft.circuits import Circuit, Gate, Input, Weight, qtha_block
from qpeft.simulators.triton_engine import TritonEngine

BATCH = 7


def blocks():
    for n_qubits, n_layers, order, entanglement in (
        (1, 1, "published", "ring"), (2, 2, "published", "ring"), (3, 2, "older", "ring"), (3, 2, "published", "none"),
        (3, 2, "older", "none"), (4, 1, "published", "ring"), (4, 1, "older", "ring"), (4, 2, "published", "ring"),
        (6, 1, "published", "ring"),
    ):  # fmt: skip
        yield f"qtha {n_qubits} {n_layers} {order} {entanglement}", qtha_block(n_qubits, n_layers, order, entanglement)


def others():
    rng = np.random.default_rng(5)
    for k in range(8):
        yield f"random {k}", random_circuit(rng, 1 + k % 4, 18)
    yield (
        "real",
        Circuit(2, (Gate("RY", 0, Input(0)), Gate("CZ", (0, 1)), Gate("RY", 1, Weight(0))), ("Z1", "X0", "Y1")),
    )
    yield "no angles", Circuit(2, (Gate("H", 0), Gate("CNOT", (0, 1))), ("Z0 Z1", "X0 X1", "Y0 Y1"))


def errors(engine, circuit, values, dtype):
    found = [value.double().numpy() for value in everything(engine, *(value.to(dtype) for value in values))]
    by_matrices = dense_reference.evaluate(circuit, *(value.numpy() for value in values))
    by_torch = everything(STATE_VECTOR.build(circuit), *values)
    return [
        max(float(np.abs(a - b).max(initial=0)), float(np.abs(a - c.numpy()).max(initial=0)))
        for a, b, c in zip(found, by_matrices, by_torch, strict=True)
    ]


def report(name, dtype, found):
    print(json.dumps({"case": name, "dtype": str(dtype), "errors": found}))


def main():
    torch.set_num_threads(1)
    for name, circuit in [*blocks(), *others()]:
        for dtype in (torch.float32, torch.float64):
            engine = TritonEngine(circuit)
            engine.block = 4  # two blocks, and the second is not full
            report(name, dtype, errors(engine, circuit, samples(circuit, BATCH), dtype))
    circuit = qtha_block(3, 2)
    inputs, weights, cotangent = samples(circuit, BATCH, dtype=torch.float32)
    engine = TritonEngine(circuit)
    engine.block = 2
    values = inputs, 1e4 * weights, cotangent
    report(
        "weights of many turns", torch.float32, errors(engine, circuit, [v.double() for v in values], torch.float32)
    )

    whole = everything(engine, inputs, weights, cotangent)
    engine._parts = lambda inputs: [slice(start, start + 2) for start in range(0, len(inputs), 2)]
    report("in parts", torch.float32, [float((a - b).abs().max()) for a, b in zip(
        everything(engine, inputs, weights, cotangent), whole, strict=True)])  # fmt: skip
    wide = torch.randn(BATCH, 6)[:, ::2]  # strides
    engine = TritonEngine(circuit)
    apart = engine.evaluate(wide, weights) - engine.evaluate(wide.contiguous(), weights)
    report("strided inputs", torch.float32, [float(apart.abs().max())])
    empty = everything(engine, inputs[:0], weights, cotangent[:0])
    report(
        "empty batch", torch.float32, [float(empty[0].numel()), float(empty[1].numel()), float(empty[2].abs().sum())]
    )
    spoilt = inputs.clone()
    spoilt[2, 0] = float("nan")
    of_sample = engine.evaluate(spoilt, weights).isnan()
    report("nan stays with its sample", torch.float32, [float(not of_sample[2].all()), float(of_sample.sum() - 3)])
    flipped = replace(circuit, observables=("X0 Y1",))
    report("one observable", torch.float64, errors(TritonEngine(flipped), flipped, samples(flipped, 3), torch.float64))


if __name__ == "__main__":
    sys.exit(main())
