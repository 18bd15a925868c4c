"""Rewards for reinforcement learning: 1 for a right final answer, 0 for any other text.

A verifiable reward needs no reward model: the answer is read off the text (`answer_correct`) and compared with the
known one, as in GRPO (Shao et al., arXiv 2402.03300). With such a reward adapters of very few parameters are known to
learn (TinyLoRA, arXiv 2602.04118), where supervised training needs many more.

A reward follows TRL's convention: a function of `completions` and of the data set's columns, each a list with one
entry a completion, that returns one number a completion.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

from qpeft.errors import InputError
from qpeft.evaluation.answers import answer_correct, extract_answer

Reward = Callable[..., list[float]]
#: a completion: text, or the assistant's messages
Completion = str | Sequence[dict[str, Any]]


def exact_answer(completions: Sequence[Completion], answer: Sequence[str | float], **_: Any) -> list[float]:
    """1 where the final number of the completion equals that of `answer`, else 0.

    Args:
        completions: One text, or list of messages, each.
        answer: The right answer of each: a number, or a text whose final number counts (`"... #### 18"`).

    Raises:
        InputError: An answer holds no number, so that no completion could be right.

    Example:
        >>> exact_answer(["6*7=42\\n#### 42", "I do not know."], answer=["42", "42"])
        [1.0, 0.0]
    """
    return [float(answer_correct(_text(text), _gold(gold))) for text, gold in zip(completions, answer, strict=True)]


#: rewards of this package, by name
REWARDS: dict[str, Reward] = {"exact_answer": exact_answer}


def find_rewards(names: Sequence[str]) -> list[Callable[..., Any]]:
    """The reward functions behind names: one of ours, one of TRL's, or the dotted path of a function.

    Raises:
        InputError: There is no such reward, or its module cannot be imported.
    """
    return [_guarded(name, _find(name)) for name in names]


def _find(name: str) -> Callable[..., Any]:
    if name in REWARDS:
        return REWARDS[name]
    from trl import rewards

    exported: list[str] = getattr(rewards, "__all__")  # noqa: B009 - its lazy module tells type checkers nothing
    if name == "get_soft_overlong_punishment":  # a maker of rewards; these are the values of TRL's own command
        return rewards.get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)
    known = [other for other in exported if other.endswith("_reward")]
    if name in known:
        return getattr(rewards, name)
    module, dot, function = name.rpartition(".")
    if not dot:
        every = [*REWARDS, *known, "get_soft_overlong_punishment"]
        near = get_close_matches(name, every, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are: {', '.join(every)}, or a dotted path"
        raise InputError(f"there is no reward {name}{hint}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever a user's module does on import
        reason = " ".join(str(error).split())
        raise InputError(f"the reward {name} cannot be imported ({reason}): check the path and its module") from error
    if not callable(found):
        raise InputError(f"the reward {name} is {type(found).__name__}, not a function: name a function")
    return found


def _guarded(name: str, reward: Callable[..., Any]) -> Callable[..., Any]:
    """A reward that fails in one sentence; asynchronous ones are awaited by TRL and stay as they are."""
    if inspect.iscoroutinefunction(reward):
        return reward

    @functools.wraps(reward)
    def guarded(*args: Any, **columns: Any) -> Any:
        try:
            return reward(*args, **columns)
        except InputError:
            raise
        except Exception as error:  # whatever a user's function does
            reason = " ".join(str(error).split()) or type(error).__name__
            raise InputError(f"the reward {name} failed ({reason}): mend it, or leave it out") from error

    return guarded


def _text(completion: Completion) -> str:
    return completion if isinstance(completion, str) else "\n".join(str(turn["content"]) for turn in completion)


def _gold(answer: str | float) -> Any:
    gold = extract_answer(str(answer))
    if gold is None:
        raise InputError(f"the answer {answer!r} holds no number: exact_answer needs a column answer with numbers")
    return gold
