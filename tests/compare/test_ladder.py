"""The verdict on invented grids: each rung reached, missed and unknown."""

from dataclasses import replace

import numpy as np
import pytest

from qpeft.compare.ladder import climb
from qpeft.compare.results import Accounting, ArmInfo, CellResult, GridResults

KINDS = {
    "adapter": "adapter", "lora": "reference", "lora-same-count": "matched", "oft-same-count": "matched",
    "no-entanglers": "control", "no-circuit": "control", "frozen-circuit": "control", "classical": "control",
    "base": "base",
}  # fmt: skip
#: accuracies of an adapter that reaches rung 5
GOOD = {
    "adapter": 0.80, "lora": 0.79, "lora-same-count": 0.60, "oft-same-count": 0.55, "no-entanglers": 0.6,
    "no-circuit": 0.5, "frozen-circuit": 0.55, "classical": 0.6, "base": 0.05,
}  # fmt: skip
N_ITEMS = 200


def grid(accuracies=GOOD, seeds=5, spread=0.005, n_items=N_ITEMS, lora_parameters=1000, adapter_seconds=20.0):
    """Every arm gets the items right that are easier than its accuracy; a seed moves it by `spread`."""
    generator = np.random.default_rng(5)
    difficulty = generator.permutation((np.arange(n_items) + 0.5) / n_items)
    cells = []
    for arm, accuracy in accuracies.items():
        for seed in range(1 if arm == "base" else seeds):
            right = difficulty < accuracy + generator.normal(0, spread)
            parameters = {"adapter": 250, "lora": lora_parameters}.get(arm, 250)
            seconds = (adapter_seconds if arm == "adapter" else 10.0) * generator.uniform(0.97, 1.03)
            cells.append(
                CellResult(
                    "llama", "sums", arm, 1e-3, seed, "final",
                    train_loss=None if arm == "base" else 2 - accuracy + generator.normal(0, spread),
                    losses=() if arm == "base" else ((10, 2.0), (100, 1.0)),
                    metrics={"strict_accuracy": float(right.mean())},
                    items={"strict": tuple(right.astype(float))},
                    accounting=Accounting(trainable=parameters, seconds=seconds),
                )
            )  # fmt: skip
    return GridResults(
        title="",
        arms={arm: ArmInfo(arm, arm, KINDS[arm], circuit=arm == "adapter") for arm in accuracies},
        cells=tuple(cells),
        metric={"sums": "strict_accuracy"},
    )


def verdict(results, **options):
    return climb(results, "llama", "sums", **options)


def reached(results, **options):
    return [rung.reached for rung in verdict(results, **options).rungs]


def without(*arms):
    return {arm: accuracy for arm, accuracy in GOOD.items() if arm not in arms}


def diverge(results, arm, *seeds):
    cells = [
        replace(cell, status="diverged", train_loss=None, metrics={}, items={})
        if cell.arm == arm and (cell.seed in seeds or not seeds)
        else cell
        for cell in results.cells
    ]
    return replace(results, cells=tuple(cells))


def test_up_to_the_fifth_rung():
    found = verdict(grid())
    assert found.rung == 5
    assert [rung.reached for rung in found.rungs] == [True] * 5 + [False]
    assert [rung.number for rung in found.rungs] == [1, 2, 3, 4, 5, 6]
    assert found.sentence == (
        "llama, sums: rung 5 of 6 (no cheap surrogate matches it) is reached; "
        "rung 6 (wins in time or energy) is not reached."
    )
    evidence = {rung.number: rung.evidence for rung in found.rungs}
    assert evidence[1] == "5 seeds ran to the end."
    assert evidence[2].startswith("250 against 1,000 trained numbers. By strict accuracy, with 5 seeds and 200 items")
    assert "The margin is 2.0 points." in evidence[2]
    for arm in ("lora-same-count", "oft-same-count"):
        assert f"Against {arm} +" in evidence[3]
    assert "times LoRA's wall clock [" in evidence[6]
    assert evidence[6].endswith("Energy was not measured.")


def test_all_rungs_of_a_faster_adapter():
    found = verdict(grid(adapter_seconds=5.0))
    assert found.rung == 6
    assert found.sentence == "llama, sums: all 6 rungs are reached."


def test_rung_two_needs_fewer_parameters():
    found = verdict(grid(lora_parameters=250))
    assert found.rung == 1
    assert found.rungs[1].evidence == "It does not train fewer: 250 against 250 trained numbers."
    assert "Rung 3 (beats the classical arms of the same count) is met by itself" in found.sentence


def test_rung_two_is_missed_by_a_worse_adapter():
    found = verdict(grid(GOOD | {"lora": 0.9}))
    assert found.rungs[1].reached is False
    assert found.rungs[1].evidence.endswith("LoRA is better.")


def test_a_tie_of_two_arms_that_learned_nothing_says_nothing():
    found = verdict(grid(GOOD | {"base": 0.79}))
    assert found.rungs[1].reached is None
    assert "not told apart from the frozen base" in found.rungs[1].evidence
    assert "No frozen base was measured" in verdict(grid(without("base"))).rungs[1].evidence


def test_a_design_that_cannot_tell_says_so():
    """Seeds that differ by ten points cannot show a tie within two, nor the lack of a difference."""
    found = verdict(grid(GOOD | {"no-circuit": 0.79}, spread=0.1))
    assert found.rungs[1].reached is None
    assert "The interval reaches past the margin, and with 5 seeds and 200 items a difference below" in (
        found.rungs[1].evidence
    )
    assert found.rungs[1].evidence.endswith("could not have been seen.")
    assert found.rungs[3].reached is None
    assert "does not tell the two apart, and with 5 seeds" in found.rungs[3].evidence


