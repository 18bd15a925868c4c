"""Intervals, p-values and detectable effects: against scipy, statsmodels, slow loops and simulated grids."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower, TTestPower
from statsmodels.stats.proportion import proportion_effectsize

from qpeft.compare.intervals import (
    detectable_accuracy,
    holm,
    minimum_detectable_effect,
    over_seeds,
    over_seeds_and_items,
)
from qpeft.compare.results import ArmInfo, CellResult, GridResults
from qpeft.compare.statistics import all_comparisons, compare_arms, gain, not_worse, summarise
from qpeft.errors import InputError, MissingDependencyError


def simulated(generator, n_seeds, n_items, seed, item, noise):
    """Differences (n_seeds, n_items) around zero with the given standard deviations."""
    return (
        generator.normal(0, seed, (n_seeds, 1))
        + generator.normal(0, item, (1, n_items))
        + generator.normal(0, noise, (n_seeds, n_items))
    )


def cell(arm, seed, stage="final", **values):
    return CellResult("base", "task", arm, 1e-3, seed, stage, **values)


def answered(arm, seed, items, **values):
    return cell(
        arm, seed, items={"strict": tuple(items)}, metrics={"strict_accuracy": float(np.mean(items))}, **values
    )


def grid(*cells, **kinds):
    kinds = {"adapter": "adapter", "lora": "reference", **kinds}
    arms = {name: ArmInfo(name, name, kind) for name, kind in kinds.items()}
    return GridResults("", arms, cells, metric={"task": "strict_accuracy"})


class TestOverSeedsAndItems:
    @pytest.mark.parametrize(
        ("n_seeds", "seed", "item", "noise"),
        [(5, 0.2, 0.1, 0.1), (5, 0.05, 0.3, 0.3), (5, 0.0, 0.0, 0.5), (1, 0.0, 0.3, 0.3)],
        ids=["seeds", "both", "noise", "one seed"],
    )
    def test_the_interval_covers_and_p_is_uniform(self, n_seeds, seed, item, noise):
        generator = np.random.default_rng(3)
        found = [
            over_seeds_and_items(simulated(generator, n_seeds, 60, seed, item, noise), resamples=500, rng=number)
            for number in range(300)
        ]
        covered = np.mean([each.low <= 0 <= each.high for each in found])
        assert 0.92 <= covered <= 0.99  # 0.95 to 0.97 in longer simulations; its standard error is 0.013
        p_values = np.array([each.p for each in found])
        for level in (0.05, 0.2, 0.5, 0.8):
            assert abs((p_values <= level).mean() - level) < 0.075

    def test_resampling_few_seeds_would_cover_too_little(self):
        """Why the seeds' share is drawn from Student's t: the plain two-level bootstrap promises too much."""
        generator = np.random.default_rng(4)
        covered = 0
        for _ in range(300):
            values = simulated(generator, 5, 60, 0.2, 0.1, 0.1)
            seeds = generator.multinomial(5, [1 / 5] * 5, 500) / 5  # (500, n_seeds)
            items = generator.multinomial(60, [1 / 60] * 60, 500) / 60  # (500, n_items)
            low, high = np.quantile(((seeds @ values) * items).sum(axis=1), (0.025, 0.975))
            covered += low <= 0 <= high
        assert covered / 300 < 0.89

    def test_one_seed_is_scipys_bootstrap_over_items(self):
        values = np.random.default_rng(0).integers(-1, 2, (1, 200)).astype(float)
        found = over_seeds_and_items(values)
        theirs = stats.bootstrap((values[0],), np.mean, method="percentile", n_resamples=10_000, rng=8)
        assert found.value == pytest.approx(values.mean())
        assert found.low == pytest.approx(theirs.confidence_interval.low, abs=0.006)
        assert found.high == pytest.approx(theirs.confidence_interval.high, abs=0.006)
        assert found.error == pytest.approx(theirs.standard_error, rel=0.03)
        assert found.freedom == pytest.approx(199)

    def test_items_that_do_not_differ_leave_student_over_seeds(self):
        seeds = np.array([0.02, 0.05, -0.01, 0.04, 0.03])
        found = over_seeds_and_items(np.repeat(seeds[:, None], 300, axis=1), resamples=30_000)
        exact = over_seeds(seeds)
        assert found.low == pytest.approx(exact.low, abs=0.004)
        assert found.high == pytest.approx(exact.high, abs=0.004)
        assert found.p == pytest.approx(exact.p, rel=0.15)
        assert (found.error, found.freedom) == (pytest.approx(exact.error), pytest.approx(4))

    def test_tokens_weigh(self):
        generator = np.random.default_rng(1)
        tokens = generator.integers(1, 60, 80).astype(float)
        losses = (0.3 + generator.normal(0, 0.5, (1, 80))) * tokens  # summed over the tokens of an item
        found = over_seeds_and_items(losses, tokens)
        assert found.value == pytest.approx(losses.sum() / tokens.sum())
        slow = []
        for _ in range(4000):
            drawn = generator.integers(0, 80, 80)
            slow.append(losses[0, drawn].sum() / tokens[drawn].sum())
        low, high = np.quantile(slow, (0.025, 0.975))
        assert found.low == pytest.approx(low, abs=0.02)
        assert found.high == pytest.approx(high, abs=0.02)
        assert over_seeds_and_items(losses, 3 * tokens).high == pytest.approx(found.high / 3)

    def test_the_same_numbers_give_the_same_interval(self):
        values = np.random.default_rng(0).normal(0, 1, (3, 50))
        assert over_seeds_and_items(values) == over_seeds_and_items(values)
        swapped = over_seeds_and_items(-values)
        assert swapped.low == pytest.approx(-over_seeds_and_items(values).high, abs=0.03)

    def test_arms_that_do_the_same(self):
        found = over_seeds_and_items(np.zeros((5, 40)))
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)
        assert found.error is None

    def test_one_item(self):
        assert over_seeds_and_items(np.array([[1.0], [0.0], [1.0]])).freedom == 2


class TestOverSeeds:
    def test_is_a_paired_t_test(self):
        first, second = np.array([1.0, 1.2, 0.9]), np.array([1.1, 1.25, 1.05])
        found = over_seeds(first - second)
        test = stats.ttest_rel(first, second)
        assert found.p == pytest.approx(test.pvalue)
        assert (found.low, found.high) == pytest.approx(tuple(test.confidence_interval()))

    @pytest.mark.parametrize("values", [[0.3], [0.3, 0.3, 0.3]])
    def test_one_number_has_no_interval(self, values):
        found = over_seeds(np.array(values))
        assert found.value == pytest.approx(0.3)
        assert found.low is found.high is found.p is found.error is None

    def test_no_difference_in_any_seed(self):
        assert over_seeds(np.zeros(3)).p == 1


class TestDetectable:
    @pytest.mark.parametrize("freedom", [1, 2, 4, 7.3, 400])
    def test_has_power_of_eighty_percent(self, freedom):
        effect = minimum_detectable_effect(0.01, freedom)
        one = effect / (0.01 * math.sqrt(freedom + 1))
        assert TTestPower().power(one, freedom + 1, 0.05) == pytest.approx(0.8, abs=1e-4)

    def test_is_found_four_times_of_five(self):
        effect = minimum_detectable_effect(1 / math.sqrt(5), 4)
        draws = np.random.default_rng(0).normal(effect, 1, (4000, 5))
        assert (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.03)

    @pytest.mark.parametrize(("n_items", "accuracy"), [(400, 0.5), (1319, 0.3), (200, 0.9)])
    def test_before_the_first_step(self, n_items, accuracy):
        effect = detectable_accuracy(n_items, accuracy)
        power = max(
            NormalIndPower().power(abs(proportion_effectsize(accuracy + side * effect, accuracy)), n_items, 0.05)
            for side in (-1, 1)
            if 0 <= accuracy + side * effect <= 1
        )
        assert power >= 0.8 - 1e-6
        assert effect > detectable_accuracy(2 * n_items, accuracy)

    def test_impossible_designs(self):
        assert detectable_accuracy(1) == pytest.approx(0.5)
        with pytest.raises(InputError, match="at least one item"):
            detectable_accuracy(0)
        with pytest.raises(InputError, match=r"between 0 and 1, not at 54"):
            detectable_accuracy(400, 54)


def test_holm():
    """Times 3, times 2, times 1, and never smaller than one before."""
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([]) == []
    p_values = np.random.default_rng(0).random(30) ** 4
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])


class TestSummarise:
    def test_student_over_seeds(self):
        values = (1.0, 1.5, 1.3, 0.9, 1.1)
        found = summarise([cell("lora", seed, train_loss=loss) for seed, loss in enumerate(values)], "train_loss")
        low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        assert (found.mean, found.low, found.high, found.n) == pytest.approx((np.mean(values), low, high, 5))

    def test_diverged_seeds_are_counted_and_not_averaged(self):
        cells = [cell("lora", 0, train_loss=1.0), cell("lora", 1, status="diverged", train_loss=900.0)]
        found = summarise(cells, "train_loss")
        assert (found.mean, found.low, found.n, found.diverged) == (1.0, None, 1, 1)
        assert summarise(cells[1:], "train_loss").mean is None

    def test_unknown_and_infinite_values_are_no_values(self):
        cells = [cell("lora", 0, metrics={"loss": math.nan}), cell("lora", 1, metrics={"loss": 2.0}), cell("lora", 2)]
        assert summarise(cells, "loss").mean == 2.0
        assert summarise(cells, "bleu4").n == 0

    def test_equal_seeds(self):
        found = summarise([cell("base", seed, eval_loss=2.5) for seed in range(3)], "eval_loss")
        assert (found.low, found.mean, found.high) == (2.5, 2.5, 2.5)


class TestCompareArms:
    def test_by_items(self):
        generator = np.random.default_rng(0)
        cells = []
        for seed in range(4):
            cells.append(answered("adapter", seed, (generator.random(300) < 0.8).astype(float)))
            cells.append(answered("lora", seed, (generator.random(300) < 0.6).astype(float)))
        found = compare_arms(grid(*cells), "base", "task", "adapter", "lora", "strict_accuracy")
        assert found.difference == pytest.approx(found.first_mean - found.second_mean)
        assert found.low < 0.2 < found.high
        assert (found.n_seeds, found.n_items, found.better) == (4, 300, "first")
        assert found.p == found.p_holm < 0.05
        assert 0.01 < found.mde < 0.2
        assert str(found).startswith(f"+{100 * found.difference:.1f} points [")
        turned = compare_arms(grid(*cells), "base", "task", "lora", "adapter", "strict_accuracy")
        assert turned.better == "second"

    def test_losses_by_tokens(self):
        tokens = (3.0, 30.0, 10.0, 1.0)
        cells = [
            cell(
                arm, seed, metrics={"loss": loss},
                items={"loss": tuple(loss * n for n in tokens), "tokens": tokens},
            )
            for arm, losses in {"adapter": (1.0, 1.1, 1.05), "lora": (1.5, 1.62, 1.54)}.items()
            for seed, loss in enumerate(losses)
        ]  # fmt: skip
        found = compare_arms(grid(*cells), "base", "task", "adapter", "lora", "loss")
        assert found.difference == pytest.approx(np.mean([-0.5, -0.52, -0.49]))
        assert (found.n_items, found.better) == (4, "first")
        assert str(found).startswith("-0.5033 nats a token [")
        assert gain(found) == (-found.difference, -found.high, -found.low)
        assert not_worse(found, 0.01)

    def test_pairs_common_seeds_and_counts_the_rest(self):
        cells = [cell("adapter", seed, train_loss=1.0 + seed / 10) for seed in (0, 1, 2, 3)]
        cells += [cell("lora", seed, train_loss=1.3 + seed**2 / 50) for seed in (0, 1, 2)]
        cells += [cell("lora", 3, status="diverged", reason="not finite"), cell("lora", 7, train_loss=5.0)]
        found = compare_arms(grid(*cells), "base", "task", "adapter", "lora", "train_loss")
        assert (found.n_seeds, found.diverged, found.unpaired) == (3, 1, 1)
        assert found.second_mean == pytest.approx(np.mean([1.3, 1.32, 1.38]))
        assert found.p == pytest.approx(stats.ttest_rel([1.0, 1.1, 1.2], [1.3, 1.32, 1.38]).pvalue)

    def test_one_seed_of_losses_has_no_interval(self):
        cells = [cell("adapter", 0, eval_loss=1.0), cell("lora", 0, eval_loss=2.0)]
        found = compare_arms(grid(*cells), "base", "task", "adapter", "lora", "eval_loss")
        assert found.difference == -1.0
        assert found.low is found.high is found.p is found.mde is found.better is None
        assert not not_worse(found, 0.5)
        assert str(found) == "-1.0000 nats a token"

    def test_a_frozen_base_stands_against_every_seed(self):
        cells = [answered("adapter", seed, [1, 1, 1, 0, 1, seed % 2] * 20) for seed in (1, 2, 3)]
        cells += [answered("base", 0, [0, 1, 0, 0, 1, 0] * 20)]
        found = compare_arms(grid(*cells, base="base"), "base", "task", "adapter", "base", "strict_accuracy")
        assert (found.n_seeds, found.unpaired, found.better) == (3, 0, "first")
        assert found.second_mean == pytest.approx(1 / 3)

    def test_sweeps_do_not_count(self):
        cells = [cell(arm, seed, "sweep", eval_loss=1.0) for arm in ("adapter", "lora") for seed in (0, 1)]
        with pytest.raises(InputError, match="no finished seed with eval_loss in common"):
            compare_arms(grid(*cells), "base", "task", "adapter", "lora", "eval_loss")

    def test_different_items_are_refused(self):
        cells = [answered("adapter", 0, [1, 0, 1]), answered("lora", 0, [1, 0])]
        with pytest.raises(InputError, match=r"different items \(\[2, 3\]"):
            compare_arms(grid(*cells), "base", "task", "adapter", "lora", "strict_accuracy")

    def test_two_learning_rates_are_refused(self):
        one = cell("adapter", 0, eval_loss=1.0)
        cells = [one, replace(one, learning_rate=3e-3), cell("lora", 0, eval_loss=1.0)]
        with pytest.raises(InputError, match="adapter at base, task has two final cells"):
            compare_arms(grid(*cells), "base", "task", "adapter", "lora", "eval_loss")


class TestAllComparisons:
    def test_holm_is_over_the_arms_of_each_measure(self):
        generator = np.random.default_rng(2)
        kinds = {"lora-same-count": "matched", "no-circuit": "control", "branch-zero": "evaluation"}
        cells = [
            answered(
                arm, seed, (generator.random(200) < share).astype(float),
                train_loss=2 - share + generator.normal(0, 0.05),
            )
            for arm, share in {"adapter": 0.7, "lora": 0.66, "lora-same-count": 0.6, "no-circuit": 0.7,
                               "branch-zero": 0.5}.items()
            for seed in range(3)
        ]  # fmt: skip
        found = all_comparisons(grid(*cells, **kinds), "base", "task")
        deciding = [each for each in found if each.measure == "strict_accuracy"]
        assert [each.second for each in deciding] == ["lora", *kinds]
        assert [each.p_holm for each in deciding] == pytest.approx(holm([each.p for each in deciding]))
        assert [each.better is not None for each in deciding] == [each.p_holm < 0.05 for each in deciding]
        trained = [each.second for each in found if each.measure == "train_loss"]
        assert trained == ["lora", "lora-same-count", "no-circuit"]  # a branch switched off trains nothing
        assert not [each for each in found if each.measure == "eval_loss"]

    def test_of_a_partial_grid(self):
        assert all_comparisons(grid(), "base", "task") == []
        assert all_comparisons(grid(cell("lora", 0, eval_loss=1.0)), "base", "task") == []
        lost = grid(cell("adapter", 0, eval_loss=1.0), cell("lora", 0, status="diverged"))
        assert all_comparisons(lost, "base", "task") == []

    def test_no_adapter_no_comparison(self):
        results = GridResults("", {"lora": ArmInfo("lora", "LoRA", "reference")}, (cell("lora", 0, eval_loss=1.0),))
        assert all_comparisons(results, "base", "task") == []


@pytest.mark.parametrize("module", ["scipy.stats", "statsmodels.stats.power"])
def test_missing_packages_are_named(monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install qpeft\[compare\]"):
        minimum_detectable_effect(0.1, 12.3) if "statsmodels" in module else over_seeds(np.array([1.0, 2.0]))
