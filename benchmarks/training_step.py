"""What a training step with QTHA costs, as a multiple of the same step with peft's LoRA.

    python benchmarks/training_step.py [--model FOLDER] [--rank 8] [--batch 8] [--length 64] [--rounds 7]

Claim: at rank 8, on q_proj and v_proj of SmolLM2-135M in bfloat16, a step takes at most 1.10 times as long as LoRA's
with a circuit of one layer and at most 1.25 times with four, and peaks at no more than 1.1 times its memory. Each
method runs in a process of its own, so that peak memory is its own. The processes take turns round by round, so that
whatever else the machine does hits all of them, and the ratio is the median over the rounds of that round's ratio to
LoRA. The same is printed for processor time, which other programs disturb less. Without ``--model`` the weights are
random, which changes neither time nor memory. ``--batch``, ``--length`` and ``--blocks`` change the shape of the step;
the claim is about their defaults.
"""

import argparse
import json
import multiprocessing
import resource
import statistics
import sys
import time
from multiprocessing.connection import Connection

# Arguments of each method's configuration; None stands for LoRA.
METHODS: dict[str, dict | None] = {
    "lora": None,
    "qtha": {},
    "qtha, four layers": {"n_layers": 4},
    "qtha, no circuit": {"arch": "mpo"},
    "qtha, small": {"bond_dim": 4, "inner_features": 64},
}
QUICK = ("lora", "qtha", "qtha, four layers")
TIME_LIMITS = {"qtha": 1.10, "qtha, four layers": 1.25}
MEMORY_LIMIT = 1.1


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
            num_hidden_layers=options.blocks,
            num_attention_heads=9,
            num_key_value_heads=3,
            tie_word_embeddings=True,
        )
        base = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    targets = ["q_proj", "v_proj"]
    arguments = METHODS[method]
    if arguments is None:
        config = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=targets)
    else:
        config = QTHAConfig(r=options.rank, target_modules=targets, **arguments)
    return get_peft_model(base, config).train()


def worker(method: str, options: argparse.Namespace, pipe: Connection) -> None:
    """Train a step whenever asked; answer with its seconds by the clock and on processors, at the end with memory."""
    import torch

    torch.set_num_threads(options.threads)
    model = build(method, options)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (options.batch, options.length))
    loaded = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    while pipe.recv() == "step":
        start, start_cpu = time.perf_counter(), time.process_time()
        model(ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pipe.send((time.perf_counter() - start, time.process_time() - start_cpu))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    pipe.send((loaded / 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, trained))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of a base model; random weights of SmolLM2-135M's shape by default")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--blocks", type=int, default=30, help="decoder blocks, where no model is given")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--quick", action="store_true", help="only the methods with a claim")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    methods = QUICK if options.quick else tuple(METHODS)
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

    results = {}
    for method in methods:
        _, peak, trained = memory[method]
        seconds, cpu_seconds = zip(*times[method], strict=True)
        results[method] = {
            "seconds": statistics.median(seconds),
            "spread": [min(seconds), max(seconds)],
            "cpu_seconds": statistics.median(cpu_seconds),
            "peak_mib": peak,
            "trained": trained,
            "time_ratio": ratio_to_lora(times, method, 0),
            "cpu_ratio": ratio_to_lora(times, method, 1),
            "memory_ratio": peak / memory["lora"][1],
        }
    kept = {
        method: results[method]["time_ratio"] <= limit and results[method]["memory_ratio"] <= MEMORY_LIMIT
        for method, limit in TIME_LIMITS.items()
    }
    if options.json:
        print(json.dumps({"results": results, "kept": kept}))
        return 0 if all(kept.values()) else 1
    columns = f"{'s/step':>9}{'(min-max)':>15}{'x LoRA':>8}{'CPU x':>7}{'peak MiB':>10}{'x LoRA':>8}"
    print(f"{'method':<18}{'trained':>10}{columns}")
    for method, r in results.items():
        spread = f"({r['spread'][0]:.2f}-{r['spread'][1]:.2f})"
        print(
            f"{method:<18}{r['trained']:>10,}{r['seconds']:>9.3f}{spread:>15}{r['time_ratio']:>8.2f}"
            f"{r['cpu_ratio']:>7.2f}{r['peak_mib']:>10.0f}{r['memory_ratio']:>8.2f}"
        )
    for method, limit in TIME_LIMITS.items():
        verdict = "kept" if kept[method] else "NOT kept"
        print(f"claim for {method} (time <= {limit}, memory <= {MEMORY_LIMIT}): {verdict}")
    return 0 if all(kept.values()) else 1


def ratio_to_lora(times: dict[str, list[tuple[float, float]]], method: str, which: int) -> float:
    """Median over the rounds of a method's time over LoRA's in the same round."""
    pairs = zip(times[method], times["lora"], strict=True)
    return statistics.median(mine[which] / lora[which] for mine, lora in pairs)


if __name__ == "__main__":
    sys.exit(main())
