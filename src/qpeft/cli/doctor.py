"""`qpeft doctor`: what is installed, what works here, what is missing and how to get it."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from pathlib import Path
from typing import Any

from rich.table import Table

from qpeft.cli.console import Steps, print_json, results

#: optional packages: module -> (what it is for, how to install it)
OPTIONAL = {
    "sacrebleu": ("dialogue metrics", "pip install qpeft[metrics]"),
    "rouge_score": ("dialogue metrics", "pip install qpeft[metrics]"),
    "jieba": ("dialogue metrics in Chinese", "pip install qpeft[metrics]"),
    "tensorboard": ("training curves in TensorBoard", "pip install qpeft[tensorboard]"),
    "pyqpanda3": ("Origin's quantum computers", 'pip install "qpeft[origin]"'),
    "qiskit_aer": ("Qiskit's simulators", 'pip install "qpeft[qiskit]"'),
    "qiskit_ibm_runtime": ("IBM's quantum computers", 'pip install "qpeft[ibm]"'),
    "qbraid": ("quantum computers through qBraid", 'pip install "qpeft[qbraid]"'),
    "mthree": ("readout mitigation M3", 'pip install "qpeft[m3]"'),
    "scipy": ("the exact solver of layouts", 'pip install "qpeft[packing]"'),
    "uvicorn": ("qpeft serve", 'pip install "qpeft[serve]"'),
    "lm_eval": ("lm-evaluation-harness", 'pip install "qpeft[harness]"'),
    "pip": ("fetching the demo's model from the package registry", "python -m ensurepip"),
}
#: environment variables that hold credentials; only whether they are set is shown
CREDENTIALS = (
    "HF_TOKEN", "WANDB_API_KEY", "QPEFT_ORIGIN_KEY", "ORIGIN_API_KEY", "QISKIT_IBM_TOKEN", "QBRAID_API_KEY",
)  # fmt: skip


def run(as_json: bool) -> None:
    with Steps() as say:
        say("looking around")
        report = examine()
    if as_json:
        print_json(report)
        return
    for title, rows in report.items():
        table = Table(title=title, show_header=False, title_justify="left", expand=False)
        table.add_column()
        table.add_column(overflow="fold")
        for name, value in rows.items():
            table.add_row(name, str(value))
        results.print(table)


def examine() -> dict[str, dict[str, Any]]:
    """Everything the command shows."""
    import torch

    from qpeft.models import KNOWN_MODELS, cache_root
    from qpeft.training.run_folder import versions

    found = versions()
    missing = {name: value for name, value in OPTIONAL.items() if importlib.util.find_spec(name) is None}
    root = cache_root()
    return {
        "versions": {"qpeft": found["qpeft"], "python": found["python"], **found["packages"]},
        "machine": {
            "system": platform.platform(),
            "processor": found["processor"],
            "torch threads": found["threads"],
            "CUDA": found["cuda"] or "no device",
            "free disk for the cache": _free(root),
        },
        "circuits": {
            "on the processor": _native_kernel(),
            "on CUDA devices": _on_cuda(),
            "on other devices": "plain torch",
            "check": _check_circuit(torch),
        },
        "models": {
            "cache": str(root),
            **{known.alias: f"{known.reference}: {known.about}" for known in KNOWN_MODELS},
        },
        "optional": {
            name: f"missing ({use}): {command}" if name in missing else f"found ({use})"
            for name, (use, command) in OPTIONAL.items()
        },
        "credentials": {name: "set" if os.environ.get(name) else "not set" for name in CREDENTIALS},
    }


def _native_kernel() -> str:
    from qpeft.simulators import native

    found = native.description()
    return found if native.available() else f"plain torch, because the native kernel is {found}"


def _on_cuda() -> str:
    from qpeft.simulators import cuda

    return cuda.description()


def _free(path: Path) -> str:
    while not path.exists():
        path = path.parent
    return f"{shutil.disk_usage(path).free / 2**30:.0f} GiB"


def _check_circuit(torch: Any) -> str:
    """Run one circuit whose answer is known: <Z> of RY(x)|0> is cos(x)."""
    from qpeft.circuits import Circuit, Gate, Input, Observable
    from qpeft.simulators import run as simulate

    circuit = Circuit(n_qubits=1, gates=(Gate("RY", (0,), Input(0)),), observables=(Observable("Z0"),))
    angles = torch.linspace(-3, 3, 7).reshape(-1, 1)
    error = (simulate(circuit, angles, torch.empty(0)) - angles.cos()).abs().max().item()
    return f"right to {error:.0e}" if error < 1e-5 else f"WRONG by {error:.0e}: please report this"
