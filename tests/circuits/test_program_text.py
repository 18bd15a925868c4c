"""OpenQASM 3 and OriginIR: what is written is read back; what is malformed is named by its line."""

import contextlib
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_circuits import circuits, numbers

from qpeft.circuits import (
    Circuit,
    Gate,
    Input,
    Weight,
    from_openqasm,
    from_originir,
    qtha_block,
    to_openqasm,
    to_originir,
)
from qpeft.errors import InputError


@settings(max_examples=100, deadline=None)
@given(circuits())
def test_openqasm_keeps_symbolic_circuits(circuit):
    assert from_openqasm(to_openqasm(circuit)) == circuit


def rounded(circuit):
    """What a bound circuit is after one trip through text with 8 decimals."""
    gates = tuple(
        Gate(g.name, g.wires, None if g.angle is None else float(f"{round(g.angle, 8):.8f}")) for g in circuit.gates
    )
    return Circuit(circuit.n_qubits, gates, circuit.observables)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_bound_circuits_keep_eight_decimals(data):
    circuit = data.draw(circuits())
    inputs = data.draw(st.lists(numbers, min_size=circuit.n_inputs, max_size=circuit.n_inputs))
    weights = data.draw(st.lists(numbers, min_size=circuit.n_weights, max_size=circuit.n_weights))
    expected = rounded(circuit.bind(inputs, weights))
    assert from_originir(to_originir(circuit, inputs, weights)) == expected
    assert from_openqasm(to_openqasm(circuit, inputs, weights)) == expected


def test_openqasm_text():
    circuit = Circuit(2, (Gate("RY", 0, Input(0)), Gate("CRZ", (0, 1), Weight(0, 0.5)), Gate("SDG", 1)))
    assert to_openqasm(circuit) == (
        "OPENQASM 3.0;\n"
        'include "stdgates.inc";\n'
        "// observable: Z0\n"
        "// observable: Z1\n"
        "input float[64] x0;\n"
        "input float[64] w0;\n"
        "qubit[2] q;\n"
        "bit[2] c;\n"
        "ry(x0) q[0];\n"
        "crz(0.50000000*w0) q[0], q[1];\n"
        "sdg q[1];\n"
        "c = measure q;\n"
    )
    bound = to_openqasm(circuit, weights=[0.25])
    assert "crz(0.12500000) q[0], q[1];" in bound
    assert "input float[64] w0" not in bound
    assert "input float[64] x0" in bound


def test_originir_text():
    circuit = Circuit(
        2, (Gate("RY", 0, Input(0)), Gate("CRZ", (1, 0), Weight(0)), Gate("SDG", 1), Gate("CNOT", (0, 1)))
    )
    assert to_originir(circuit, [-1e-12], [-1234.123456789]) == (
        "QINIT 2\n"
        "CREG 2\n"
        "// observable: Z0\n"
        "// observable: Z1\n"
        "RY q[0],(0.00000000)\n"
        "CONTROL q[1]\n"
        "RZ q[0],(-1234.12345679)\n"
        "ENDCONTROL\n"
        "DAGGER\n"
        "S q[1]\n"
        "ENDDAGGER\n"
        "CNOT q[0],q[1]\n"
        "MEASURE q[0],c[0]\n"
        "MEASURE q[1],c[1]\n"
    )


def test_other_observables_are_not_measured_in_z():
    circuit = Circuit(2, (Gate("H", 0),), ("X0", "Z1"))
    assert "measure" not in to_openqasm(circuit)
    assert "MEASURE" not in to_originir(circuit)


