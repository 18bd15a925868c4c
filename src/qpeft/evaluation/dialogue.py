"""How near answers come to reference answers: BLEU-4 and ROUGE-1/2/L, for English and Chinese.

Chinese is written without spaces, so texts are first cut into words with jieba; both metrics then see words in both
languages. BLEU is sacrebleu's over the whole set (Papineni et al. 2002; Post 2018), ROUGE the mean F-measure of
rouge-score (Lin 2004). Values are in percent.
"""

import importlib
import logging
import math
import re
from collections.abc import Sequence
from types import ModuleType

from qpeft.errors import InputError, MissingDependencyError
from qpeft.evaluation.result import Metric

_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
_Z_95 = 1.959963984540054


def dialogue_metrics(answers: Sequence[str], references: Sequence[str]) -> dict[str, Metric]:
    """BLEU-4 (of the set) and ROUGE-1, ROUGE-2, ROUGE-L (means with 95 % intervals) of answers.

    An empty answer scores zero. BLEU has no interval: it is one number of the whole set.

    Raises:
        InputError: If there is nothing to compare or the numbers of texts differ.
        MissingDependencyError: If the metric libraries are not installed.
    """
    if len(answers) != len(references) or not references:
        raise InputError(
            f"as many answers as references are needed, and at least one (got {len(answers)} and {len(references)})."
        )
    sacrebleu, rouge_scorer = _need("sacrebleu"), _need("rouge_score.rouge_scorer")
    # BLEU of a whole set needs one way to cut it into words: that of most references.
    chinese = 2 * sum(is_chinese(reference) for reference in references) > len(references)
    if chinese:
        answers, references = [segment(text) for text in answers], [segment(text) for text in references]
    bleu = sacrebleu.corpus_bleu(
        list(answers), [list(references)], tokenize="none" if chinese else "13a", force=chinese
    )
    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = rouge_scorer.RougeScorer(list(kinds), tokenizer=_Words() if chinese else None)
    scores = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    metrics = {"bleu4": Metric(float(bleu.score))}
    for kind in kinds:
        metrics[kind.lower()] = _mean([100 * float(score[kind].fmeasure) for score in scores])
    return metrics


def is_chinese(text: str) -> bool:
    """Whether at least a fifth of the text's letters are Chinese characters."""
    letters = sum(character.isalnum() for character in text)
    return letters > 0 and 5 * len(_CJK.findall(text)) >= letters


def segment(text: str) -> str:
    """The words of a Chinese text with single spaces between them."""
    jieba = _need("jieba")
    jieba.setLogLevel(logging.WARNING)
    return " ".join(word for word in jieba.cut(text) if not word.isspace())


class _Words:
    """rouge-score's own tokenizer drops everything but Latin letters; this one keeps the words as they are cut."""

    def tokenize(self, text: str) -> list[str]:
        return [word for word in text.split() if any(character.isalnum() for character in word)]


def _mean(values: Sequence[float]) -> Metric:
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return Metric(mean)
    half = _Z_95 * math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1) / n)
    return Metric(mean, max(0.0, mean - half), min(100.0, mean + half))


def _need(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependencyError(
            f"dialogue metrics need the package {module.partition('.')[0].replace('_', '-')}: "
            "install them with `pip install 'qpeft[metrics]'`."
        ) from error
