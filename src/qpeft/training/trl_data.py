"""From a `dataset_name` to the rows TRL's trainers read.

A data set is `arithmetic` (problems made from a seed), a JSON-lines file, or whatever `datasets.load_dataset` finds
under the name. Rows that are already in one of TRL's forms go through as they stand; rows in a layout of
`qpeft.data.load` (GSM8K, MAWPS, question and answer, ...) become

    sft    prompt, completion (or messages, where a conversation has several answers)
    grpo   prompt, answer                               the final answer, for the reward
    dpo    prompt, chosen, rejected                     made for arithmetic alone: the rejected answer is miscalculated

Turns are messages where the tokenizer has a chat template, else plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, load_dataset
from transformers import PreTrainedTokenizerBase
from trl import DatasetMixtureConfig, ScriptArguments, get_dataset

from qpeft.data import Example, Problem, generate, load
from qpeft.data.arithmetic import LARGEST_RESULT
from qpeft.data.files import records
from qpeft.errors import InputError
from qpeft.training.keys import nearest

Kind = Literal["sft", "dpo", "grpo"]
Row = dict[str, Any]

ARITHMETIC = "arithmetic"
#: held-out problems for `eval_strategy`
VALIDATION_PROBLEMS = 200

#: columns by which TRL knows a set of its own; one group has to be there whole
_FORMS: dict[Kind, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("text",), ("conversations",), ("input_ids",)),
    "dpo": (("chosen", "rejected"),),
    "grpo": (("prompt",),),
}


def load_sets(
    kind: Kind,
    script: ScriptArguments,
    mixture: DatasetMixtureConfig,
    tokenizer: PreTrainedTokenizerBase,
    evaluated: bool,
    problems: int = 2000,
    steps: int = 3,
    largest: int = LARGEST_RESULT,
    seed: int = 0,
    system: str | None = None,
) -> tuple[Any, Any | None]:
    """The training set, and the set to evaluate on if one is asked for.

    Args:
        kind: Which trainer reads the rows.
        script: TRL's `dataset_name`, splits and so on.
        mixture: TRL's `datasets`, which take the place of `dataset_name`.
        tokenizer: Says whether turns are messages or plain text.
        evaluated: Whether a test split is needed.
        problems: How many problems to make, for `arithmetic`.
        steps: Longest solution of them.
        largest: Largest number in them.
        seed: Of the choice of problems.
        system: System message put before prompts made here.

    Raises:
        InputError: No data set is named, it cannot be read, has no such split, or its columns do not serve.
    """
    if mixture.datasets:
        sets = _explained(lambda: get_dataset(mixture), "datasets")
        return _split(sets, script.dataset_train_split, kind), (
            _split(sets, script.dataset_test_split, kind) if evaluated else None
        )
    name = script.dataset_name
    if not name:
        raise InputError("no data set is named: give --dataset_name arithmetic, a JSON-lines file, or a hub name")
    chat = bool(tokenizer.chat_template)
    if name == ARITHMETIC:
        train = generate(problems, seed, "train", steps, largest)
        held_out = (
            generate(min(VALIDATION_PROBLEMS, problems), seed, "validation", steps, largest) if evaluated else []
        )
        return _problem_set(train, kind, chat, system), _problem_set(held_out, kind, chat, system) or None
    if _is_file(name):
        if evaluated:
            raise InputError(
                f"{name} is one file without a test split: set eval_strategy to no, or list files under datasets with "
                "test_split_size"
            )
        return _file_set(Path(name).expanduser(), kind, chat, system), None
    splits = [script.dataset_train_split, *([script.dataset_test_split] if evaluated else [])]
    sets = _explained(
        lambda: load_dataset(name, name=script.dataset_config, streaming=script.dataset_streaming), f"data set {name}"
    )
    return _pair([_hub_set(sets, name, split, script, kind, chat, system) for split in splits])


def _pair(sets: list[Any]) -> tuple[Any, Any | None]:
    return sets[0], sets[1] if len(sets) > 1 else None


def _is_file(name: str) -> bool:
    path = Path(name).expanduser()
    return path.is_file() or path.suffix in (".jsonl", ".json", ".ndjson") or path.is_absolute()


def _file_set(path: Path, kind: Kind, chat: bool, system: str | None) -> Dataset:
    rows = [dict(record) for record, _ in records(path)]
    if not rows:
        raise InputError(f"{path} holds no example: give a file with one JSON object a line")
    if _serves(kind, rows[0]):
        try:
            return Dataset.from_list(rows)
        except Exception as error:  # pyarrow has a dozen kinds
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"the rows of {path} do not form one table ({reason}): give all the same fields"
            ) from error
    return _example_set(load(path), kind, chat, system, str(path), rows[0])


def _hub_set(
    sets: Any, name: str, split: str, script: ScriptArguments, kind: Kind, chat: bool, system: str | None
) -> Any:
    found = _split(sets, split)
    columns: Any = found.column_names or next(iter(found), {})
    if _serves(kind, columns):
        return found
    if script.dataset_streaming:
        raise _unfit(kind, name, columns)
    source = f"{name}:{script.dataset_config}" if script.dataset_config else name
    return _example_set(load(source, split=split), kind, chat, system, name, columns)


def _split(sets: Any, split: str, kind: Kind | None = None) -> Any:
    if split not in sets:
        raise InputError(f"the data set has no split {split}{nearest(split, sets)}; it has: {', '.join(sets)}")
    if kind is not None and not _serves(kind, sets[split].column_names or ()):
        raise _unfit(kind, "the mixture of datasets", sets[split].column_names or ())
    return sets[split]


def _serves(kind: Kind, columns: Any) -> bool:
    if kind == "sft" and "text" in columns and "label" in columns:  # a classifier's set: the label is the answer
        return False
    return any(all(column in columns for column in form) for form in _FORMS[kind])


def _unfit(kind: Kind, source: str, columns: Any) -> InputError:
    wanted = " or ".join(" and ".join(form) for form in _FORMS[kind])
    return InputError(f"{source} has the columns {', '.join(columns) or 'none'}, and {kind} needs {wanted}")


def _example_set(
    examples: Sequence[Example], kind: Kind, chat: bool, system: str | None, source: str, columns: Any
) -> Dataset:
    if kind == "dpo":
        raise _unfit(kind, source, columns)
    if kind == "grpo":
        rows = [
            {"prompt": _asked(example, chat, system), "answer": example.answer or example.target}
            for example in examples
        ]
    elif chat and any(sum(turn["role"] == "assistant" for turn in example.messages) > 1 for example in examples):
        rows = [{"messages": [dict(turn) for turn in _with_system(example.messages, system)]} for example in examples]
    else:
        rows = [
            {"prompt": _asked(example, chat, system), "completion": _said(example.target, chat)}
            for example in examples
        ]
    return Dataset.from_list(rows)


def _problem_set(problems: Sequence[Problem], kind: Kind, chat: bool, system: str | None) -> Dataset | None:
    if not problems:
        return None
    if kind != "dpo":
        return _example_set([problem.to_example() for problem in problems], kind, chat, system, ARITHMETIC, ())
    rows = [
        {
            "prompt": _asked(problem.to_example(), chat, system),
            "chosen": _said(problem.solution, chat),
            "rejected": _said(miscalculated(problem), chat),
        }
        for problem in problems
    ]
    return Dataset.from_list(rows)


def miscalculated(problem: Problem) -> str:
    """The solution of a problem with a wrong last result, off by one to nine: the text a preference is against."""
    *steps, (expression, answer) = problem.steps
    wrong = answer + 1 + sum(problem.numbers) % 9
    lines = [f"{before}={result}" for before, result in steps] + [f"{expression}={wrong}", f"#### {wrong}"]
    return "\n".join(lines)


def _asked(example: Example, chat: bool, system: str | None) -> Any:
    messages = _with_system(example.prompt, system)
    return messages if chat else "\n".join(message["content"] for message in messages if message["content"]) + "\n"


def _said(text: str, chat: bool) -> Any:
    return [{"role": "assistant", "content": text}] if chat else text


def _with_system(messages: Sequence[Mapping[str, str]], system: str | None) -> list[dict[str, str]]:
    turns = [dict(message) for message in messages]
    if system is None or turns[0]["role"] == "system":
        return turns
    return [{"role": "system", "content": system}, *turns]


def _explained(read: Any, what: str) -> DatasetDict:
    try:
        return read()
    except Exception as error:  # the hub's client and the readers of files raise a dozen unrelated kinds
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[0].split())[:200].rstrip(".")
        raise InputError(f"the {what} cannot be had ({reason}): check the name, or give a JSON-lines file") from error
