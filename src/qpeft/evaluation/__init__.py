"""Measuring a model: exact and strict answers, perplexity, dialogue and classification metrics."""

from qpeft.evaluation.answers import answer_correct, extract_answer, gsm8k_strict_correct, strict_correct
from qpeft.evaluation.generation import generate_answers
from qpeft.evaluation.perplexity import Loss, measure_loss
from qpeft.evaluation.result import EvalResult, Metric
from qpeft.evaluation.statistics import Share, difference, wilson
from qpeft.evaluation.tasks import TASKS, Settings, run_task

__all__ = [
    "TASKS",
    "EvalResult",
    "Loss",
    "Metric",
    "Settings",
    "Share",
    "answer_correct",
    "difference",
    "extract_answer",
    "generate_answers",
    "gsm8k_strict_correct",
    "measure_loss",
    "run_task",
    "strict_correct",
    "wilson",
]
