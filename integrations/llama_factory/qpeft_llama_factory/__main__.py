"""`python -m qpeft_llama_factory sft qtha.yaml [key=value ...]`: LLaMA-Factory's trainers, with QTHA as a method.

Several processes: `torchrun --nproc-per-node 2 -m qpeft_llama_factory sft qtha.yaml`.
"""

from __future__ import annotations

import importlib
import sys

from qpeft.errors import InputError

#: command: module of LLaMA-Factory and its function
TRAINERS = {"sft": ("sft_trainer", "run_sft"), "dpo": ("dpo_trainer", "run_dpo"), "rm": ("rm_trainer", "run_rm")}


def main(arguments: list[str]) -> int:
    """Run a command; the arguments after it are LLaMA-Factory's own."""
    if len(arguments) < 2 or arguments[0] not in TRAINERS:
        print(f"usage: python -m qpeft_llama_factory {'|'.join(TRAINERS)} file.yaml [key=value ...]", file=sys.stderr)
        return 2
    module, function = TRAINERS[arguments[0]]
    try:
        importlib.import_module("qpeft_llama_factory.method")  # registers the method
        run = getattr(importlib.import_module(f"llamafactory.v1.trainers.{module}"), function)
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install --upgrade llamafactory", file=sys.stderr)
        return 2
    sys.argv[1:] = arguments[1:]  # where its parser reads them
    try:
        run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
