"""Arithmetic word problems in the manner of GSM8K, made from a seed: a story, one equation a line, `#### answer`.

A problem is a template (a story) with numbers put in. The pair decides by its hash, and by nothing else, on which
side of the split it lies, so train, validation and test problems of *any* seeds never share a pair; some stories
belong to the test set alone and show whether a method learned more than the stories. Reference for the form:
Cobbe et al., "Training Verifiers to Solve Math Word Problems", 2021.
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

from qpeft.data.examples import Example, question_and_answer
from qpeft.data.stories import NAMES, TEMPLATES, Template
from qpeft.errors import InputError

Split = Literal["train", "validation", "test"]

LARGEST_RESULT = 200

# Hundredths of the (template, numbers) pairs: [0, 10) is validation, [10, 30) test, the rest train.
_VALIDATION_END = 10
_TEST_END = 30


@dataclass(frozen=True)
class Problem:
    """One word problem with its worked solution.

    Attributes:
        question: The story, ending in a question.
        steps: For each step its expression and result, such as `("7*8", 56)`.
        solution: One `expression=result` a line without spaces, then `#### answer`.
        answer: The last step's result.
        template: The story's name.
        numbers: The numbers put into the story, in the order of its letters.
        unseen_template: Whether no training or validation problem has this story.
    """

    question: str
    steps: tuple[tuple[str, int], ...]
    solution: str
    answer: int
    template: str
    numbers: tuple[int, ...]
    unseen_template: bool

    def to_example(self) -> Example:
        """The problem as a conversation; `meta["problem"]` keeps the problem for strict scoring."""
        return question_and_answer(self.question, self.solution, str(self.answer), problem=self)


def generate(
    n: int, seed: int, split: Split = "train", max_steps: int = 3, largest: int = LARGEST_RESULT, min_steps: int = 1
) -> list[Problem]:
    """Makes `n` different problems of one split.

    The same arguments give the same problems on every platform. Stories are drawn evenly; a story that has no
    unused numbers left is no longer drawn.

    Args:
        n: How many problems.
        seed: Chooses among a split's problems; never moves a problem to another split.
        split: `"train"`, `"validation"` or `"test"`; only the last holds the stories kept for testing.
        max_steps: Largest number of steps a solution may have, 1 to 3.
        largest: Largest number that may occur in a problem, in its story or its solution.
        min_steps: Smallest number of steps of a solution.

    Raises:
        InputError: If `n` is negative or more than the split holds, or another argument is out of range.
    """
    if n < 0:
        raise InputError(f"the number of problems must be at least 0 (got {n}).")
    if split not in get_args(Split):
        raise InputError(f"split must be one of {', '.join(get_args(Split))} (got {split!r}).")
    if not 1 <= max_steps <= 3:
        raise InputError(f"max_steps must be between 1 and 3 (got {max_steps}).")
    if not 1 <= min_steps <= max_steps:
        raise InputError(f"min_steps must be between 1 and max_steps = {max_steps} (got {min_steps}).")
    available = capacity(split, max_steps, largest, min_steps)
    if n > available:
        raise InputError(
            f"the {split} split holds {available} different problems of {min_steps} to {max_steps} steps with numbers "
            f"up to {largest} (asked for {n}): ask for fewer or allow larger numbers."
        )
    draw = random.Random(f"{seed}/{split}")
    templates = [template for template in _templates(min_steps, max_steps) if _pairs(template, split, largest)]
    unused: dict[str, list[tuple[int, ...]]] = {}
    problems: list[Problem] = []
    while len(problems) < n:
        template = draw.choice(templates)
        if template.id not in unused:
            unused[template.id] = list(_pairs(template, split, largest))
        pairs = unused[template.id]
        place = draw.randrange(len(pairs))
        pairs[place], pairs[-1] = pairs[-1], pairs[place]
        problems.append(_tell(template, pairs.pop(), draw))
        if not pairs:
            templates.remove(template)
    return problems


def generate_examples(
    n: int, seed: int, split: Split = "train", max_steps: int = 3, largest: int = LARGEST_RESULT, min_steps: int = 1
) -> list[Example]:
    """As `generate`, each problem turned into a conversation."""
    return [problem.to_example() for problem in generate(n, seed, split, max_steps, largest, min_steps)]


def capacity(split: Split, max_steps: int = 3, largest: int = LARGEST_RESULT, min_steps: int = 1) -> int:
    """How many different problems a split holds."""
    return sum(len(_pairs(template, split, largest)) for template in _templates(min_steps, max_steps))


def _templates(min_steps: int, max_steps: int) -> list[Template]:
    return [template for template in TEMPLATES if min_steps <= len(template.steps) <= max_steps]


@functools.cache
def _pairs(template: Template, split: Split, largest: int) -> tuple[tuple[int, ...], ...]:
    """All number tuples of a template that belong to the split and make a sensible problem without larger numbers."""
    return tuple(numbers for numbers, side, highest in _classified(template) if side == split and highest <= largest)


@functools.cache
def _classified(template: Template) -> tuple[tuple[tuple[int, ...], Split, int], ...]:
    """Every sensible number tuple with its side of the split and the largest number it leads to."""
    return tuple(
        (numbers, _side(template, numbers), max(*numbers, *(result for _, result in steps)))
        for numbers in _all_numbers(template)
        if (steps := _solve(template, numbers))
    )


def _all_numbers(template: Template) -> Iterator[tuple[int, ...]]:
    return itertools.product(*(range(low, high + 1) for low, high in template.ranges.values()))


def _side(template: Template, numbers: tuple[int, ...]) -> Split:
    if template.test_only:
        return "test"
    key = f"{template.id}:{','.join(map(str, numbers))}".encode()
    hundredth = int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big") % 100
    if hundredth < _VALIDATION_END:
        return "validation"
    return "test" if hundredth < _TEST_END else "train"


def _solve(template: Template, numbers: tuple[int, ...]) -> tuple[tuple[str, int], ...] | None:
    """The worked steps, or `None` where a step leaves the small natural numbers from two on."""
    values = dict(zip(template.ranges, numbers, strict=True))
    steps = []
    for result_name, step in zip("xyz", template.steps, strict=False):
        left_name, operation, right_name = step[0], step[1], step[2:]
        left = values[left_name]
        right = int(right_name) if right_name.isdigit() else values[right_name]
        if operation == "+":
            result = left + right
        elif operation == "-":
            result = left - right
        elif operation == "*":
            result = left * right
        else:
            result, remainder = divmod(left, right)
            if remainder:
                return None
        if not 2 <= result <= LARGEST_RESULT:
            return None
        values[result_name] = result
        steps.append((f"{left}{operation}{right}", result))
    return tuple(steps)


def _tell(template: Template, numbers: tuple[int, ...], draw: random.Random) -> Problem:
    name, other = draw.sample(NAMES, 2)
    words = {key: draw.choice(choices) for key, choices in template.words.items()}
    values = dict(zip(template.ranges, numbers, strict=True))
    steps = _solve(template, numbers)
    assert steps is not None  # only solvable pairs are drawn
    answer = steps[-1][1]
    lines = [f"{expression}={result}" for expression, result in steps]
    return Problem(
        question=template.story.format(name=name, other=other, **words, **values),
        steps=steps,
        solution="\n".join([*lines, f"#### {answer}"]),
        answer=answer,
        template=template.id,
        numbers=numbers,
        unseen_template=template.test_only,
    )
