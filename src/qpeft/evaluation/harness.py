"""lm-evaluation-harness on a model of ours, in the process that holds it, so that adapters need no merging.

The harness finds a task (its own, or those of a folder), writes prompts and judges answers; the model answers through
the harness's own class for transformers models. A metric that is 0 or 1 for every document gets Wilson's interval, any
other one the normal interval of the harness's standard error, value ± 1.96 stderr.

L. Gao et al., "A framework for few-shot language model evaluation", doi.org/10.5281/zenodo.12608602.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from qpeft.errors import InputError, MissingDependencyError
from qpeft.evaluation.generation import prepared_for_decoding
from qpeft.evaluation.statistics import wilson

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

_Z_95 = 1.959963984540054
_BOOTSTRAP = 1000  # resamplings for the standard error of a metric that is no mean


@dataclass(frozen=True)
class HarnessMetric:
    """One value of the harness.

    Attributes:
        value: As the task defines it.
        stderr: The harness's standard error.
        low: Lower end of the 95 % interval.
        high: Upper end.
        is_share: Whether it counts documents, and so lies between 0 and 1.
    """

    value: float
    stderr: float | None
    low: float | None
    high: float | None
    is_share: bool


@dataclass(frozen=True)
class HarnessResult:
    """One task, or one group of tasks taken together.

    Attributes:
        task: The harness's name of it.
        version: The task's version, which belongs to every published number.
        n: Documents measured.
        n_shot: Examples in the prompt.
        metrics: By `metric,filter`, as the harness names them; the filter `none` is left out.
        records: What was asked, answered and judged, a record for each document and filter.
    """

    task: str
    version: str | float | None
    n: int | None
    n_shot: int | None
    metrics: Mapping[str, HarnessMetric]
    records: Sequence[Mapping[str, Any]] = field(default_factory=tuple)


def load_tasks(names: Sequence[str], folder: str | Path | None = None) -> dict[str, Any]:
    """Find the harness's tasks and read their data.

    Args:
        names: Tasks, groups or tags of the harness, also patterns such as `mmlu_*`.
        folder: A folder with task files (YAML) of one's own.

    Returns:
        The harness's own dictionary of tasks and groups.

    Raises:
        MissingDependencyError: The harness is not installed.
        InputError: There is no such task or folder, or its data cannot be had.
    """
    try:
        import lm_eval.tasks  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            '--harness needs lm_eval; install it with pip install "qpeft[harness]".'
        ) from error
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"there is no folder {folder} with tasks of the harness")
    manager, found = _find(names, folder)
    try:
        return dict(manager.load(found))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"the harness cannot prepare {', '.join(found)} ({type(error).__name__}: {reason})"
        ) from error


def run_harness(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Mapping[str, Any],
    limit: int | None = None,
    batch_size: int = 8,
    n_shot: int | None = None,
    max_new_tokens: int | None = None,
    chat_template: bool = False,
    system: str | None = None,
    seed: int = 0,
) -> list[HarnessResult]:
    """Measure a model on the harness's tasks; the model is left as it was.

    Args:
        model: A causal language model, with or without an adapter.
        tokenizer: Its tokenizer.
        tasks: From `load_tasks`; they keep the settings below, so load them again for others.
        limit: Measure the first so many documents of each task.
        batch_size: Sequences computed at once.
        n_shot: Examples in the prompt; `None` for what each task says.
        max_new_tokens: Longest answer; `None` for what each task says.
        chat_template: Ask through the tokenizer's chat template. Published numbers of base models do not.
        system: A system message; for the chat template.
        seed: Of the choice of examples.

    Returns:
        Groups first, then tasks, in the harness's order.

    Raises:
        InputError: A chat template is asked of a tokenizer without one.
    """
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM

    if chat_template and not tokenizer.chat_template:
        raise InputError("--chat-template needs a tokenizer with a chat template, and this one has none")
    for task in tasks["tasks"].values():
        _settle(task, n_shot, max_new_tokens, seed)
    with prepared_for_decoding(model), _as_before(tokenizer), torch.random.fork_rng():
        torch.manual_seed(seed)
        # Not `simple_evaluate`: it also asks pip and the system for all their versions, which takes half a minute.
        answer: Any = evaluate(
            lm=HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size),
            task_dict=tasks,
            limit=limit,
            bootstrap_iters=_BOOTSTRAP,
            system_instruction=system,
            apply_chat_template=chat_template,
            fewshot_as_multiturn=chat_template,
        )
    names = [*answer.get("groups", {}), *(name for name in answer["results"] if name not in answer.get("groups", {}))]
    return [_result(name, answer) for name in names]


def _settle(task: Any, n_shot: int | None, max_new_tokens: int | None, seed: int) -> None:
    """What the harness's own command does with its options; a task that says it has no examples keeps to that."""
    if task.get_config("num_fewshot") != 0 and n_shot is not None:
        task.set_config(key="num_fewshot", value=n_shot)
    elif task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    if max_new_tokens is not None and task.get_config("output_type") == "generate_until":
        task.set_config(key="generation_kwargs", value={"max_gen_toks": max_new_tokens}, update=True)
    task.set_fewshot_seed(seed=seed)


def _find(names: Sequence[str], folder: str | Path | None) -> tuple[TaskManager, list[str]]:
    """The index that knows all names; reading the harness's own thousands of files is saved where the folder does."""
    from lm_eval.tasks import TaskManager

    unknown = list(names)
    for with_defaults in (False, True) if folder is not None else (True,):
        manager = TaskManager(include_path=folder, include_defaults=with_defaults)
        unknown = [name for name in names if not manager.match_tasks([name])]
        if not unknown:
            return manager, list(dict.fromkeys(found for name in names for found in manager.match_tasks([name])))
    raise InputError(f"the harness has no task {unknown[0]!r}: `lm-eval ls tasks` lists all")


def _result(name: str, answer: Mapping[str, Any]) -> HarnessResult:
    records = answer.get("samples", {}).get(name, [])
    metrics = {}
    for key, value in answer["results"][name].items():
        metric, comma, chosen = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = answer["results"][name].get(f"{metric}_stderr,{chosen}")
        values = [record[metric] for record in records if record["filter"] == chosen and metric in record]
        metrics[metric if chosen == "none" else key] = _metric(value, stderr, values)
    count = answer.get("n-samples", {}).get(name, {}).get("effective")
    return HarnessResult(
        name, answer.get("versions", {}).get(name), count, answer.get("n-shot", {}).get(name), metrics, records
    )  # fmt: skip


def _metric(value: float, stderr: object, values: Sequence[object]) -> HarnessMetric:
    error = float(stderr) if isinstance(stderr, int | float) else None
    if values and all(isinstance(one, int | float) and one in (0, 1) for one in values):
        share = wilson(sum(one == 1 for one in values), len(values))
        if abs(share.value - value) < 1e-9:  # the metric is their mean, and not something computed from them
            return HarnessMetric(value, error, share.low, share.high, True)
    half = None if error is None else _Z_95 * error
    return HarnessMetric(
        value, error, None if half is None else value - half, None if half is None else value + half, False
    )  # fmt: skip


@contextlib.contextmanager
def _as_before(tokenizer: PreTrainedTokenizerBase) -> Any:
    """The harness pads on the side it needs."""
    side = tokenizer.padding_side
    try:
        yield
    finally:
        tokenizer.padding_side = side
