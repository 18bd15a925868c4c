"""What every evaluation gives back: metrics with their intervals and, where there are any, one record an item."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qpeft.evaluation.statistics import Share


@dataclass(frozen=True)
class Metric:
    """A measured value and, where one is known, its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None

    @classmethod
    def of_share(cls, share: Share) -> "Metric":
        """A share with Wilson's interval, as a number between 0 and 1."""
        return cls(share.value, share.low, share.high)


@dataclass(frozen=True)
class EvalResult:
    """The outcome of one task.

    Attributes:
        task: The task's name.
        n: Items measured.
        metrics: By name; accuracies are between 0 and 1, BLEU and ROUGE in percent, losses in nats a token.
        records: For each item the prompt, the answer and how it was judged; for perplexity its summed
            loss and its labelled tokens.
    """

    task: str
    n: int
    metrics: Mapping[str, Metric]
    records: Sequence[Mapping[str, Any]] = field(default_factory=tuple)

    def __getitem__(self, metric: str) -> float:
        return self.metrics[metric].value

    def to_dict(self, records: bool = True) -> dict[str, Any]:
        """Plain values for JSON; numbers that JSON does not know (NaN, infinity) become `None`."""
        result: dict[str, Any] = {
            "task": self.task,
            "n": self.n,
            "metrics": {
                name: {"value": _finite(metric.value), "low": _finite(metric.low), "high": _finite(metric.high)}
                for name, metric in self.metrics.items()
            },
        }
        if records:
            result["records"] = [dict(record) for record in self.records]
        return result

    def to_json(self, records: bool = True) -> str:
        """`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(records), ensure_ascii=False, allow_nan=False)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
