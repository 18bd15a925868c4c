"""Where QTHA's saving comes from: trained numbers on the shapes of large models, counted on models without numbers.

    python benchmarks/parameter_tables.py

For each model and rank: LoRA, QTHA at its published sizes (bond dimension 8, inner width 256, one layer and as many as
the rank), QTHA without its circuit, and the LoRA that comes nearest to QTHA in size.
"""

from __future__ import annotations

import argparse

import qpeft  # noqa: F401  (registers the adapters with peft)
from qpeft.compare.catalogue import build_arms
from qpeft.models.empty import empty_model

MODELS = ("Qwen/Qwen2.5-7B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-70B-Instruct")
RANKS = (4, 8, 10)


def counts(model: str, rank: int) -> dict[str, int]:
    """Trained numbers by arm."""
    adapter = {"method": "qtha", "r": rank, "target_modules": ["q_proj", "v_proj"]}
    arms = build_arms(["adapter", "lora", "no-circuit", "lora-same-count"], adapter, empty_model(model))
    deep = build_arms(["adapter"], {**adapter, "n_layers": rank}, empty_model(model))
    return {**{arm.name: arm.trainable for arm in arms}, "deep": deep[0].trainable}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    arguments = parser.parse_args()
    heads = ("model", "r", "LoRA", "QTHA, L = 1", "saved", "QTHA, L = r", "saved", "without circuit", "saved",
             "LoRA nearest in size")  # fmt: skip
    print("| " + " | ".join(heads) + " |")
    print("| --- |" + " ---: |" * (len(heads) - 1))
    for model in arguments.models:
        for rank in arguments.ranks:
            found = counts(model, rank)
            lora = found["lora"]
            cells = [f"{model.split('/')[-1]}", str(rank), f"{lora:,}"]
            for name in ("adapter", "deep", "no-circuit"):
                cells += [f"{found[name]:,}", f"{100 * (1 - found[name] / lora):.1f} %"]
            cells.append(f"{found['lora-same-count']:,}")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
