"""How many circuits a run asks for, counted from its recipe, its data and its model before anything is sent.

A layer asks for the circuits of one forward pass together: with m sequences of T tokens, m·T rows where all tokens'
circuits go to the chip, m where only the last one's does, and so on (:mod:`qpeft.qpu.tokens`). A training step does so
once a micro-batch, and once more for its gradient rule; the validation loss once a batch; an evaluation once for the
prompts and once for each token that it writes, at most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from qpeft.adapters.execution import quantum_layers
from qpeft.circuits import Circuit
from qpeft.errors import InputError
from qpeft.gradients import count_circuits
from qpeft.qpu.tokens import Tokens
from qpeft.training.recipe import Recipe
from qpeft.training.run import prepare, steps_of


@dataclass(frozen=True)
class Call:
    """Circuits that a layer asks for together, and how often that happens in all layers.

    Args:
        what: For people: ``"training, forward"``.
        circuit: The circuit.
        rows: Rows of a call.
        circuits_per_row: Measurement bases, times what the gradient rule needs.
        times: How often, over all layers.
    """

    what: str
    circuit: Circuit
    rows: int
    circuits_per_row: int
    times: int


def workload(
    recipe: Recipe, limit: int | None, training: bool = True, say: Callable[[str], None] = lambda _: None
) -> list[Call]:
    """All calls of a training, and of an evaluation of ``limit`` examples, as the recipe's execution section says.

    Args:
        recipe: The run.
        limit: Examples of the evaluation; ``None`` takes the recipe's.
        training: Whether the training is still to come.
        say: Receives one sentence a step.

    Raises:
        InputError: The recipe cannot be used, or its adapter has no circuits.
    """
    ready = prepare(recipe, say)
    settings = recipe.execution.settings
    chosen = quantum_layers(ready.model, recipe.execution.layers)
    report, section, evaluation = ready.data.report, recipe.training, recipe.evaluation
    tokens = Tokens.parse(settings.tokens)
    length = max(1, round(report.tokens / max(report.kept, 1))) if report.tokens else recipe.data.max_length
    prompt = max(1, round((report.tokens - report.labelled_tokens) / max(report.kept, 1)))
    steps = steps_of(recipe, len(ready.data.train))
    passes = steps * section.gradient_accumulation_steps
    examples = limit or evaluation.limit or report.kept
    batch = min(evaluation.batch_size, examples)
    batches = math.ceil(examples / batch)

    calls = []
    for key, n_layers in Counter(layer.circuit.key for layer in chosen.values()).items():
        circuit = Circuit.from_key(key)
        each = count_circuits(circuit, settings.gradient, 1, settings.n_directions)
        if training and ready.data.validation is not None:
            times, sequences = _validations(recipe, steps, len(ready.data.validation))
            rows = _rows(tokens, sequences, length)
            calls.append(Call("validation", circuit, rows, each.forward, times * n_layers))
        if training:
            rows = _rows(tokens, section.per_device_train_batch_size, length)
            calls.append(Call("training, forward", circuit, rows, each.forward, passes * n_layers))
            if each.gradient:
                calls.append(Call("training, gradient", circuit, rows, each.gradient, passes * n_layers))
        if evaluation.task is not None:
            prompts = _rows(tokens, batch, prompt)
            calls.append(Call("evaluation, prompts", circuit, prompts, each.forward, batches * n_layers))
            written = _rows(tokens, batch, 1)
            times = batches * n_layers * (evaluation.max_new_tokens - 1)
            calls.append(Call("evaluation, answers", circuit, written, each.forward, times))
    if not calls:
        raise InputError("the run is trained and its recipe names no evaluation: add evaluation.task=arithmetic, say")
    return calls


def _validations(recipe: Recipe, steps: int, n_examples: int) -> tuple[int, int]:
    """Forward passes for the validation loss, and sequences of each."""
    section = recipe.training
    often = steps // section.eval_steps if section.eval_steps else 1  # else at the end alone
    size = min(section.per_device_eval_batch_size, n_examples)
    return often * math.ceil(n_examples / size), size


def _rows(tokens: Tokens, sequences: int, length: int) -> int:
    """Rows that go to the chip, of sequences of equal length."""
    if tokens.mode == "all":
        return sequences * length
    if tokens.mode == "every":
        return max(1, round(sequences * length / tokens.step))
    return sequences
