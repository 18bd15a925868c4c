"""A hypothesis strategy for circuits over all gates, wires, orders and repeats of inputs and weights."""

from hypothesis import strategies as st

from qpeft.circuits import Circuit, Gate, Input, Weight
from qpeft.circuits.circuit import GATES

# Eight decimals survive every text format.
numbers = st.integers(-(10**9), 10**9).map(lambda i: i / 10**8)


@st.composite
def circuits(draw, max_qubits=4, max_gates=20, only_constants=False, only_z=False):
    n = draw(st.integers(1, max_qubits))
    names = [name for name, kind in GATES.items() if kind.n_wires <= n]
    counts = {Input: 0, Weight: 0}
    gates = []
    for _ in range(draw(st.integers(0, max_gates))):
        name = draw(st.sampled_from(names))
        wires = tuple(draw(st.permutations(range(n)))[: GATES[name].n_wires])
        angle = None
        if GATES[name].has_angle:
            kind = float if only_constants else draw(st.sampled_from([float, Input, Weight]))
            if kind is float:
                angle = draw(numbers)
            else:
                index = draw(st.integers(0, counts[kind]))  # an old one again, or the next one
                counts[kind] = max(counts[kind], index + 1)
                angle = kind(index, draw(st.sampled_from([1.0, 1.0, -0.5, 2.0])))
        gates.append(Gate(name, wires, angle))
    letters = st.just("Z") if only_z else st.sampled_from("XYZ")
    observables = []
    for _ in range(draw(st.integers(1, 3))):
        wires = draw(st.permutations(range(n)))[: draw(st.integers(1, n))]
        observables.append(" ".join(f"{draw(letters)}{wire}" for wire in wires))
    return Circuit(n, tuple(gates), tuple(observables))
