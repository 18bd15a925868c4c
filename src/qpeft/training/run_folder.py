"""The run folder: everything a run leaves behind, written so that a crash at any moment loses nothing.

```
runs/NAME/
  recipe.yaml        the resolved recipe            versions.json   packages and machine
  metrics.jsonl      one line per logged step       result.json     the numbers of the finished run
  answers.jsonl      what it answered, if measured
  checkpoints/       to resume from                 adapter/        the trained adapter and tokenizer
  tensorboard/       event files                    plots/          PNG files
  activations/       until the run is finished, if it keeps them
```
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from qpeft.errors import InputError
from qpeft.version import __version__

#: written into a checkpoint after the trainer has finished it: sizes of its files, by which one that was cut off
#: while being written, or half removed, is told apart
COMPLETE = "complete.json"


class RunFolder:
    """Paths and small atomic files of one run."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.versions = self.path / "versions.json"
        self.metrics = self.path / "metrics.jsonl"
        self.result = self.path / "result.json"
        self.answers = self.path / "answers.jsonl"
        self.adapter = self.path / "adapter"
        self.checkpoints = self.path / "checkpoints"
        self.tensorboard = self.path / "tensorboard"
        self.plots = self.path / "plots"
        self.activations = self.path / "activations"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and hold it for this process.

        Raises:
            InputError: the folder cannot be written, or another process is using it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = open(self.path / ".lock", "a+")  # noqa: SIM115  (held open until the run ends)
        except OSError as error:
            raise InputError(
                f"the run folder {self.path} cannot be written ({error.strerror}): set output to another folder"
            ) from error
        with lock:
            if not _try_lock(lock):
                raise InputError(f"another run is using {self.path}: wait for it, or set output to another folder")
            try:
                yield
            finally:
                if os.listdir(self.path) == [".lock"]:  # refused before anything was written: leave no trace
                    with suppress(OSError):
                        os.unlink(self.path / ".lock")
                        self.path.rmdir()

    def holds_run(self) -> bool:
        """Whether a run was started here.

        Raises:
            InputError: the folder holds something else, which a run could damage.
        """
        if self.recipe.exists():
            return True
        others = [name for name in os.listdir(self.path) if not name.startswith(".")] if self.path.exists() else []
        if others:
            raise InputError(f"{self.path} holds {sorted(others)[0]} but no run: set output to a new or empty folder")
        return False

    def complete_checkpoints(self) -> list[Path]:
        """The checkpoints that were written completely, oldest first."""
        return sorted(filter(_is_complete, self._all_checkpoints()), key=step_of)

    def remove_partial_checkpoints(self) -> None:
        """Remove what a killed run left half-written or half-removed."""
        for folder in self._all_checkpoints():
            if not _is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _all_checkpoints(self) -> list[Path]:
        return [path for path in self.checkpoints.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written completely."""
        complete = self.complete_checkpoints()
        return complete[-1] if complete else None

    def rewind_metrics(self, step: int) -> None:
        """Drop metric lines after `step` (they will be made again) and a last line that was cut off."""
        kept = [line for line in read_metrics(self.metrics) if line.get("step", 0) <= step]
        write_text(self.metrics, "".join(json.dumps(line) + "\n" for line in kept))

    def remove_activations(self) -> None:
        """Remove the activations that a finished run kept here."""
        shutil.rmtree(self.activations, ignore_errors=True)

    def clear(self) -> None:
        """Remove what an earlier run left, and nothing else; the recipe, which makes it a run, goes last."""
        for folder in (self.checkpoints, self.adapter, self.tensorboard, self.plots, self.activations):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.result, self.answers, self.metrics, self.versions, self.recipe):
            file.unlink(missing_ok=True)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def mark_complete(checkpoint: Path) -> None:
    """Flush every file of a checkpoint to the disk, then say that it is whole."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    write_json(checkpoint / COMPLETE, {str(path.relative_to(checkpoint)): path.stat().st_size for path in files})


def _is_complete(checkpoint: Path) -> bool:
    try:
        sizes = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        return all((checkpoint / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError, AttributeError):
        return False


def _try_lock(file: Any) -> bool:
    if sys.platform == "win32":
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new text, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The metric lines of a run; a last line that was cut off by a crash is ignored."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(line))
    return lines


def versions() -> dict[str, Any]:
    """Packages and machine, as needed to repeat a run or to judge its speed."""
    import torch

    packages: dict[str, str | None] = {}
    for name in ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "numpy", "safetensors"):
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            packages[name] = None
    return {
        "qpeft": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": packages,
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


@cache
def _commit() -> str | None:
    """Of the checkout this package is used from, if it is one."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    try:
        said = subprocess.run(["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    except OSError:
        return None
    return said.stdout.strip() or None


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
