"""`qpeft estimate` without a chip: memory by part, time, and what would fit."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from rich.table import Table

from qpeft.cli.console import Steps, notes, print_json, results
from qpeft.cli.tables import number, parameter_lines
from qpeft.errors import InputError


class _Lengths(NamedTuple):
    """Tokens of the examples."""

    examples: int
    longest: int
    mean: float
    labelled: float
    known: bool


def run(recipe: Any, memory: str | None, as_json: bool) -> None:
    from qpeft.models.empty import model_config
    from qpeft.training.footprint import measure_speed, parse_memory, sizes_of

    if recipe.model.task != "causal-lm":
        raise InputError("only language models are estimated: set model.task to causal-lm")
    limit = None if memory is None else parse_memory(memory)
    section = recipe.training
    with Steps() as say:
        say("reading the data")
        lengths = _lengths(recipe)
        say("tracing a step")
        config = model_config(recipe.model.name)
        sizes = sizes_of(recipe, lengths.longest, config)
        batch = min(section.per_device_train_batch_size, lengths.examples)
        footprint = sizes.footprint(batch * lengths.longest)
        say("measuring this machine")
        text = config.get_text_config()
        inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        tokens = round(batch * lengths.mean)
        speed = measure_speed(_dtype(sizes), tokens, text.hidden_size, inner)
        seconds = section.gradient_accumulation_steps * sizes.seconds(tokens, round(batch * lengths.labelled), speed)
        steps = math.ceil(lengths.examples / (batch * section.gradient_accumulation_steps))
        fits = {} if limit is None else _fits(recipe, sizes, limit, batch, lengths.longest, say)
    if not lengths.known:
        notes.print(
            f"the tokenizer of {recipe.model.name} is not here: every example is taken as data.max_length = "
            f"{recipe.data.max_length} tokens, all of them labelled"
        )
    if as_json:
        print_json({
            "model": recipe.model.name, "base_parameters": sizes.base_parameters, "parameters": sizes.parameters,
            "batch": batch, "length": lengths.longest, "memory": {**vars(footprint), "peak": footprint.peak},
            "seconds_per_step": seconds, "steps_per_epoch": steps, "seconds_per_epoch": steps * seconds, "fits": fits,
        })  # fmt: skip
        return
    table = Table(title=f"{recipe.model.name}, {batch} x {lengths.longest} tokens", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("base parameters", number(sizes.base_parameters))
    for name, value in parameter_lines(sizes.parameters):
        table.add_row(name, value)
    for name, size in vars(footprint).items():
        table.add_row(f"memory: {name}", _gigabytes(size))
    table.add_row("peak memory", _gigabytes(footprint.peak), style="bold")
    table.add_row("a step, on this machine", _duration(seconds))
    table.add_row(f"an epoch of {number(steps)} steps", _duration(steps * seconds))
    for what, value in fits.items():
        table.add_row(f"{memory} holds, {what}", "nothing" if value is None else str(value))
    results.print(table)


def _lengths(recipe: Any) -> _Lengths:
    from qpeft.models import load_tokenizer
    from qpeft.training.datasets import encode_examples, training_examples

    train, validation = training_examples(recipe.data)
    longest = recipe.data.max_length
    try:
        tokenizer = load_tokenizer(recipe.model.name)
    except InputError:
        return _Lengths(len(train), longest, longest, longest, known=False)
    encoded = encode_examples(recipe, train, validation, tokenizer)
    counts = [len(ids) for ids in encoded.train["input_ids"]]
    report = encoded.report
    return _Lengths(
        len(counts), max(counts), sum(counts) / len(counts), report.labelled_tokens / max(report.kept, 1), known=True
    )


def _fits(recipe: Any, sizes: Any, limit: float, batch: int, length: int, say: Any) -> dict[str, Any]:
    """The largest batch, length and well-known model for so much memory, each with the rest as in the recipe."""
    from qpeft.models.shapes import KNOWN_SHAPES, known_shape
    from qpeft.training.footprint import sizes_of

    tokens = sizes.most_tokens(limit)
    found: dict[str, Any] = {
        f"batch of {length} tokens": tokens // length or None,
        f"length in batches of {batch}": tokens // batch or None,
    }
    fitting = None
    for name in reversed(KNOWN_SHAPES):
        config = known_shape(name)
        if _least_weights(config) * sizes.item > limit:
            continue
        say(f"tracing {name}")
        if sizes_of(recipe, length, config).footprint(batch * length).peak <= limit:
            fitting = name
            break
    found["model"] = fitting
    return found


def _least_weights(config: Any) -> int:
    """Parameters of the matrices, a little less than all."""
    heads = config.num_attention_heads + config.num_key_value_heads
    attention = 2 * config.hidden_size * heads * (config.hidden_size // config.num_attention_heads)
    layer = attention + 3 * config.hidden_size * config.intermediate_size
    tables = 1 if config.tie_word_embeddings else 2
    return config.num_hidden_layers * layer + tables * config.vocab_size * config.hidden_size


def _dtype(sizes: Any) -> Any:
    import torch

    return torch.float32 if sizes.item == 4 else torch.bfloat16


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.3f} GB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
