"""Reading data sets: JSON-lines files by path or sets of the hub by name, each line turned into a conversation.

The layouts of the sets used here are known by their fields; any other file is read by naming its fields.

    layout        fields of a line                              conversation
    messages      messages                                      as it stands, from its first to its last assistant turn
    gsm8k         question, answer (holding "####")             worked solution; the number after "####" as the answer
    mawps         question, equation_prefix, answer             the prefix equation ("- + 35 10 10"), which is executed
    classified    text, label                                   the text, answered by its label
    pair          question + answer, prompt + completion, ...   the one answered by the other
"""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from random import Random
from typing import Any, Literal, get_args

from qpeft.data.examples import Example, question_and_answer
from qpeft.errors import InputError

logger = logging.getLogger(__name__)

Layout = Literal["auto", "messages", "gsm8k", "mawps", "classified", "pair"]

_PAIRS = (("question", "answer"), ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"),
          ("input", "output"))  # fmt: skip
_CALCULATOR = re.compile(r"<<[^<>]*>>")

# A record of a data set with the place it was read from, such as "train.jsonl, line 7".
Record = tuple[Mapping[str, Any], str]


def load(
    source: str | Path,
    layout: Layout = "auto",
    split: str = "train",
    max_samples: int | None = None,
    prompt_field: str | None = None,
    answer_field: str | None = None,
    keep_calculator_marks: bool = True,
) -> list[Example]:
    """Reads a data set.

    Args:
        source: A JSON-lines file, or a name on the hub (`"openai/gsm8k"`, with a configuration `"openai/gsm8k:main"`).
        layout: How a line is read (see the module's table); `"auto"` looks at the fields of each line.
        split: The split to take of a hub set; a file is always read whole.
        max_samples: Read no more than the first so many.
        prompt_field: Field with the question, for layout `pair`; given together with `answer_field`.
        answer_field: Field with the answer.
        keep_calculator_marks: Whether GSM8K's `<<48/2=24>>` stay in the solutions.

    Returns:
        The conversations in the order of the file.

    Raises:
        InputError: If the source does not exist or is empty, a line is not JSON, or a field is missing or of a wrong
            type; the message names the file, the line and the field.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout must be one of {', '.join(get_args(Layout))} (got {layout!r}).")
    if (prompt_field is None) != (answer_field is None):
        raise InputError("prompt_field and answer_field have to be given together: name both or neither.")
    if max_samples is not None and max_samples < 1:
        raise InputError(f"max_samples must be at least 1 (got {max_samples}).")
    fields = (prompt_field, answer_field) if prompt_field is not None and answer_field is not None else None
    examples: list[Example] = []
    for record, place in records(source, split):
        examples.append(_example(record, place, layout, fields, keep_calculator_marks))
        if len(examples) == max_samples:
            break
    if not examples:
        raise InputError(f"{source} holds no example: give a file with one JSON object a line.")
    logger.info("read %d examples from %s", len(examples), source)
    return examples


def split_examples(
    examples: Sequence[Example], seed: int, validation: float = 0.1, test: float = 0.1
) -> tuple[list[Example], list[Example], list[Example]]:
    """Splits into train, validation and test; examples with the same question stay on one side.

    Shares are of the different questions. The same examples and seed give the same split on every platform.

    Raises:
        InputError: If a share is outside [0, 1), both leave nothing to train on, or there are too few questions to
            give every side with a share at least one.
    """
    if not (0 <= validation < 1 and 0 <= test < 1 and validation + test < 1):
        raise InputError(
            f"the shares of validation and test must be at least 0 and together below 1 (got {validation} and {test})."
        )
    questions = list(dict.fromkeys(_normalised(example.question) for example in examples))
    Random(seed).shuffle(questions)
    n_validation, n_test = (max(1, round(share * len(questions))) if share else 0 for share in (validation, test))
    if len(questions) <= n_validation + n_test:
        raise InputError(
            f"{len(questions)} different questions are too few to split into train, validation and test: "
            "give more examples or set a share to 0."
        )
    side = dict.fromkeys(questions, 0)
    side.update(dict.fromkeys(questions[:n_validation], 1))
    side.update(dict.fromkeys(questions[n_validation : n_validation + n_test], 2))
    parts: tuple[list[Example], list[Example], list[Example]] = ([], [], [])
    for example in examples:
        parts[side[_normalised(example.question)]].append(example)
    return parts


def _normalised(question: str) -> str:
    return " ".join(question.lower().split())


def records(source: str | Path, split: str = "train") -> Iterator[Record]:
    """The records of a JSON-lines file, or of a set of the hub, as they stand there, each with its place.

    Raises:
        InputError: If the source does not exist or a line is not a JSON object.
    """
    path = Path(source).expanduser()
    if path.is_file():
        yield from _file_records(path)
    elif path.is_dir():
        names = ", ".join(sorted(found.name for found in path.glob("*.json*"))) or "none"
        raise InputError(f"{path} is a folder: name one of its files (JSON-lines files there: {names}).")
    elif path.suffix in (".jsonl", ".json", ".ndjson") or path.is_absolute() or str(source).startswith((".", "~")):
        raise InputError(_missing_file(path))
    else:
        yield from _hub_records(str(source), split)


def _missing_file(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f"{path} does not exist, nor does its folder {folder}: check the path."
    near = get_close_matches(path.name, [found.name for found in folder.iterdir()], n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else "check the path."
    return f"{path} does not exist: {hint}"


def _file_records(path: Path) -> Iterator[Record]:
    try:
        with path.open("rb") as lines:
            for number, raw in enumerate(lines, start=1):
                place = f"{path}, line {number}"
                try:
                    # A file written on Windows may begin with a byte-order mark.
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{place} is not UTF-8 text (byte {raw[error.start]:#04x} at {error.start}): "
                        "convert the file to UTF-8."
                    ) from error
                if not text:
                    continue
                try:
                    record = json.loads(text)
                except (json.JSONDecodeError, RecursionError) as error:
                    reason = (
                        f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                    )
                    raise InputError(f"{place} is not valid JSON ({reason}): one JSON object a line.") from error
                if not isinstance(record, dict):
                    raise InputError(f"{place} holds {type(record).__name__}, expected one JSON object a line.")
                yield record, place
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error


def _hub_records(name: str, split: str) -> Iterator[Record]:
    from datasets import load_dataset

    repository, _, configuration = name.partition(":")
    try:
        rows = load_dataset(repository, configuration or None, split=split)
    except Exception as error:  # the hub's client raises a dozen unrelated kinds
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{name} is neither a file here nor a data set that can be had from the hub (split {split!r}: {reason}): "
            "check the name, or give the path of a JSON-lines file."
        ) from error
    for number, row in enumerate(rows, start=1):
        yield row, f"{name} ({split}), row {number}"


def _example(
    record: Mapping[str, Any], place: str, layout: Layout, fields: tuple[str, str] | None, keep_marks: bool
) -> Example:
    if fields is not None:
        return _pair(record, place, fields)
    if layout == "auto":
        layout = _recognise(record, place)
    if layout == "messages":
        return _dialogue(record, place)
    if layout == "gsm8k":
        question, solution = _text(record, "question", place), _text(record, "answer", place)
        _, mark, answer = solution.rpartition("####")
        if not mark:
            raise InputError(f"{place}: field 'answer' has no '#### ' before the final number; use layout='pair'.")
        if not keep_marks:
            solution = _CALCULATOR.sub("", solution)
        return question_and_answer(question, solution, answer.strip(), place=place)
    if layout == "mawps":
        equation = _text(record, "equation_prefix", place)
        answer = _number(record, "answer", place)
        return question_and_answer(_text(record, "question", place), equation, answer, place=place, equation=equation)
    if layout == "classified":
        label = str(_field(record, "label", place))
        return question_and_answer(_text(record, "text", place), label, label, place=place)
    # The pair with the most of its fields here; where one is missing, the message names it.
    pair = max(_PAIRS, key=lambda names: sum(name in record for name in names))
    if not any(name in record for name in pair):
        raise _unrecognised(record, place)
    return _pair(record, place, pair)


def _recognise(record: Mapping[str, Any], place: str) -> Layout:
    if "messages" in record:
        return "messages"
    if "equation_prefix" in record:
        return "mawps"
    if "question" in record and "####" in str(record.get("answer", "")):
        return "gsm8k"
    if "text" in record and "label" in record:
        return "classified"
    if any(prompt in record or answer in record for prompt, answer in _PAIRS):
        return "pair"
    raise _unrecognised(record, place)


def _pair(record: Mapping[str, Any], place: str, fields: tuple[str, str]) -> Example:
    return question_and_answer(_text(record, fields[0], place), _text(record, fields[1], place), place=place)


def _dialogue(record: Mapping[str, Any], place: str) -> Example:
    messages = _field(record, "messages", place)
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InputError(f"{place}: field 'messages' is {type(messages).__name__}, expected a list of turns.")
    # What a person says after the last answer cannot be learned from.
    turns = list(messages)
    while turns and isinstance(turns[-1], Mapping) and turns[-1].get("role") != "assistant":
        turns.pop()
    if not turns:
        raise InputError(f"{place}: field 'messages' has no assistant turn: nothing to learn from.")
    try:
        return Example(turns, meta={"place": place})
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _field(record: Mapping[str, Any], field: str, place: str) -> Any:
    if field not in record:
        present = ", ".join(map(repr, record)) or "none"
        raise InputError(
            f"{place} has no field {field!r} (it has {present}): name the fields with prompt_field and answer_field."
        )
    return record[field]


def _text(record: Mapping[str, Any], field: str, place: str) -> str:
    value = _field(record, field, place)
    if not isinstance(value, str):
        raise InputError(f"{place}: field {field!r} is {type(value).__name__}, expected a string.")
    if not value.strip():
        raise InputError(f"{place}: field {field!r} is empty: remove the line or fill it.")
    return value


def _number(record: Mapping[str, Any], field: str, place: str) -> str:
    value = _field(record, field, place)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise InputError(f"{place}: field {field!r} is {type(value).__name__}, expected a number.")
    return str(value)


def _unrecognised(record: Mapping[str, Any], place: str) -> InputError:
    known = "messages; question and answer; prompt and completion; text and label"
    return InputError(
        f"{place} has the fields {', '.join(map(repr, record)) or 'none'}, none of the known sets ({known}): "
        "name the fields with prompt_field and answer_field."
    )
