"""Measuring a model: exact and strict answers, perplexity, dialogue and classification metrics."""

from qpeft.evaluation.answers import answer_correct, extract_answer, gsm8k_strict_correct, strict_correct
from qpeft.evaluation.statistics import Share, difference, wilson

__all__ = [
    "Share",
    "answer_correct",
    "difference",
    "extract_answer",
    "gsm8k_strict_correct",
    "strict_correct",
    "wilson",
]