@pytest.mark.parametrize(
    ("arm", "rung"),
    [("lora-same-count", 3), ("oft-same-count", 3), ("no-entanglers", 4), ("no-circuit", 4), ("frozen-circuit", 4),
     ("classical", 5)],
)  # fmt: skip
def test_every_arm_of_a_rung_counts(arm, rung):
    even = verdict(grid(GOOD | {arm: 0.80}, spread=0.002))  # a precise design: the difference would be seen
    assert even.rungs[rung - 1].reached is False
    assert even.rung == rung - 1
    better = verdict(grid(GOOD | {arm: 0.9}))
    assert better.rungs[rung - 1].reached is False
    assert f"{arm} is better." in better.rungs[rung - 1].evidence
    missing = verdict(grid(without(arm)))
    if arm == "oft-same-count":
        assert missing.rungs[rung - 1].reached is True  # one of many that may be asked for
    else:
        assert missing.rungs[rung - 1].reached is None
        assert f"The arm {arm} is missing." in missing.rungs[rung - 1].evidence
    lost = verdict(diverge(grid(), arm))
    assert lost.rungs[rung - 1].reached is None
    assert f"All seeds of {arm} diverged." in lost.rungs[rung - 1].evidence


@pytest.mark.parametrize(
    ("accuracy", "trained", "decided"),
    [(0.6, 262, True), (0.6, 200, None), (0.6, 300, True), (0.9, 262, False), (0.9, 200, False), (0.9, 300, None)],
)
def test_an_arm_of_another_count_decides_only_against_its_numbers(accuracy, trained, decided):
    results = grid(GOOD | {"oft-same-count": accuracy})
    cells = [
        replace(cell, accounting=replace(cell.accounting, trainable=trained)) if cell.arm == "oft-same-count" else cell
        for cell in results.cells
    ]
    third = verdict(replace(results, cells=tuple(cells))).rungs[2]
    assert third.reached is decided
    assert (f"It trains {trained} numbers, not 250" in third.evidence) == (trained != 262)
    assert third.evidence.endswith("and does not decide.") == (decided is None)


def test_every_surrogate_counts(monkeypatch):
    monkeypatch.setitem(KINDS, "surrogate", "control")
    monkeypatch.setitem(KINDS, "classical-dense", "control")
    found = verdict(grid(GOOD | {"surrogate": 0.6, "classical-dense": 0.9}))
    assert found.rung == 4
    assert found.rungs[4].evidence.endswith("classical-dense is better.")
    assert "Against surrogate +" in found.rungs[4].evidence


def test_an_adapter_without_a_circuit_loses_nothing_with_it():
    results = grid()
    arms = {name: replace(arm, circuit=False) for name, arm in results.arms.items()}
    found = verdict(replace(results, arms=arms))
    assert found.rung == 3
    assert found.rungs[3].evidence == "The adapter has no circuit with entanglement."


def test_one_seed_reaches_the_first_rung():
    found = verdict(grid(seeds=1))
    assert found.rung == 1
    assert [rung.reached for rung in found.rungs] == [True, None, None, None, None, None]
    assert all("One seed says nothing about another." in rung.evidence for rung in found.rungs[1:5])
    assert "measured on one seed" in found.rungs[5].evidence


def test_diverged_seeds_of_the_adapter_miss_the_first_rung():
    found = verdict(diverge(grid(), "adapter", 1, 3))
    assert found.rung == 0
    assert found.rungs[0].evidence.startswith("2 of 5 seeds diverged")
    assert "(seeds left out: 2 diverged)" in found.rungs[1].evidence
    assert found.sentence.startswith("llama, sums: no rung is reached; rung 1 (runs) is not reached.")


def test_diverged_seeds_of_another_arm_are_named():
    found = verdict(diverge(grid(), "oft-same-count", 0))
    assert found.rung == 5
    assert "with 4 to 5 seeds" in found.rungs[2].evidence
    assert "(seeds left out: 1 diverged)" in found.rungs[2].evidence


def test_nothing_measured():
    found = verdict(grid({}))
    assert found.rung == 0
    assert [rung.reached for rung in found.rungs] == [None] * 6


def test_a_partial_grid_is_called_so():
    results = grid()
    assert "41 of 90 cells are finished: this may change." in verdict(replace(results, planned=90)).sentence


def test_the_margin():
    """An adapter five points below LoRA ties within ten points, as told by the caller or by the plan."""
    results = grid(GOOD | {"lora": 0.85})
    assert reached(results)[1] is False
    tied = verdict(results, margin=0.1).rungs[1]
    assert tied.reached is True
    assert "The margin is 10.0 points. LoRA is better, by less than that." in tied.evidence
    assert reached(replace(results, plan={"margin": 0.1}))[1] is True


def test_a_loss_decides_where_no_measure_is_named():
    """By five per cent of LoRA's loss, and less is better."""
    found = verdict(replace(grid(without("base")), metric={}))
    assert found.rung == 5
    assert "By train loss, with 5 seeds, p corrected" in found.rungs[1].evidence
    assert "The margin is 0.06" in found.rungs[1].evidence  # of LoRA's 1.21


def test_the_margin_of_a_loss_is_a_share_of_what_lora_gained():
    """LoRA takes 0.5 off a loss of 3.5: being 0.1 worse is no tie, though it is little of the loss."""
    results = grid()
    losses = {"base": 3.5, "lora": 3.0, "adapter": 3.1}
    cells = [
        replace(cell, metrics={"loss": losses.get(cell.arm, 3.2) + 0.001 * (len(cell.arm) * cell.seed % 5)}, items={})
        for cell in results.cells
    ]
    second = verdict(replace(results, cells=tuple(cells), metric={"sums": "loss"})).rungs[1]
    assert second.reached is False
    assert "The margin is 0.0249" in second.evidence