def test_foreign_programs_are_read():
    circuit = from_openqasm(
        'OPENQASM 3;\ninclude "stdgates.inc";\nqubit[2] r; bit[2] out;\n'
        "h r[0]; cx r[0],\n  r[1]; // entangle\nrz(-pi/4 + 2*0.5) r[1];\nout[0] = measure r[0];"
    )
    assert [gate.name for gate in circuit.gates] == ["H", "CNOT", "RZ"]
    assert circuit.gates[2].angle == pytest.approx(1 - math.pi / 4)
    circuit = from_originir(
        "QINIT 3\nCREG 1\nDAGGER\nS q[0]\nCONTROL q[1]\nRY q[0],(0.5)\nX q[2]\nENDCONTROL\nENDDAGGER\n"
        "BARRIER q[0],q[1]\nMEASURE q[0],c[0]"
    )
    assert circuit.gates == (Gate("CNOT", (1, 2)), Gate("CRY", (1, 0), -0.5), Gate("SDG", 0))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 0: the program ends without a qubit register"),
        ("OPENQASM 3.0;\nqubit[2] q;\nfoo q[0];", "line 3: unknown gate 'foo'"),
        ("qubit[2] q;\nh q[0]", "line 2: 'h q\\[0\\]' has no semicolon"),
        ("qubit[2] q;\nh q[5];", "line 2: q\\[5\\] is outside"),
        ("qubit[2] q;\nh p[0];", "line 2: qubit register 'p'"),
        ("h q[0];\nqubit[2] q;", "line 1: qubit register 'q' is not declared"),
        ("qubit[2] q;\nry(x0) q[0];", "line 2: 'x0' is not declared"),
        ("qubit[2] q;\nry(__import__('os')) q[0];", "line 2: angle"),
        ("qubit[2] q;\nry(1/0) q[0];", "line 2: angle"),
        ("qubit[2] q;\nry(1e999) q[0];", "line 2: angle"),
        ("input float[64] x0;\nqubit[2] q;\nry(x0*x0) q[0];", "line 3: angle"),
        ("qubit[2] q;\nry q[0];", "line 2: RY on \\(0,\\) has no angle"),
        ("qubit[2] q;\ncx q[0], q[0];", "line 2: .*same wire twice"),
        ("qubit[0] q;", "line 1: register size 0"),
        ("qubit[99999999999999] q;", "line 1: register size"),
        ("qubit[2] q;\nqubit[2] r;", "line 2: second qubit register"),
        ("input float y;", "line 1: parameter 'y'"),
        ("qubit[2] q;\nif (c) x q[0];", "line 2: .*not understood"),
        ("qubit[1] q;\nbit[1] c;\nc = measure q;\nh q[0];", "line 4: gate after a measurement"),
        ("qubit[1] q;\n// observable: W0", "line 2: observable 'W0'"),
    ],
)
def test_malformed_openqasm_names_the_line(text, words):
    with pytest.raises(InputError, match=words):
        from_openqasm(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 0: the program ends without QINIT"),
        ("H q[0]", "line 1: .*before 'QINIT"),
        ("QINIT two", "line 1: 'QINIT two'"),
        ("QINIT 2\nQINIT 2", "line 2"),
        ("QINIT 2\nCREG", "line 2: 'CREG'"),
        ("QINIT 2\nSDG q[0]", "line 2: 'SDG q\\[0\\]' is not understood"),
        ("QINIT 2\nH q[7]", "line 2: q\\[7\\] is outside"),
        ("QINIT 2\nRY q[0],(one)", "line 2: 'one' is not declared"),
        ("QINIT 2\nRY q[0]", "line 2: RY on"),
        ("QINIT 2\nCONTROL q[0]\nRY q[1],(1)", "line 2: CONTROL is never closed"),
        ("QINIT 2\nCONTROL q[0]\nH q[1]\nENDCONTROL", "line 4: H on"),
        ("QINIT 2\nCONTROL q[0]\nX q[0]\nENDCONTROL", "line 4: X on"),
        ("QINIT 2\nCONTROL q[9]", "line 2: 'CONTROL q\\[9\\]'"),
        ("QINIT 2\nENDDAGGER", "line 2: ENDDAGGER closes no open block"),
        ("QINIT 2\nDAGGER\nENDCONTROL", "line 3: ENDCONTROL closes no open block"),
        ("QINIT 2\nMEASURE q0", "line 2: 'MEASURE q0'"),
        ("QINIT 2\nMEASURE q[0],c[0]\nH q[0]", "line 3: gate after a measurement"),
    ],
)
def test_malformed_originir_names_the_line(text, words):
    with pytest.raises(InputError, match=words):
        from_originir(text)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_programs_raise_only_input_errors(data):
    circuit = qtha_block(2, 1)
    write, read = data.draw(st.sampled_from([(to_openqasm, from_openqasm), (to_originir, from_originir)]))
    text = write(circuit, [0.1, 0.2], [0.3] * 8)
    start = data.draw(st.integers(0, len(text)))
    stop = data.draw(st.integers(start, min(len(text), start + 8)))
    damaged = text[:start] + data.draw(st.text(max_size=5)) + text[stop:]
    with contextlib.suppress(InputError):
        read(damaged)


def test_originir_needs_all_values():
    with pytest.raises(InputError, match="2 inputs and 0 weights have no value"):
        to_originir(qtha_block(2, 1), weights=[0.0] * 8)
