"""How many circuits a run asks for, counted from its recipe, its data and its model before anything is sent.

A layer asks for the circuits of one forward pass together: with m sequences of T tokens, m·T rows where all tokens'
circuits go to the chip, m where only the last one's does, and so on (:mod:`qpeft.qpu.tokens`). A training step does so
once a micro-batch, and once more for its gradient rule; the validation loss once a batch; an evaluation once for the
prompts and once for each token that it writes, at most.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import nn

from qpeft.adapters.execution import quantum_layers
from qpeft.chips import ChipSnapshot
from qpeft.chips.layout import Layout
from qpeft.chips.packing import plan_layout
from qpeft.circuits import Circuit
from qpeft.data import EncodingReport
from qpeft.gradients import count_circuits
from qpeft.qpu.estimate import Estimate, estimate
from qpeft.qpu.protocol import Caps
from qpeft.qpu.settings import ExecutionSettings
from qpeft.qpu.tokens import Tokens
from qpeft.training.execution import ExecutionSection
from qpeft.training.ranks import world_size
from qpeft.training.recipe import Recipe


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


def training_calls(recipe: Recipe, model: nn.Module, report: EncodingReport, n_validation: int) -> list[Call]:
    """All calls of a training, validation included.

    Args:
        recipe: The run.
        model: With its adapter.
        report: Of the encoded training set.
        n_validation: Examples of the validation set.

    Raises:
        InputError: The adapter has no circuits.
    """
    section, settings = recipe.training, recipe.execution.settings
    tokens = Tokens.parse(settings.tokens)
    length = max(1, round(report.tokens / report.kept)) if report.tokens else recipe.data.max_length
    steps = steps_of(recipe, report.kept)
    calls = []
    for circuit, n_layers in _circuits(recipe.execution, model):
        each = count_circuits(circuit, settings.gradient, 1, settings.n_directions)
        rows = _rows(tokens, section.per_device_train_batch_size * world_size(), length)
        times = steps * section.gradient_accumulation_steps * n_layers
        calls.append(Call("training, forward", circuit, rows, each.forward, times))
        if each.gradient:
            calls.append(Call("training, gradient", circuit, rows, each.gradient, times))
        if n_validation:
            passes, sequences = _validations(recipe, steps, n_validation)
            rows = _rows(tokens, sequences, length)
            calls.append(Call("validation", circuit, rows, each.forward, passes * n_layers))
    return calls


def evaluation_calls(
    execution: ExecutionSection, model: nn.Module, n_examples: int, batch_size: int, max_new_tokens: int, prompt: int
) -> list[Call]:
    """All calls of an evaluation that writes answers, at most.

    Args:
        execution: Whose circuits run where.
        model: With its adapter.
        n_examples: Prompts.
        batch_size: Prompts answered together.
        max_new_tokens: Longest answer.
        prompt: Tokens of a prompt.

    Raises:
        InputError: The adapter has no circuits.
    """
    tokens = Tokens.parse(execution.settings.tokens)
    batch = min(batch_size, n_examples)
    batches = math.ceil(n_examples / batch)
    calls = []
    for circuit, n_layers in _circuits(execution, model):
        each = count_circuits(circuit, "adjoint", 1).forward
        calls.append(Call("evaluation, prompts", circuit, _rows(tokens, batch, prompt), each, batches * n_layers))
        times = batches * n_layers * (max_new_tokens - 1)
        calls.append(Call("evaluation, answers", circuit, _rows(tokens, batch, 1), each, times))
    return calls


def price(
    calls: Sequence[Call], settings: ExecutionSettings, caps: Caps, snapshot: ChipSnapshot
) -> list[tuple[str, Estimate]]:
    """What each kind of call uses on a chip.

    Raises:
        InputError: The circuit fits nowhere, or shots that the provider does not take.
    """
    return [
        (
            call.what,
            estimate(
                call.rows,
                settings.shots,
                caps,
                snapshot,
                circuits_per_row=call.circuits_per_row,
                blocks=layout_of(call.circuit, settings, caps, snapshot).n_blocks,
                batches=call.times,
            ),
        )
        for call in calls
    ]


@lru_cache(maxsize=8)
def _layout(circuit: Circuit, snapshot: ChipSnapshot, options: tuple[tuple[str, object], ...]) -> Layout:
    return plan_layout(circuit, snapshot, **dict(options))  # type: ignore[arg-type]


def layout_of(circuit: Circuit, settings: ExecutionSettings, caps: Caps, snapshot: ChipSnapshot) -> Layout:
    """Where the circuits of a run stand on a chip."""
    options = {**settings.layout, **({} if caps.packs else {"max_blocks": 1})}
    return _layout(circuit, snapshot, tuple(options.items()))


def steps_of(recipe: Recipe, n_examples: int) -> int:
    """Optimiser's steps of a run over so many examples, which the processes of the run share."""
    section = recipe.training
    if section.max_steps > 0:
        return section.max_steps
    per_step = section.per_device_train_batch_size * section.gradient_accumulation_steps * world_size()
    return math.ceil(section.num_train_epochs * -(-n_examples // per_step))


def _circuits(execution: ExecutionSection, model: nn.Module) -> list[tuple[Circuit, int]]:
    """The circuits that go to the chip, and in how many layers each is."""
    layers = quantum_layers(model, execution.layers).values()
    return [(Circuit.from_key(key), count) for key, count in Counter(layer.circuit.key for layer in layers).items()]


def _validations(recipe: Recipe, steps: int, n_examples: int) -> tuple[int, int]:
    """Forward passes for the validation loss, and sequences of each."""
    section = recipe.training
    often = steps // section.eval_steps if section.eval_steps else 1  # else at the end alone
    size = min(section.per_device_eval_batch_size, n_examples)
    if world_size() > 1:  # every process gets a whole batch, filled with examples that stand in it already
        size = section.per_device_eval_batch_size * world_size()
    return often * math.ceil(n_examples / size), size


def _rows(tokens: Tokens, sequences: int, length: int) -> int:
    """Rows that go to the chip, of sequences of equal length."""
    if tokens.mode == "all":
        return sequences * length
    if tokens.mode == "every":
        return max(1, round(sequences * length / tokens.step))
    return sequences
