"""The tasks a model can be measured on, each by its name: `run_task("arithmetic", model, tokenizer, examples)`.

task            what is measured
arithmetic      answer and strict accuracy on generated word problems, also apart for unseen stories
gsm8k           answer and strict accuracy
mawps           accuracy of the executed equation (answer) and of the equation itself (strict)
perplexity      token-weighted loss and perplexity of the assistant's turns
dialogue        BLEU-4 and ROUGE of the last turn of every conversation, given all turns before it
classification  accuracy of a sequence classifier
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from qpeft.data.arithmetic import Problem
from qpeft.data.examples import Example
from qpeft.data.formatting import Format
from qpeft.data.masking import encode_dataset
from qpeft.errors import InputError
from qpeft.evaluation import answers
from qpeft.evaluation.dialogue import dialogue_metrics
from qpeft.evaluation.generation import Progress, generate_answers, prepared_for_decoding
from qpeft.evaluation.perplexity import measure_loss
from qpeft.evaluation.result import EvalResult, Metric
from qpeft.evaluation.statistics import wilson

_Z_95 = 1.959963984540054


@dataclass(frozen=True)
class Settings:
    """How a task is run.

    Attributes:
        max_new_tokens: Most tokens of an answer; `None` for the task's own (48 arithmetic, 320 gsm8k, 48 mawps, 256
            dialogue).
        batch_size: Prompts decoded, or texts classified, together.
        max_batch_tokens: Bound on a batch of the perplexity task.
        max_length: Longest sample of the perplexity and classification tasks; longer ones are cut.
        format: As in training.
        system: As in training.
    """

    max_new_tokens: int | None = None
    batch_size: int = 32
    max_batch_tokens: int = 2048
    max_length: int | None = None
    format: Format = "auto"
    system: str | None = None


def run_task(
    name: str,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """Measures a model on a task; the model is left as it was.

    Args:
        name: One of `TASKS`.
        model: A causal language model (for `classification` a sequence classifier), with or without an adapter.
        tokenizer: Its tokenizer.
        examples: The items.
        settings: See `Settings`.
        progress: Called with (items done, items in all).

    Raises:
        InputError: If the task is unknown, there are no examples, or they lack what the task needs.
        MissingDependencyError: If the task's metric libraries are not installed.
    """
    if name not in TASKS:
        raise InputError(f"there is no task {name!r}: choose one of {', '.join(TASKS)}.")
    if not examples:
        raise InputError(f"task {name} got no examples: give at least one.")
    return TASKS[name](model, tokenizer, examples, settings or Settings(), progress)


Task = Callable[[nn.Module, PreTrainedTokenizerBase, Sequence[Example], Settings, Progress | None], EvalResult]
# Judges one answer: (example, text) -> (answer is right, strictly right).
_Judge = Callable[[Example, str], tuple[bool, bool]]


def _run_arithmetic(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
) -> EvalResult:
    for example in examples:
        if not isinstance(example.meta.get("problem"), Problem):
            raise InputError("task arithmetic needs generated problems: make them with qpeft.data.generate_examples.")
    records = _answer_and_judge(model, tokenizer, examples, settings, progress, 48, _judge_arithmetic)
    for record, example in zip(records, examples, strict=True):
        problem: Problem = example.meta["problem"]
        record.update(template=problem.template, n_steps=len(problem.steps), unseen_template=problem.unseen_template)
    metrics = _accuracies(records)
    for unseen, ending in ((False, "_seen_templates"), (True, "_unseen_templates")):
        part = [record for record in records if record["unseen_template"] is unseen]
        if part:
            metrics.update({name + ending: metric for name, metric in _accuracies(part).items()})
    return EvalResult("arithmetic", len(records), metrics, records)


def _judge_arithmetic(example: Example, text: str) -> tuple[bool, bool]:
    problem: Problem = example.meta["problem"]
    return answers.answer_correct(text, problem.answer), answers.strict_correct(text, problem)


def _run_gsm8k(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
) -> EvalResult:
    _require_answers("gsm8k", examples)
    records = _answer_and_judge(model, tokenizer, examples, settings, progress, 320, _judge_gsm8k)
    return EvalResult("gsm8k", len(records), _accuracies(records), records)


def _judge_gsm8k(example: Example, text: str) -> tuple[bool, bool]:
    gold = example.answer or ""
    return answers.answer_correct(text, gold), answers.gsm8k_strict_correct(text, gold)


def _run_mawps(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
) -> EvalResult:
    _require_answers("mawps", examples)
    for example in examples:
        if "equation" not in example.meta:
            raise InputError("task mawps needs the reference equations: load the file with layout='mawps'.")
    records = _answer_and_judge(model, tokenizer, examples, settings, progress, 48, _judge_mawps)
    return EvalResult("mawps", len(records), _accuracies(records), records)


def _judge_mawps(example: Example, text: str) -> tuple[bool, bool]:
    equation = example.meta["equation"]
    right = answers.mawps_correct(text, example.answer or "", equation)
    return right, answers.mawps_strict_correct(text, equation)


def _run_perplexity(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
) -> EvalResult:
    samples, report = encode_dataset(
        examples, tokenizer, settings.max_length, settings.format, settings.system, too_long="truncate"
    )
    loss = measure_loss(model, samples, settings.max_batch_tokens, progress)
    half = _Z_95 * loss.deviation / math.sqrt(loss.tokens)
    metrics = {
        "loss": Metric(loss.loss, loss.loss - half, loss.loss + half),
        "perplexity": Metric(loss.perplexity, loss.perplexity * math.exp(-half), loss.perplexity * math.exp(half))
        if math.isfinite(half)
        else Metric(loss.perplexity),
        "tokens": Metric(loss.tokens),
        "truncated": Metric(report.truncated),
    }
    records = [{"loss": total if math.isfinite(total) else None, "tokens": tokens} for total, tokens in loss.by_sample]
    return EvalResult("perplexity", loss.samples, metrics, records)


def _run_dialogue(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
) -> EvalResult:
    references = [example.target for example in examples]
    dialogue_metrics(references[:1], references[:1])  # missing libraries show before the long part, not after it
    texts = _generate(model, tokenizer, examples, settings, progress, 256, stop_after_answer=False)
    records = [
        {"prompt": example.question, "text": text, "reference": reference}
        for example, text, reference in zip(examples, texts, references, strict=True)
    ]
    metrics = dialogue_metrics(texts, references)
    metrics["empty"] = Metric.of_share(wilson(sum(not text.strip() for text in texts), len(texts)))
    return EvalResult("dialogue", len(records), metrics, records)


def _run_classification(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
) -> EvalResult:
    config: Any = model.config
    names = {str(name): int(index) for index, name in config.id2label.items()}
    truths = []
    for example in examples:
        label = example.answer if example.answer is not None else example.target
        if label not in names and not (label.isdecimal() and int(label) < config.num_labels):
            raise InputError(f"label {label!r} is none of the classifier's: use {', '.join(names)} or their numbers.")
        truths.append(names.get(label) if label in names else int(label))
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    device = next(model.parameters()).device
    limit = settings.max_length or getattr(config, "max_position_embeddings", None)
    rows = tokenizer([example.question for example in examples], truncation=limit is not None, max_length=limit)
    rows = rows["input_ids"]
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
    predicted = [-1] * len(rows)
    with prepared_for_decoding(model):
        for start in range(0, len(order), settings.batch_size):
            chosen = order[start : start + settings.batch_size]
            longest = max(len(rows[index]) for index in chosen)
            ids = torch.tensor([rows[index] + [pad] * (longest - len(rows[index])) for index in chosen])
            mask = torch.tensor([[1] * len(rows[index]) + [0] * (longest - len(rows[index])) for index in chosen])
            logits = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits  # (batch, n_labels)
            for index, label, usable in zip(
                chosen, logits.argmax(-1).tolist(), logits.isfinite().all(-1).tolist(), strict=True
            ):
                predicted[index] = label if usable else -1  # NaN is no answer
            if progress is not None:
                progress(start + len(chosen), len(rows))
    records = [
        {"prompt": example.question, "predicted": guess, "reference": truth, "answer_correct": guess == truth}
        for example, guess, truth in zip(examples, predicted, truths, strict=True)
    ]
    right = sum(bool(record["answer_correct"]) for record in records)
    return EvalResult(
        "classification", len(records), {"accuracy": Metric.of_share(wilson(right, len(records)))}, records
    )


def _generate(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
    default_length: int,
    stop_after_answer: bool,
) -> list[str]:
    return generate_answers(
        model,
        tokenizer,
        [example.prompt for example in examples],
        max_new_tokens=settings.max_new_tokens or default_length,
        batch_size=settings.batch_size,
        format=settings.format,
        system=settings.system,
        stop_after_answer=stop_after_answer,
        progress=progress,
    )


def _answer_and_judge(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    settings: Settings,
    progress: Progress | None,
    default_length: int,
    judge: _Judge,
) -> list[dict[str, Any]]:
    texts = _generate(model, tokenizer, examples, settings, progress, default_length, stop_after_answer=True)
    records = []
    for example, text in zip(examples, texts, strict=True):
        right, strict = judge(example, text)
        records.append(
            {
                "prompt": example.question,
                "text": text,
                "reference": example.target,
                "answer": example.answer,
                "answer_correct": right,
                "strict_correct": strict,
            }
        )
    return records


def _accuracies(records: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    return {
        f"{kind}_accuracy": Metric.of_share(wilson(sum(record[f"{kind}_correct"] for record in records), len(records)))
        for kind in ("answer", "strict")
    }


def _require_answers(task: str, examples: Sequence[Example]) -> None:
    for example in examples:
        if example.answer is None:
            raise InputError(
                f"task {task} needs a final answer for every example, and the one that begins "
                f"{example.question[:40]!r} has none: load the file with layout={task!r}."
            )


TASKS: dict[str, Task] = {
    "arithmetic": _run_arithmetic,
    "gsm8k": _run_gsm8k,
    "mawps": _run_mawps,
    "perplexity": _run_perplexity,
    "dialogue": _run_dialogue,
    "classification": _run_classification,
}
