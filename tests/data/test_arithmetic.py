import hashlib
import re
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.data import generate, generate_examples
from qpeft.data.arithmetic import LARGEST_RESULT, capacity
from qpeft.data.stories import NAMES, TEMPLATES
from qpeft.errors import InputError

SPLITS = ("train", "validation", "test")


def calculate(expression):
    """An evaluator of its own: one operation on two whole numbers."""
    left, operation, right = re.fullmatch(r"(\d+)([-+*/])(\d+)", expression).groups()
    left, right = Fraction(left), Fraction(right)
    return {"+": left + right, "-": left - right, "*": left * right, "/": left / right if right else None}[operation]


def check(problem):
    lines = problem.solution.split("\n")
    assert len(lines) == len(problem.steps) + 1
    known = {Fraction(number) for number in problem.numbers}
    for line, (expression, result) in zip(lines, problem.steps, strict=False):
        assert line == f"{expression}={result}"
        assert calculate(expression) == result
        assert 2 <= result <= LARGEST_RESULT
        for number in re.findall(r"\d+", expression):
            assert Fraction(number) in known or number in ("2", "7", "12")  # twice and half, a week, a dozen
        known.add(Fraction(result))
    assert lines[-1] == f"#### {problem.answer}"
    assert problem.answer == problem.steps[-1][1]
    assert Counter(re.findall(r"\d+", problem.question)) == Counter(map(str, problem.numbers))
    assert min(problem.numbers) >= 2  # so that every noun is a plural
    assert problem.question.endswith("?")
    assert "{" not in problem.question


@pytest.mark.parametrize("split", SPLITS)
def test_every_solution_is_right(split):
    for problem in generate(3000, seed=11, split=split):
        check(problem)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(), split=st.sampled_from(SPLITS), max_steps=st.integers(1, 3))
def test_solutions_are_right_for_any_seed(seed, split, max_steps):
    for problem in generate(20, seed, split, max_steps):
        check(problem)
        assert len(problem.steps) <= max_steps


def test_splits_share_no_pair_whatever_the_seeds():
    pairs = {
        split: {(p.template, p.numbers) for seed in range(5) for p in generate(1500, seed, split)} for split in SPLITS
    }
    assert not pairs["train"] & pairs["validation"]
    assert not pairs["train"] & pairs["test"]
    assert not pairs["validation"] & pairs["test"]


def test_some_stories_are_in_the_test_set_alone():
    stories = {split: Counter(p.template for p in generate(3000, 0, split)) for split in SPLITS}
    unseen = {template.id for template in TEMPLATES if template.test_only}
    assert 0.15 <= len(unseen) / len(TEMPLATES) <= 0.2
    assert not unseen & (stories["train"].keys() | stories["validation"].keys())
    assert set(stories["test"]) == {template.id for template in TEMPLATES}
    for problem in generate(500, 3, "test"):
        assert problem.unseen_template == (problem.template in unseen)


def test_pairs_within_a_split_are_unique_down_to_the_last():
    n = capacity("validation", max_steps=1)
    problems = generate(n, 4, "validation", max_steps=1)
    assert len({(p.template, p.numbers) for p in problems}) == n
    with pytest.raises(InputError, match=rf"holds {n} different problems .*asked for {n + 1}"):
        generate(n + 1, 4, "validation", max_steps=1)


def test_same_seed_same_problems_on_every_platform():
    text = "\n".join(p.question + p.solution for split in SPLITS for p in generate(40, 7, split))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "283dcf3474a290c9"
    assert generate(40, 7) != generate(40, 8)


def test_a_shorter_set_begins_a_longer_one():
    assert generate(60, 5, "test")[:25] == generate(25, 5, "test")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "at least 0"),
        ({"n": 1, "split": "dev"}, "split must be one of"),
        ({"n": 1, "max_steps": 4}, "between 1 and 3"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        generate(seed=0, **arguments)


def test_templates_are_many_and_well_formed():
    assert len(TEMPLATES) >= 40
    assert len({template.id for template in TEMPLATES}) == len(TEMPLATES)
    for template in TEMPLATES:
        placeholders = set(re.findall(r"{(\w+)}", template.story))
        assert placeholders - {"name", "other"} == set(template.ranges) | set(template.words)
        assert 1 <= len(template.steps) <= 3
        used = "".join(template.steps)
        assert all(letter in used for letter in template.ranges)
        assert all(used.count(result) >= 1 for result in "xyz"[: len(template.steps) - 1])


def test_two_people_are_two():
    for problem in generate(1000, 2):
        people = [word for word in re.findall(r"[A-Z]\w+", problem.question) if word in NAMES]
        if "{other}" in next(t.story for t in TEMPLATES if t.id == problem.template):
            assert len(set(people)) == 2


def test_example_keeps_the_problem():
    example = generate_examples(1, 0)[0]
    problem = example.meta["problem"]
    assert (example.question, example.target, example.answer) == (
        problem.question,
        problem.solution,
        str(problem.answer),
    )


def test_short_solutions_can_be_left_out():
    problems = generate(300, 0, "train", max_steps=3, largest=40, min_steps=2)
    assert {len(problem.steps) for problem in problems} == {2, 3}
    assert capacity("test", 3, 40, min_steps=2) == capacity("test", 3, 40) - capacity("test", 1, 40)
    with pytest.raises(InputError, match=r"min_steps must be between 1 and max_steps = 2 \(got 3\)"):
        generate(1, 0, max_steps=2, min_steps=3)
