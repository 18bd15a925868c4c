"""A training step of a billion parameters on one machine: QTHA beside peft's LoRA, memory and time.

    python benchmarks/billion.py [--model qwen2.5-1.5b] [--length 512] [--rounds 3]

Claims for Qwen2.5-1.5B in bfloat16, rank 8 on q_proj and v_proj, one sequence of 512 tokens of which all count:
QTHA's peak is below 6 GB and at most 1.05 times LoRA's, its step takes at most 1.05 times LoRA's, and its checkpoint
is smaller than 5 MB.

The weights are random (`--seed`): the model is made from its published shape, which decides memory and time alike, and
written once to a temporary folder, from which every process maps them as it would map real ones. Peak memory
is the operating system's figure for a process that trains two steps with one method. Times come from a process that
holds both methods, which share the mapped weights, and lets them take turns; the ratio is the median over the rounds
of that round's ratio, in processor time, which other programs disturb least. Never more than one process holds a
model.
"""

import argparse
import json
import multiprocessing
import resource
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

METHODS = ("lora", "qtha")
PEAK_LIMIT, RATIO_LIMIT, CHECKPOINT_LIMIT = 6e9, 1.05, 5e6


def write_weights(options: argparse.Namespace, folder: str) -> None:
    """Write a model with random weights; runs in a process of its own, so that its memory is given back."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    from qpeft.models.shapes import known_shape

    config = known_shape(options.model)
    if config is None:
        sys.exit(f"the shape of {options.model} is not known")
    torch.manual_seed(options.seed)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.tie_weights()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.ones_(parameter)
        else:
            torch.nn.init.normal_(parameter, std=config.initializer_range)
    model.save_pretrained(folder)


def prepare(method: str, options: argparse.Namespace, folder: str, checkpointing: bool):
    """A function that trains one step and returns its seconds by the clock and on processors, and the model."""
    import torch
    from peft import LoraConfig, get_peft_model

    from qpeft import QTHAConfig
    from qpeft.models import load_model
    from qpeft.training.labelled_loss import labelled_loss

    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    config_class = {"lora": LoraConfig, "qtha": QTHAConfig}[method]
    config = config_class(r=options.rank, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(load_model(folder, dtype="bfloat16", device="cpu"), config).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    ids = torch.randint(model.config.vocab_size, (options.batch, options.length))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}

    def step() -> tuple[float, float]:
        start, start_cpu = time.perf_counter(), time.process_time()
        total, _, labels = labelled_loss(model, inputs)
        (total / labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start, time.process_time() - start_cpu

    return step, model


def peak(method: str, options: argparse.Namespace, folder: str, checkpointing: bool) -> dict:
    """Memory of two steps, and size of the saved adapter."""
    import qpeft.training.trainer  # noqa: F401  (what a training run has loaded, too)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    step, model = prepare(method, options, folder, checkpointing)
    for _ in range(2):  # from the second on, the optimiser's state is there
        step()
    result = {
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "libraries": before,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)
        result["checkpoint"] = sum(path.stat().st_size for path in Path(saved).rglob("*") if path.is_file())
    return result


def times(options: argparse.Namespace, folder: str, checkpointing: bool) -> dict:
    """Steps of both methods in turn, and what of QTHA's is spent in circuits."""
    from qpeft.simulators import exact

    spent = 0.0

    def timed(function):
        def call(*arguments):
            nonlocal spent
            start = time.process_time()
            result = function(*arguments)
            spent += time.process_time() - start
            return result

        return call

    exact._evaluate, exact._evaluate_backward = timed(exact._evaluate), timed(exact._evaluate_backward)
    steps = {method: prepare(method, options, folder, checkpointing)[0] for method in METHODS}
    rounds = []
    for k in range(options.rounds + 1):
        order = METHODS if k % 2 else METHODS[::-1]
        spent = 0.0
        seconds = {method: steps[method]() for method in order}
        if k:  # the first round warms up
            rounds.append({**seconds, "share": spent / seconds["qtha"][1]})
    return {
        **{f"{m}_seconds": statistics.median(r[m][0] for r in rounds) for m in METHODS},
        **{f"{m}_cpu_seconds": statistics.median(r[m][1] for r in rounds) for m in METHODS},
        "cpu_ratio": statistics.median(r["qtha"][1] / r["lora"][1] for r in rounds),
        "share": statistics.median(r["share"] for r in rounds),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="qwen2.5-1.5b", help="a name that qpeft.models.shapes knows")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-times", action="store_true", help="memory alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()

    context = multiprocessing.get_context("spawn")

    def alone(function, *arguments):
        """Run a function in a process that ends with it."""
        with context.Pool(1) as pool:
            return pool.apply(function, arguments)

    folder = tempfile.mkdtemp(prefix="billion-")
    results: dict[str, dict] = {}
    try:
        alone(write_weights, options, folder)
        for checkpointing in (False, True):
            found: dict = {method: alone(peak, method, options, folder, checkpointing) for method in METHODS}
            found["peak_ratio"] = found["qtha"]["peak"] / found["lora"]["peak"]
            if not options.no_times:
                found["times"] = alone(times, options, folder, checkpointing)
            results["checkpointing" if checkpointing else "plain"] = found
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    kept = {
        "peak": all(r["qtha"]["peak"] <= PEAK_LIMIT for r in results.values()),
        "peak ratio": all(r["peak_ratio"] <= RATIO_LIMIT for r in results.values()),
        "checkpoint": all(r["qtha"]["checkpoint"] <= CHECKPOINT_LIMIT for r in results.values()),
    }
    if not options.no_times:
        kept["time ratio"] = all(r["times"]["cpu_ratio"] <= RATIO_LIMIT for r in results.values())
    if options.json:
        print(json.dumps({"model": options.model, "results": results, "kept": kept}))
        return 0 if all(kept.values()) else 1
    print(f"{options.model}, {options.batch} x {options.length} tokens, {options.threads} thread(s)")
    print(f"{'':<24}{'trained':>11}{'peak GB':>9}{'x LoRA':>8}{'saved MB':>10}{'s/step':>8}{'CPU s':>8}{'x LoRA':>8}")
    for how, r in results.items():
        for method in METHODS:
            m, mine = r[method], method == "qtha"
            line = f"{method + ', ' + how:<24}{m['trained']:>11,}{m['peak'] / 1e9:>9.3f}"
            line += f"{r['peak_ratio'] if mine else 1:>8.3f}{m['checkpoint'] / 1e6:>10.2f}"
            if "times" in r:
                t = r["times"]
                line += f"{t[method + '_seconds']:>8.1f}{t[method + '_cpu_seconds']:>8.1f}"
                line += f"{t['cpu_ratio'] if mine else 1:>8.3f}"
            print(line)
        if "times" in r:
            print(f"  circuits take {100 * r['times']['share']:.2f} % of QTHA's step")
    for claim, holds in kept.items():
        print(f"claim about {claim}: {'kept' if holds else 'NOT kept'}")
    return 0 if all(kept.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
