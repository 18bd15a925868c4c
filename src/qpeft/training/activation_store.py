"""Hidden states of samples on disk: bounded, shared by processes, never half-written.

    folder/.lock  .used            one writer at a time; bytes taken, over all variants
    folder/VARIANT/ab/KEY          one safetensors file a sample: `hidden` (length, width) and its CRC-32

A file appears by a rename and is read without a lock. One that was damaged is found by its checksum and made again.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

#: a file takes whole blocks of the disk
_BLOCK = 4096

#: seconds after which another process's lock is no longer waited for
_PATIENCE = 10.0


class ActivationStore:
    """Tensors by key, in no more than `max_bytes` of a folder that other processes may use as well.

    Args:
        folder: Where they are kept; the bound is that of the whole folder.
        variant: Part of the folder whose keys belong together.
        max_bytes: Blocks of the disk that all variants may take.

    Attributes:
        closed: Why nothing more is written, or None.

    Raises:
        OSError: The folder cannot be written.
    """

    def __init__(self, folder: Path, variant: str, max_bytes: int) -> None:
        self.folder = folder
        self.max_bytes = max_bytes
        self.closed: str | None = None
        self._place = folder / variant
        self._place.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(folder / ".lock")
        with self._locked():
            self._note_used(self._measured())

    def get(self, key: str) -> Tensor | None:
        """The tensor of a key; None if there is none, or a damaged one."""
        try:
            tensors = load(self._file(key).read_bytes())
            if int(tensors["crc"]) == _checksum(tensors["hidden"]):
                return tensors["hidden"]
        except (OSError, SafetensorError, KeyError, ValueError):
            pass
        return None

    def put(self, key: str, hidden: Tensor) -> bool:
        """Keep a tensor `(length, width)` of the processor, if there is room; whether it is kept."""
        if self.closed is not None:
            return False
        hidden = hidden.contiguous()
        data = save({"hidden": hidden, "crc": torch.tensor(_checksum(hidden))})
        file = self._file(key)
        draft = self._place / f".part-{os.getpid()}"
        try:
            with self._locked():
                used, size = self._used(), _taken(len(data)) - (_taken(file.stat().st_size) if file.exists() else 0)
                if used + size > self.max_bytes:
                    self.closed = f"the {self.max_bytes / 1e9:g} GB for them are full"
                    return False
                file.parent.mkdir(exist_ok=True)
                draft.write_bytes(data)
                draft.replace(file)
                self._note_used(used + size)
        except OSError as error:
            self.closed = f"they cannot be written ({error.strerror or error})"
            with suppress(OSError):
                draft.unlink(missing_ok=True)
            return False
        return True

    def _file(self, key: str) -> Path:
        return self._place / key[:2] / key

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.acquire(timeout=_PATIENCE):
            yield

    def _used(self) -> int:
        try:
            return int((self.folder / ".used").read_text())
        except (OSError, ValueError):
            return self._measured()

    def _note_used(self, used: int) -> None:
        (self.folder / ".used").write_text(str(used))

    def _measured(self) -> int:
        """Bytes that all files take, after what a killed process left half-written was removed."""
        total = 0
        for path in self.folder.glob("*/**/*"):
            with suppress(FileNotFoundError):
                if path.name.startswith(".part-"):
                    path.unlink()
                elif path.is_file():
                    total += _taken(path.stat().st_size)
        return total


def _taken(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _checksum(hidden: Tensor) -> int:
    return zlib.crc32(hidden.contiguous().view(torch.uint8).numpy().data)
