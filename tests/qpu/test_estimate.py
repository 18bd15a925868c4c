"""Estimates against counting by hand, and signals against products of fidelities."""

import math

import pytest

from qpeft.chips import ChipSnapshot, Coupler, NativeTemplate, Qubit
from qpeft.circuits import Circuit, Gate, Input
from qpeft.errors import InputError
from qpeft.qpu.budget import Budget, Spend, cost_of
from qpeft.qpu.estimate import estimate
from qpeft.qpu.protocol import Caps, Price
from qpeft.qpu.signal import Advice, advise, expected_signals

CHIP = ChipSnapshot(
    "line",
    tuple(Qubit(i, 0.99 + 0.001 * i, 0.01 * i, 0.02, 20.0, 10.0 + i) for i in range(4)),
    tuple(Coupler((i, i + 1), 0.95 + 0.01 * i) for i in range(3)),
    repetition_us=200.0,
)
ORIGIN = Caps(200, 100, 10_000, packs=True, finds=False, paid=True, seconds_per_job=3.0)


@pytest.mark.parametrize(
    ("rows", "per_row", "blocks", "packed", "jobs"),
    [(64, 1, 1, 64, 1), (64, 33, 1, 2112, 11), (64, 33, 12, 176, 1), (57_344, 1, 8, 7168, 36), (0, 1, 1, 0, 0)],
)
def test_counts_are_what_will_be_sent(rows, per_row, blocks, packed, jobs):
    found = estimate(rows, 1000, ORIGIN, CHIP, circuits_per_row=per_row, blocks=blocks)
    assert (found.circuits, found.packed, found.jobs, found.shots) == (rows * per_row, packed, jobs, packed * 1000)
    assert found.chip_seconds == pytest.approx(packed * 0.2 + jobs * 3.0)
    assert found.price is None or rows == 0
    assert found.wall_seconds >= packed * 0.2


def test_an_estimate_is_the_sum_of_the_jobs_that_the_broker_books():
    price = Price("USD", per_job=0.3, per_circuit=0.02, per_shot=1e-4, per_second=0.5)
    caps = Caps(50, 1, 10_000, packs=True, finds=True, paid=True, price=price, seconds_per_job=1.0)
    found = estimate(120, 400, caps, CHIP, blocks=1, batches=3, calibration=2)
    booked = Spend()
    for _ in range(3):
        for n in (50, 50, 22):
            booked += cost_of(n, 400, caps, CHIP.repetition_us)
    assert found.spend.circuits == booked.circuits
    assert found.spend.jobs == booked.jobs
    assert found.price == pytest.approx(booked.money)
    assert found.chip_seconds == pytest.approx(booked.seconds)
    assert (found + found).price == pytest.approx(2 * booked.money)
    assert "USD" in found.sentence()
    with pytest.raises(InputError, match="cannot be added"):
        _ = found + estimate(1, 400, Caps(9, 1, 999, True, True, True, price=Price("EUR")), CHIP)


def test_bad_counts_are_refused():
    for change in ({"rows": -1}, {"blocks": 0}, {"rows": 1.5}, {"shots": 1}, {"in_flight": 0}):
        with pytest.raises(InputError):
            estimate(**{"rows": 4, "shots": 1000, "caps": ORIGIN, "snapshot": CHIP, **change})
    with pytest.raises(InputError, match="one block at a time"):
        estimate(4, 1000, Caps(9, 1, 9999, packs=False, finds=True, paid=True), CHIP, blocks=2)


def test_budgets_name_what_does_not_fit():
    assert Budget().excess(Spend(10**9, 10**9, 10**9, 1e9, None)) is None
    assert "price" in Budget(money=1.0).excess(Spend(money=None))
    assert Budget(circuits=1, seconds=2.0).excess(Spend(2, 1, 1, 3.0)) == "2 of 1 circuits, 3 of 2 seconds"
    for value in (-1, math.nan, math.inf):
        with pytest.raises(InputError):
            Budget(money=value)


def _template(*gates, qubits=(0, 1, 2)):
    n = len(qubits)
    return NativeTemplate(Circuit(n, tuple(gates)), qubits, tuple(range(n)), lambda inputs, weights: inputs)


def test_a_signal_is_the_product_over_the_light_cone():
    pulse, phase, pair = (Gate("RX", (0,), math.pi / 2), Gate("RZ", (0,), Input(0)), Gate("CZ", (0, 1)))
    signals = expected_signals(_template(pulse, phase, pair), CHIP)
    one, two = 2 * 0.99 - 1, (4 * 0.95 - 1) / 3
    read = [1 - 0.02 - 0.01 * i for i in range(3)]
    waited = math.exp(-0.030 / 11.0)  # qubit 1 waits for the pulse on qubit 0
    assert signals[0] == pytest.approx(read[0] * one * two * waited)
    assert signals[1] == pytest.approx(read[1] * one * two * waited)
    assert signals[2] == pytest.approx(read[2] * math.exp(-0.070 / 12.0))


def test_deeper_circuits_have_less_signal():
    layer = [Gate("RX", (w,), math.pi / 2) for w in range(3)] + [Gate("CZ", (0, 1)), Gate("CZ", (1, 2))]
    found = [min(expected_signals(_template(*(layer * n)), CHIP)) for n in range(1, 5)]
    assert found == sorted(found, reverse=True)
    assert min(expected_signals(_template(Gate("CZ", (0, 2))), CHIP)) == 0.0  # no such coupler


def test_advice():
    def signal(n, layers):
        if n == 3:
            raise InputError("does not fit")
        return 0.7 ** (n * layers)

    good = advise(signal, 2, 1, 1000, 10_000)
    assert good == Advice(0.7**2, 1000**-0.5)
    assert "times the shot noise" in good.sentence()
    bad = advise(signal, 8, 8, 1000, 10_000)
    assert not bad.survives
    assert bad.options
    for option in bad.options:
        assert option.n_qubits != 3
        assert option.signal >= 3 / math.sqrt(option.shots)
        assert option.shots <= 10_000
    assert "drowns. What survives: n=" in bad.sentence()
    assert "no smaller size survives" in advise(lambda n, layers: 0.0, 4, 4, 1000, 10_000).sentence()
