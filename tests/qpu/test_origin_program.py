"""Packed OriginIR: what is written, what is refused, and what counts as the same program."""

import math
from dataclasses import replace

import pytest

from loopback import chain, packed_job
from qpeft.chips import NativeTemplate
from qpeft.circuits import Circuit, Gate
from qpeft.circuits.originir import read_program
from qpeft.errors import InputError
from qpeft.qpu.protocol import Block, ProviderError
from qpeft.qpu.providers.origin_program import check_same, packed_program


def test_packed_program_text():
    job = packed_job(1)
    job = replace(job, templates=(chain((7,)), chain((4, 8))), circuits=((Block(0, (0.5,)), Block(1, (-0.25, 2.0))),))
    assert packed_program(job, job.circuits[0], 12) == (
        "QINIT 9\nCREG 3\n"
        "RX q[7],(1.57079633)\nRZ q[7],(0.50000000)\nRX q[7],(1.57079633)\nRX q[7],(1.57079633)\n"
        "RX q[4],(1.57079633)\nRZ q[4],(-0.25000000)\nRX q[4],(1.57079633)\n"
        "RX q[8],(1.57079633)\nRZ q[8],(2.00000000)\nRX q[8],(1.57079633)\n"
        "CZ q[4],q[8]\nRX q[4],(1.57079633)\nRX q[8],(1.57079633)\n"
        "BARRIER q[4],q[7],q[8]\n"
        "MEASURE q[7],c[0]\nMEASURE q[4],c[2]\nMEASURE q[8],c[1]\n"
    )


def test_bits_are_disjoint_and_cover_the_register():
    job = packed_job(1)
    circuit = (Block(0, (0.1, 0.2, 0.3)), Block(1, (0.4, 0.5)))
    program = read_program(packed_program(job, circuit, 12))
    assert program.bits == {0: 3, 1: 2, 2: 6, 3: 9, 4: 8}


@pytest.mark.parametrize(
    ("templates", "blocks", "words"),
    [
        ((chain((1, 2)), chain((2, 3))), (Block(0, (0.0, 0.0)), Block(1, (0.0, 0.0))), "share a qubit"),
        ((chain((11, 12)),), (Block(0, (0.0, 0.0)),), "0 to 11"),
        ((chain((1, 2)),), (Block(0, (0.0,)),), "1 angles for a template of 2"),
        ((NativeTemplate(Circuit(1, (Gate("H", 0),)), (1,), (0,), None),), (Block(0, ()),), "H is not native"),
        ((NativeTemplate(Circuit(1, (Gate("RX", 0, 0.3),)), (1,), (0,), None),), (Block(0, ()),), "not a pulse"),
        ((chain((1, 2)),), (), "none"),
    ],
)
def test_what_cannot_be_packed_is_refused(templates, blocks, words):
    job = replace(packed_job(1), templates=templates, circuits=(blocks,))
    with pytest.raises(InputError, match=words):
        packed_program(job, blocks, 12)


SENT = (
    "QINIT 4\nCREG 2\nRX q[1],(1.57079633)\nRZ q[1],(0.30000000)\nRX q[1],(-1.57079633)\nCZ q[1],q[2]\n"
    "RX q[2],(3.14159265)\nBARRIER q[1],q[2]\nMEASURE q[1],c[0]\nMEASURE q[2],c[1]\n"
)


@pytest.mark.parametrize(
    "ran",
    [
        SENT,
        SENT.replace("QINIT 4", "QINIT 72").replace("BARRIER q[1],q[2]\n", ""),
        # RZ behind the CZ, with which it commutes; a full turn more
        SENT.replace("CZ q[1],q[2]", "CZ q[2],q[1]\nRZ q[1],(1.0)\nRZ q[2],(6.28318531)"),
        # the frame moved into the axes: RPhi(90 degrees) about -0.3, and about -0.3 + 180 degrees
        SENT.replace("RZ q[1],(0.30000000)\nRX q[1],(-1.57079633)", f"RPHI q[1],(1.57079633,{math.pi - 0.3})"),
    ],
    ids=["equal", "register", "frames", "axes"],
)
def test_the_same_program_in_other_words(ran):
    check_same(SENT, ran, 0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("(0.30000000)", "(0.30001000)"),
        ("q[2]", "q[3]"),
        ("(-1.57079633)", "(1.57079633)"),
        ("MEASURE q[1],c[0]\nMEASURE q[2],c[1]", "MEASURE q[1],c[1]\nMEASURE q[2],c[0]"),
        ("RX q[2],(3.14159265)\n", ""),
        ("CZ q[1],q[2]\n", "CZ q[1],q[2]\nCZ q[1],q[2]\n"),
        ("RX q[2],(3.14159265)", "H q[2]"),
        ("QINIT 4", "nonsense"),
    ],
)
def test_another_program_is_noticed(old, new):
    with pytest.raises(ProviderError, match="circuit 5"):
        check_same(SENT, SENT.replace(old, new), 5)
