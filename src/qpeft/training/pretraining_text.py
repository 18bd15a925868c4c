"""What the small Llama reads: solved word problems, stories without their solution, bare equations; its tokenizer.

Three kinds of text, all from the train split of :mod:`qpeft.data.arithmetic`, so that no problem of a validation or
test set, and no story kept for testing, is ever seen:

    Anna has 12 shells and gets 5 more. How many shells does Anna have now?\\n12+5=17\\n#### 17{end}
    A farm has 9 hens and 4 cows. 3 animals are sold. How many are left?\\n
    7*8=56\\n31-9=22\\n40/5=8{end}

The tokenizer is a byte-level BPE that writes every digit as a token of its own, as SmolLM2's does.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qpeft.data.arithmetic import capacity, generate

END = "<|end|>"

#: most problems of one kind; more would only cost the time to make them
MOST_PROBLEMS = 10_000

#: equations in one text
EQUATIONS = 5


@dataclass(frozen=True)
class Texts:
    """The three kinds of text.

    Attributes:
        solved: Problems with their solution.
        stories: Questions of longer problems, without it.
        equations: Bare equations, one a text; the reader joins some.
    """

    solved: list[str]
    stories: list[str]
    equations: list[str]

    def draw(self, chance: random.Random, story_share: float, equation_share: float) -> Iterator[str]:
        """Texts without end: each kind with its share, the solved problems in rounds, each once a round."""
        waiting: list[str] = []
        while True:
            kind = chance.random()
            if kind < story_share and self.stories:
                yield chance.choice(self.stories)
            elif kind >= 1 - equation_share and self.equations:
                yield "\n".join(chance.choices(self.equations, k=EQUATIONS)) + END
            else:
                if not waiting:
                    waiting = chance.sample(self.solved, len(self.solved))
                yield waiting.pop()


def make_texts(seed: int, max_steps: int, story_steps: int, largest: int) -> Texts:
    """Everything there is to read.

    Args:
        seed: Chooses among the problems of the train split.
        max_steps: Longest solution, in steps.
        story_steps: Longest problems whose question is read; 0 for none.
        largest: Largest number in a problem, its solution, or an equation.
    """

    def problems(steps: int) -> Any:
        return generate(min(MOST_PROBLEMS, capacity("train", steps, largest)), seed, "train", steps, largest)

    solved = [f"{problem.question}\n{problem.solution}{END}" for problem in problems(max_steps)]
    stories = [f"{problem.question}\n" for problem in problems(story_steps)] if story_steps else []
    return Texts(solved, stories, list(_equations(largest)))


def _equations(largest: int) -> Iterator[str]:
    """All equations of the small natural numbers from two on."""
    for a in range(2, largest + 1):
        for b in range(2, largest + 1):
            if a + b <= largest:
                yield f"{a}+{b}={a + b}"
            if a * b <= largest:
                yield f"{a}*{b}={a * b}"
            if a - b >= 2:
                yield f"{a}-{b}={a - b}"
            if a % b == 0 and a // b >= 2:
                yield f"{a}/{b}={a // b}"


def train_tokenizer(texts: Texts, vocabulary: int, window: int) -> Any:
    """A byte-level BPE of at most `vocabulary` tokens, with single digits and one special token, which ends and pads.

    Returns:
        The `PreTrainedTokenizerFast`, without a chat template.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*texts.solved, *texts.stories], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=END, model_max_length=window)
