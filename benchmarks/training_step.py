"""What a training step with QTHA costs, as a multiple of the same step with peft's LoRA.

    python benchmarks/training_step.py [--model FOLDER] [--rank 8] [--batch 8] [--length 64] [--rounds 7]

Claim: at rank 8, one layer, on q_proj and v_proj of SmolLM2-135M in bfloat16, a step takes at most 2.0 times as long
as LoRA's and peaks at no more than 1.3 times its memory. Each method runs in a process of its own, so that peak memory
is its own. The processes take turns round by round, so that whatever else the machine does hits all of them, and the
ratio is that of the medians. Without ``--model`` the weights are random, which changes neither time nor memory.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection

METHODS = ("lora", "qtha", "qtha, no circuit", "qtha, small")
TIME_LIMIT, MEMORY_LIMIT = 2.0, 1.3


def build(method: str, options: argparse.Namespace):
    """The model with its adapter, ready to train."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    from qpeft import QTHAConfig

    torch.manual_seed(0)
    if options.model:
        base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.bfloat16)
    else:
        shape = LlamaConfig(
            vocab_size=49152,
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
        base = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    targets = ["q_proj", "v_proj"]
    if method == "lora":
        config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=targets)
    else:
        sizes = {"bond_dim": 4, "inner_features": 64} if "small" in method else {}
        arch = "mpo" if "no circuit" in method else "mpo+quantum"
        config = QTHAConfig(r=options.rank, arch=arch, target_modules=targets, **sizes)
    return get_peft_model(base, config).train()


def worker(method: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Train a step whenever asked; answer with its seconds, and at the end with the peak memory."""
    import torch

    torch.set_num_threads(options.threads)
    model = build(method, options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (options.batch, options.length))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while pipe.recv() == "step":
        start = time.perf_counter()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pipe.send(time.perf_counter() - start)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    pipe.send((loaded / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, trained))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a base model; random weights of SmolLM2-135M's shape by default")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--quick", action="store_true", help="LoRA and QTHA alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    methods = METHODS[:2] if options.quick else METHODS
    context = multiprocessing.get_context("spawn")
    pipes, processes, times = {}, [], {method: [] for method in methods}
    for method in methods:
        pipes[method], theirs = context.Pipe()
        process = context.Process(target=worker, args=(method, options, theirs))
        process.start()
        processes.append(process)
    for k in range(options.rounds + 1):
        for method in methods:
            pipes[method].send("step")
            seconds = pipes[method].recv()
            if k:  # the first round warms up
                times[method].append(seconds)
    memory = {}
    for method, process in zip(methods, processes, strict=True):
        pipes[method].send("stop")
        memory[method] = pipes[method].recv()
        process.join()

    base_time, base_peak = statistics.median(times["lora"]), memory["lora"][1]
    results = {}
    for method in methods:
        _, peak, trained = memory[method]
        median = statistics.median(times[method])
        results[method] = {
            "seconds": median,
            "spread": [min(times[method]), max(times[method])],
            "peak_mib": peak,
            "trained": trained,
            "time_ratio": median / base_time,
            "memory_ratio": peak / base_peak,
        }
    kept = results["qtha"]["time_ratio"] <= TIME_LIMIT and results["qtha"]["memory_ratio"] <= MEMORY_LIMIT
    if options.json:
        print(json.dumps({"results": results, "kept": kept}))
        return 0 if kept else 1
    print(f"{'method':<18}{'trained':>10}{'s/step':>9}{'(min-max)':>15}{'x LoRA':>8}{'peak MiB':>10}{'x LoRA':>8}")
    for method, r in results.items():
        spread = f"({r['spread'][0]:.2f}-{r['spread'][1]:.2f})"
        print(
            f"{method:<18}{r['trained']:>10,}{r['seconds']:>9.3f}{spread:>15}{r['time_ratio']:>8.2f}"
            f"{r['peak_mib']:>10.0f}{r['memory_ratio']:>8.2f}"
        )
    print(f"claim (time <= {TIME_LIMIT}, memory <= {MEMORY_LIMIT}): {'kept' if kept else 'NOT kept'}")
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main())
