"""One contender as a process: reads JSON lines from its standard input and answers each with one JSON line.

    python worker.py adapter_pennylane [--threads 1] [--place 0]

The process is pinned to as many cores as it has threads, where the system allows that. It runs inside the contender's
own environment and needs nothing but numpy beside it. Commands:

    {"do": "load", "circuit": key, "arrays": file.npz, "samples": k}  the layer for the first k samples
    {"do": "check", "to": file.npz}                                   outputs and gradients for the checking cotangent
    {"do": "time", "what": "forward" | "both", "loops": k}            seconds of k calls; 0: find k (>= 20 ms)
    {"do": "memory"}                                                  peak resident memory so far, MiB

Whatever a framework prints goes to the standard error, so that it cannot spoil an answer.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import resource
import sys
import time
import traceback
from typing import Any

SHORTEST = 0.02  # seconds; anything shorter says more of the clock than of the simulator


class Worker:
    """Holds the layer that was loaded last."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.layer: Any = None
        self.checking: Any = None

    def load(self, circuit: str, arrays: str, samples: int) -> dict[str, Any]:
        import numpy
        from program import Program

        self.layer = None  # frees the arrays of the last one first
        with numpy.load(arrays) as given:
            inputs, cotangent, self.checking = (given[name][:samples] for name in ("inputs", "cotangent", "checking"))
            self.layer = self.adapter.Layer(Program(circuit), inputs, given["weights"], cotangent)
        return {"note": getattr(self.layer, "note", None)}

    def check(self, to: str) -> dict[str, Any]:
        import numpy

        plain, self.layer.cotangent = self.layer.cotangent, self.layer.array(self.checking)
        outputs, to_inputs, to_weights = (self.layer.numpy(value) for value in self.layer.both())
        self.layer.cotangent = plain
        forward = self.layer.numpy(self.layer.forward())
        numpy.savez(to, forward=forward, outputs=outputs, to_inputs=to_inputs, to_weights=to_weights)
        return {}

    def time(self, what: str, loops: int) -> dict[str, Any]:
        call = getattr(self.layer, what)
        if loops:
            return self._seconds(call, loops)
        loops = 1
        while True:
            answer = self._seconds(call, loops)
            if answer["wall"] >= SHORTEST:
                return answer
            loops = math.ceil(1.2 * loops * SHORTEST / max(answer["wall"], SHORTEST / 100))

    @staticmethod
    def _seconds(call: Any, loops: int) -> dict[str, Any]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(loops):
            call()
        return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall, "loops": loops}

    def memory(self) -> dict[str, Any]:
        scale = 2**20 if sys.platform == "darwin" else 2**10
        return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", help="module in this folder")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--place", type=int, default=0, help="which cores: 0 the last ones, 1 those before, ...")
    parser.add_argument("--import-only", action="store_true", help="end after the import, with code 0 if it worked")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0), reverse=True)
        first = arguments.place * arguments.threads
        os.sched_setaffinity(0, cores[first : first + arguments.threads] or cores[: arguments.threads])
    adapter = importlib.import_module(arguments.adapter)
    if arguments.import_only:
        return
    adapter.use_threads(arguments.threads)
    worker = Worker(adapter)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(worker, command.pop("do"))(**command)
        except Exception as error:
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
