"""A comparison as it would come out of a grid, invented: falling losses, accuracies that follow from them, sweeps."""

import math
import random
from dataclasses import replace

from qpeft.compare.results import Accounting, ArmInfo, CellResult, GridResults

RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
#: name -> label, kind, trained numbers, of these angles, how much better than the base it gets
ARMS = {
    "adapter": ("QTHA, r = 4", "adapter", 89_856, 2_880, 0.80),
    "lora": ("LoRA, r = 4", "reference", 460_800, 0, 0.79),
    "lora-same-init": ("LoRA, r = 4, same initialiser", "reference", 460_800, 0, 0.83),
    "lora-same-count": ("LoRA, same count (r = 1)", "matched", 115_200, 0, 0.66),
    "oft-same-count": ("OFT, same count", "matched", 92_160, 0, 0.70),
    "vera-same-count": ("VeRA, same count (r = 1280)", "matched", 89_280, 0, 0.55),
    "lokr-same-count": ("LoKr, same count", "matched", 88_704, 0, 0.68),
    "fourierft-same-count": ("FourierFT, same count", "matched", 90_000, 0, 0.50),
    "tinylora": ("TinyLoRA", "matched", 960, 0, 0.35),
    "no-circuit": ("circuit removed", "control", 86_976, 0, 0.78),
    "no-entanglers": ("circuit without entanglers", "control", 89_856, 2_880, 0.79),
    "frozen-circuit": ("circuit random and frozen", "control", 86_976, 0, 0.775),
    "classical": ("classical network in the circuit's place", "control", 89_916, 0, 0.80),
    "branch-zero": ("branch set to zero", "evaluation", 89_856, 2_880, 0.70),
    "branch-mean": ("branch set to its mean", "evaluation", 89_856, 2_880, 0.72),
    "base": ("frozen base", "base", 0, 0, 0.0),
}
VERSIONS = {
    "qpeft": "0.1.0", "python": "3.11.2", "packages": {"torch": "2.9.0", "peft": "0.18.0", "scipy": None},
    "platform": "Linux", "processor": "A processor", "threads": 1, "cuda": None,
}  # fmt: skip


def fabricate(
    arms=tuple(ARMS), bases=("small-llama",), tasks=("arithmetic",), seeds=(0, 1, 2, 3, 4), stages=("sweep", "final"),
    steps=120, n_items=200, title="QTHA and its controls",
):  # fmt: skip
    """A whole grid; leave out stages, arms or seeds for a part of it."""
    cells = []
    for base in bases:
        for task in tasks:
            for arm in arms:
                trained = ARMS[arm][1] not in ("base", "evaluation")
                if "sweep" in stages and trained:
                    cells += [cell(base, task, arm, rate, 100, "sweep", steps, 0) for rate in RATES]
                if "final" in stages:
                    own = seeds if ARMS[arm][1] != "base" else seeds[:1]
                    rate = best_rate(arm) if trained else 0.0
                    cells += [cell(base, task, arm, rate, seed, "final", steps, n_items) for seed in own]
    return GridResults(
        title=title,
        arms={name: info(name) for name in arms},
        cells=tuple(cells),
        planned=len(cells),
        metric=dict.fromkeys(tasks, "strict_accuracy"),
        command="qpeft compare recipes/compare/quick.yaml",
        plan={
            "title": title, "bases": {base: {"name": base} for base in bases}, "tasks": {task: {} for task in tasks},
            "arms": list(arms), "learning_rates": list(RATES),
            "seeds": {"sweep": [100], "final": list(seeds)},
        },
    )  # fmt: skip


def info(name):
    label, kind = ARMS[name][:2]
    return ArmInfo(
        name, label, kind, note=f"What {name} is for.", circuit=ARMS[name][3] > 0 and name != "no-entanglers"
    )


def best_rate(arm):
    return RATES[1 + sum(map(ord, arm)) % 3]


def cell(base, task, arm, rate, seed, stage, steps, n_items):
    """A cell that learns less well the farther its learning rate is from the arm's best; far above, it diverges."""
    _, kind, trainable, angles, gain = ARMS[arm]
    draw = random.Random(f"{base} {task} {arm} {rate} {seed} {stage}")
    trained = kind not in ("base", "evaluation")
    detune = math.log10(rate / best_rate(arm)) if trained else 0.0
    spread = draw.gauss(0, 0.015)
    final_loss = 1.9 - 1.6 * gain * math.exp(-(detune**2)) + spread
    common = {"base": base, "task": task, "arm": arm, "learning_rate": rate, "seed": seed, "stage": stage}
    common["versions"] = VERSIONS
    if detune > 0.9:
        return CellResult(**common, status="diverged", reason="the loss is not finite at step 17")
    losses = tuple(
        (step, final_loss + (2.6 - final_loss) * math.exp(-5 * step / steps) * draw.uniform(0.8, 1.2))
        for step in range(1, steps + 1)
    )
    items, metrics = {}, {}
    if stage == "final":
        chance = min(0.98, max(0.01, 0.9 * gain - spread))
        right = tuple(float(random.Random(f"{task} {item}").random() < chance) for item in range(n_items))
        strict = tuple(value * float(draw.random() < 0.95) for value in right)
        items = {"answer": right, "strict": strict}
        metrics = {f"{name}_accuracy": sum(values) / n_items for name, values in items.items()} | {
            "loss": final_loss + 0.05
        }
    return CellResult(
        **common,
        train_loss=sum(loss for _, loss in losses[-steps // 10 :]) / (steps // 10) if trained else None,
        mean_train_loss=sum(loss for _, loss in losses) / steps if trained else None,
        eval_loss=final_loss + 0.03,
        losses=losses if trained else (),
        eval_losses=((steps // 2, final_loss + 0.3), (steps, final_loss + 0.03)) if trained else (),
        metrics=metrics,
        items=items,
        accounting=Accounting(
            trainable, angles, 4 * trainable, 2**31, 40.0 if trained else 0.0, 6200.0 if trained else 0.0,
            3.1e13 if trained and kind != "matched" else None, 4096 if info(arm).circuit else 0,
        ),
    )  # fmt: skip


def diverge(results, arm, stage="final", seeds=None):
    """The same grid with an arm's cells diverged (those of some seeds)."""
    return replace(
        results,
        cells=tuple(
            CellResult(one.base, one.task, one.arm, one.learning_rate, one.seed, one.stage, "diverged", "not finite")
            if one.arm == arm and one.stage == stage and (seeds is None or one.seed in seeds)
            else one
            for one in results.cells
        ),
    )
