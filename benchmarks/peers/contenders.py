"""Who takes part in the benchmark of the circuit simulator: each contender's adapter, packages and environment.

A contender without packages runs in the interpreter of the driver itself (this library, its engines in plain torch,
and the naive simulator). Every other one has a virtual environment of its own, so that no peer's pins decide another
peer's versions. The driver and ``setup.py`` read this file, nothing inside the environments does.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FOLDER_VARIABLE = "QPEFT_BENCH_ENVS"
TORCH = "torch==2.13.0"
NUMPY = "numpy==2.4.6"


@dataclass(frozen=True)
class Contender:
    """One simulator in the race.

    Args:
        name: Short name, which is also the folder of its environment.
        title: What tables call it.
        module: Adapter in this folder.
        packages: Steps of ``pip install``, each the arguments of one call; empty for the driver's own interpreter.
        version_of: Distributions whose versions the report names.
        variables: What the environment of its process holds beside the usual.
        compiles: Whether each shape is compiled first, which takes seconds to minutes and is kept on disk.
    """

    name: str
    title: str
    module: str
    packages: tuple[tuple[str, ...], ...]
    version_of: tuple[str, ...]
    variables: tuple[tuple[str, str], ...] = ()
    compiles: bool = False

    @property
    def is_peer(self) -> bool:
        """Whether this is another framework, not code of this repository."""
        return bool(self.packages)

    def folder(self, envs: Path) -> Path:
        return envs / self.name

    def python(self, envs: Path) -> Path:
        """The interpreter to run the worker with."""
        if not self.packages:
            return Path(sys.executable)
        return self.folder(envs) / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _with_torch(*packages: str) -> tuple[tuple[str, ...], ...]:
    # torch first and alone: the pinned version then also holds for whatever range the peer asks for.
    return (TORCH, NUMPY), (TORCH, *packages)


CONTENDERS = (
    Contender("qpeft", "qpeft", "adapter_qpeft", (), ("qpeft", "torch")),
    Contender(
        "flagquantum",
        "FlagQuantum",
        "adapter_flagquantum",
        _with_torch("flagquantum==0.3.1"),
        ("flagquantum", "torch"),
    ),
    Contender(
        "tensorcircuit",
        "TensorCircuit-NG (jax)",
        "adapter_tensorcircuit",
        (("tensorcircuit-ng==1.10.0", "jax==0.10.2", "jaxlib==0.10.2"),),
        ("tensorcircuit-ng", "jax"),
        compiles=True,
    ),
    Contender(
        "pennylane",
        "PennyLane default.qubit (torch)",
        "adapter_pennylane",
        _with_torch("pennylane==0.45.1"),
        ("pennylane", "torch"),
    ),
    Contender(
        "deepquantum",
        "DeepQuantum",
        "adapter_deepquantum",
        _with_torch("deepquantum==4.5.0"),
        ("deepquantum", "torch"),
    ),
    Contender("vqnet", "VQNet (torch)", "adapter_vqnet", _with_torch("pyvqnet==2.18.1"), ("pyvqnet", "torch")),
    Contender("fallback", "qpeft, torch only", "adapter_qpeft", (), ("qpeft", "torch"), (("QPEFT_NATIVE", "0"),)),
    Contender("naive", "naive torch", "adapter_naive", (), ("torch",)),
)


def environments(given: str | None = None) -> Path:
    """The folder of the environments: the option, else the variable, else ``envs`` beside this file."""
    return Path(given or os.environ.get(FOLDER_VARIABLE) or HERE / "envs").expanduser().resolve()
