"""Run folders with numbers that nobody measured, for what only reads them."""

import json
import math
from pathlib import Path
from typing import Any


def share(value: float, n: int = 200) -> dict[str, float]:
    half = 1.96 * math.sqrt(max(value * (1 - value), 0.25 / n) / n)
    return {"value": value, "low": max(0.0, value - half), "high": min(1.0, value + half)}


def write_arm(
    folder: Path, answer: float, strict: float, parameters: dict[str, int] | None = None, steps: int = 110,
    final_loss: float = 0.4, speed: float = 0.08, n: int = 200,
) -> Path:  # fmt: skip
    """An arm with a loss that falls from 2.5; without `parameters`, the evaluation of a frozen base."""
    folder.mkdir(parents=True)
    records = [
        {"prompt": f"Anna has {k + 2} pens and gets 3 more. How many pens does she have?",
         "text": f"{k + 2}+3={k + 5}\n#### {k + 5}", "strict_correct": k < strict * n,
         "answer_correct": k < answer * n}
        for k in range(n)
    ]  # fmt: skip
    evaluation: dict[str, Any] = {
        "task": "arithmetic",
        "n": n,
        "metrics": {"answer_accuracy": share(answer, n), "strict_accuracy": share(strict, n)},
    }
    if parameters is None:
        result = {"target": "base", "evaluation": {**evaluation, "records": records}}
        (folder / "result.json").write_text(json.dumps(result))
        return folder
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        wave = 0.15 * math.sin(7.3 * step) + 0.1 * math.sin(2.1 * step)
        loss = final_loss + (2.5 - final_loss) * math.exp(-speed * step)
        lines.append({"step": step, "loss": loss * (1 + wave), "tokens_per_second": 900.0 + step})
        if step % (steps // 2) == 0:
            lines.append({"step": step, "eval_loss": loss * 1.05})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = {
        "steps": steps, "train_loss": final_loss, "eval_loss": final_loss * 1.05, "tokens_per_second": 955.0,
        "seconds": 120.0, "peak_memory_bytes": 1_500_000_000, "parameters": parameters, "samples": 1760, "dropped": 0,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps({"training": training, "evaluation": evaluation}))
    (folder / "answers.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "recipe.yaml").write_text("output: x\n")
    return folder


QTHA_PARAMETERS = {
    "total": 51840, "tensor_network": 30000, "linear": 21360, "angles": 480, "classical": 0, "lora_equivalent": 230400,
}  # fmt: skip
LORA_PARAMETERS = {"total": 230400}
