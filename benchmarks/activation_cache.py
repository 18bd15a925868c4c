"""What a training step takes when the activations below the adapted layers are read from the disk.

    python benchmarks/activation_cache.py [--batch 4] [--length 64] [--labelled 16] [--rounds 5] [--threads 1]

Claim: on SmolLM2-135M's shape in bfloat16, a step takes at most 0.75 times the processor time where only the top third
of the layers is adapted, and at most 0.90 times with the top half, once each sample has been seen. A step is forward,
backward and AdamW, with the loss at labelled positions as `qpeft train` computes it; adapters are QTHA of rank 8 on
q_proj and v_proj. Steps with and without take turns on the same samples in one process, and ratios are medians over
rounds, of processor time (which other programs disturb less) and of time by the clock. The step in which samples are
met first is timed too, and what opening the cache takes: weights are read for their fingerprint, the model is tried.
Weights are random, which changes no time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from qpeft import QTHAConfig
from qpeft.training.activations import cached_activations
from qpeft.training.labelled_loss import labelled_loss

LAYERS = 30
LIMITS = {"top third": (20, 0.75), "top half": (15, 0.90)}


def build(first: int):
    """The model with adapters from layer `first` on."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=LAYERS, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True,
    )  # fmt: skip
    base = LlamaForCausalLM(shape).to(torch.bfloat16)
    layers = list(range(first, LAYERS))
    config = QTHAConfig(r=8, target_modules=["q_proj", "v_proj"], layers_to_transform=layers, task_type="CAUSAL_LM")
    return get_peft_model(base, config).train()


def measure(first: int, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Seconds of steps on a few batches in turn, without the cache, when it is empty, and when it is filled."""
    model = build(first)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    batches = []
    for _ in range(options.rounds):
        ids = torch.randint(0, 49152, (options.batch, options.length))
        labels = torch.where(torch.arange(options.length) < options.length - options.labelled, -100, ids)
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})

    def step(batch) -> tuple[float, float]:
        """Seconds on the processor, and by the clock."""
        start, start_cpu = time.perf_counter(), time.process_time()
        total, _, labelled = labelled_loss(model, batch)
        (total / labelled).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start_cpu, time.perf_counter() - start

    step(batches[0])
    start = time.process_time()
    with cached_activations(model, folder, 10**9) as cache:
        opening = time.process_time() - start
        empty = [step(batch) for batch in batches]
    whole, filled = [], []
    for batch in batches:
        whole.append(step(batch))
        with cache.installed():
            filled.append(step(batch))
    tokens = options.rounds * options.batch * options.length
    return {
        "whole": statistics.median(cpu for cpu, _ in whole),
        "empty": statistics.median(cpu for cpu, _ in empty),
        "filled": statistics.median(cpu for cpu, _ in filled),
        "ratio": statistics.median(a[0] / b[0] for a, b in zip(filled, whole, strict=True)),
        "clock": statistics.median(a[1] / b[1] for a, b in zip(filled, whole, strict=True)),
        "opening": opening,
        "bytes": sum(path.stat().st_size for path in folder.glob("*/??/*")) / tokens,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("batch", 4), ("length", 64), ("labelled", 16), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    columns = ("whole", "first met", "cached", "ratio", "by clock", "opening", "B/token")
    print(f"{'':<12}{'processor seconds a step':^30}")
    print(f"{'adapted':<12}" + "".join(f"{column:>10}" for column in columns))
    kept = True
    for name, (first, limit) in LIMITS.items():
        with tempfile.TemporaryDirectory() as folder:
            r = measure(first, options, Path(folder))
        kept &= r["ratio"] <= limit
        seconds = f"{r['whole']:>10.3f}{r['empty']:>10.3f}{r['filled']:>10.3f}"
        print(f"{name:<12}{seconds}{r['ratio']:>10.2f}{r['clock']:>10.2f}{r['opening']:>10.2f}{r['bytes']:>10.0f}")
    print("claim:", "kept" if kept else "NOT kept")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
