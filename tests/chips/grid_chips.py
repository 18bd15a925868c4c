"""Grids with some dead couplers and missing qubits, drawn with a seed."""

import random

from qpeft.chips import ChipSnapshot, Coupler, Qubit


def grid_chip(rows, columns, live_share=1.0, missing=(), seed=0):
    draw = random.Random(seed)
    qubits = []
    for index in range(rows * columns):
        t2 = draw.uniform(1.0, 3.0)
        qubits.append(
            Qubit(
                index,
                fidelity=draw.uniform(0.99, 0.999),
                p10=draw.uniform(0.01, 0.04),
                p01=draw.uniform(0.03, 0.08),
                t1_us=draw.uniform(5.0, 20.0),
                t2_us=t2,
                available=index not in missing,
            )
        )
    across = [(q, q + 1) for q in range(rows * columns) if (q + 1) % columns]
    pairs = across + [(q, q + columns) for q in range((rows - 1) * columns)]
    dead = set(draw.sample(pairs, round((1 - live_share) * len(pairs))))
    couplers = tuple(Coupler(pair, 0.0 if pair in dead else draw.uniform(0.93, 0.98)) for pair in pairs)
    return ChipSnapshot("grid", tuple(qubits), couplers)
