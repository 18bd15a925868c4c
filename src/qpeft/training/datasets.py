"""From a recipe's data section to examples, and from examples to what a trainer reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from qpeft.data import EncodingReport, Example, encode_dataset, generate_examples, load, split_examples
from qpeft.data.arithmetic import Split
from qpeft.errors import InputError
from qpeft.training.recipe import DataSection, Recipe

#: generated problems where the recipe does not say how many
TRAIN_PROBLEMS = 2000
VALIDATION_PROBLEMS = 200


@dataclass(frozen=True)
class Encoded:
    """Tokenised sets and what became of their examples."""

    train: Any
    validation: Any | None
    report: EncodingReport


def training_examples(data: DataSection) -> tuple[list[Example], list[Example]]:
    """The training and validation examples of a recipe; no question stands in both.

    Raises:
        InputError: a file is missing, empty or malformed.
    """
    if data.train == "arithmetic":
        return (
            _problems(data, data.train_samples or TRAIN_PROBLEMS, data.seed, "train"),
            _problems(data, data.validation_samples or VALIDATION_PROBLEMS, data.seed, "validation"),
        )
    train = _read(data, data.train, "train")
    if data.validation is not None:
        validation = _read(data, data.validation, "validation")
        seen = {example.question for example in validation}
        train = [example for example in train if example.question not in seen]
    else:
        train, validation, _ = split_examples(train, data.seed, validation=data.validation_fraction, test=0.0)
    if not train:
        raise InputError(f"{data.train} leaves no training example: every question is also in the validation set")
    return train[: data.train_samples], validation[: data.validation_samples]


def held_out_examples(data: DataSection, limit: int | None, seed: int = 0) -> list[Example]:
    """The held-out examples of a recipe.

    Raises:
        InputError: no test set is named, or its file is missing, empty or malformed.
    """
    source = data.test or ("arithmetic" if data.train == "arithmetic" else None)
    if source is None:
        raise InputError("the recipe names no test set: set data.test to a JSON lines file or a hub name")
    if source == "arithmetic":
        return _problems(data, limit or VALIDATION_PROBLEMS, seed, "test")
    return _read(data, source, "test")[:limit]


def encode_examples(
    recipe: Recipe, train: list[Example], validation: list[Example], tokenizer: PreTrainedTokenizerBase
) -> Encoded:
    """Tokenise; for language models the loss counts on the assistant's turns alone."""
    data = recipe.data
    if recipe.model.task == "sequence-classification":
        return Encoded(
            _classified(train, tokenizer, data.max_length, recipe.model.num_labels),
            _classified(validation, tokenizer, data.max_length, recipe.model.num_labels) if validation else None,
            EncodingReport(kept=len(train)),
        )

    def encode(examples: list[Example]) -> tuple[Any, EncodingReport]:
        return encode_dataset(
            examples,
            tokenizer,
            max_length=data.max_length,
            format=data.format,
            system=data.system,
            too_long=data.too_long,
        )

    encoded, report = encode(train)
    return Encoded(encoded, encode(validation)[0] if validation else None, report)


def refuse_longer(data: Encoded, config: Any, name: str) -> None:
    """Refuse examples beyond the context of a model, where it was not trained and may not even have positions.

    Raises:
        InputError: There is one.
    """
    window = getattr(config.get_text_config(), "max_position_embeddings", None)
    for encoded in (data.train, data.validation):
        if encoded is None or window is None:
            continue
        longest = pc.max(pc.list_value_length(encoded.data.column("input_ids"))).as_py()
        if longest > window:
            raise InputError(
                f"an example has {longest} tokens, and the context of {name} is {window}: set data.max_length={window}"
            )


def _classified(examples: list[Example], tokenizer: PreTrainedTokenizerBase, max_length: int, num_labels: int) -> Any:
    from datasets import Dataset

    rows = []
    for example in examples:
        label = example.target
        if not label.isdigit() or int(label) >= num_labels:
            raise InputError(
                f"the label {label!r} is not a class between 0 and {num_labels - 1}: set model.num_labels, or number "
                "the labels from 0"
            )
        encoded = tokenizer(example.question, truncation=True, max_length=max_length)
        rows.append({**encoded, "labels": int(label)})
    return Dataset.from_list(rows)


def _problems(data: DataSection, n: int, seed: int, split: Split) -> list[Example]:
    return generate_examples(n, seed, split, data.max_steps, data.largest, data.min_steps)


def _read(data: DataSection, source: str, split: str) -> list[Example]:
    return load(
        source,
        layout=data.layout,
        split=split,
        prompt_field=data.prompt_field,
        answer_field=data.answer_field,
        keep_calculator_marks=data.keep_calculator_marks,
    )
