"""A folder of ready models that two processes, a kill or a full disk cannot leave half-written.

A model is built in a scratch folder next to its place, every file is flushed to the disk, a manifest of SHA-256
checksums is written last, and one rename makes the whole folder appear. A lock file admits one builder at a time;
whoever holds it may remove scratch folders of the same model, since their builder must be dead.

Checksums are compared in full whenever a file's size or modification time is not the one the manifest recorded, and by
size and time alone otherwise: hashing 0.5 GB takes 0.3 to 1 s, hashing a 7B model half a minute, at each start.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from qpeft.errors import InputError
from qpeft.models.progress import Progress, report

logger = logging.getLogger(__name__)

MANIFEST = "qpeft-manifest.json"
FORMAT = 1  # raised when a conversion changes what it writes, so that older folders are built again

Build = Callable[[Path, Path], None]


def cache_root() -> Path:
    """The folder that keeps converted models: $QPEFT_CACHE, or `qpeft` in the platform's cache folder."""
    chosen = os.environ.get("QPEFT_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base.absolute() / "qpeft"


def cached(key: str) -> Path | None:
    """The folder of the model `key` if it is in the cache and whole, else None."""
    folder = _place(key)
    return folder if _is_whole(folder) else None


def cached_or_built(key: str, build: Build, progress: Progress | None = None) -> Path:
    """The folder of the model `key`, built first if it is not in the cache or is damaged.

    Args:
        key: Folder name; has to change when the model's content does.
        build: Called as `build(scratch, target)`: fills the empty folder `target`, may use the empty folder `scratch`.
        progress: Receives one sentence a step.

    Returns:
        The folder, complete and verified.

    Raises:
        InputError: The cache folder cannot be written to, or its disk is full.
    """
    found = cached(key)
    if found is not None:
        return found
    folder = _place(key)
    with _explained(folder.parent), _locked(key, progress):
        if _is_whole(folder):  # another process built it while this one waited for the lock
            return folder
        if folder.exists():
            logger.warning("the cached model in %s is damaged and is built again", folder)
        _remove_scratch(key)
        work = Path(tempfile.mkdtemp(prefix=_scratch_prefix(key), dir=folder.parent))
        try:
            _build_in(work, folder, build)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether a full disk (or quota) is behind `error`, also where a library wrapped it into an error of its own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(link) for sign in ("No space left on device", "os error 28", "os error 122")):
            return True
        link = link.__cause__ or link.__context__
    return False


def _place(key: str) -> Path:
    return cache_root() / "models" / key


def _scratch_prefix(key: str) -> str:
    return f".partial-{key}-"


def _build_in(work: Path, folder: Path, build: Build) -> None:
    scratch, target = work / "scratch", work / "model"
    scratch.mkdir()
    target.mkdir()
    build(scratch, target)
    for path in _files(target):  # safetensors come out readable to their owner alone; a cache may be shared
        path.chmod(target.stat().st_mode & 0o666)
    _write_manifest(target)
    for path in sorted(target.rglob("*")):
        _flush(path)
    _flush(target)
    if folder.exists():
        folder.rename(work / "damaged")
    target.rename(folder)
    _flush(folder.parent)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in _files(folder):
        stat = path.stat()
        files[path.relative_to(folder).as_posix()] = {
            "sha256": sha256_of(path),
            "size": stat.st_size,
            "mtime_ns": stat.st_mtime_ns,
        }
    _store_manifest(folder, files)


def _store_manifest(folder: Path, files: dict[str, dict]) -> None:
    text = json.dumps({"format": FORMAT, "files": files}, indent=1)
    draft = folder / f"{MANIFEST}.{os.getpid()}"
    draft.write_text(text, encoding="utf-8")
    draft.replace(folder / MANIFEST)


def _is_whole(folder: Path) -> bool:
    """Whether every file the manifest lists is there and unchanged (the module's text says what is compared)."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT or not manifest["files"]:
            return False
        moved = False
        for name, recorded in manifest["files"].items():
            stat = (folder / name).stat()
            if stat.st_size != recorded["size"]:
                return False
            if stat.st_mtime_ns != recorded["mtime_ns"]:
                if sha256_of(folder / name) != recorded["sha256"]:
                    return False
                recorded["mtime_ns"] = stat.st_mtime_ns
                moved = True
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    if moved:  # copied or touched, yet intact: note the new times, so that the next start need not hash again
        with contextlib.suppress(OSError):
            _store_manifest(folder, manifest["files"])
    return True


def _remove_scratch(key: str) -> None:
    for leftover in _place(key).parent.glob(f"{_scratch_prefix(key)}*"):
        logger.info("removing %s, left by a process that was stopped", leftover)
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(key: str, progress: Progress | None) -> Iterator[None]:
    from filelock import FileLock, Timeout

    folder = _place(key).parent
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{key}.lock")  # the system releases it when its process dies
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(progress, f"waiting for another process that is preparing {key}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Turn what a disk can do wrong into one sentence."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_disk_full(error):
            raise InputError(
                f"no space left for the model in {folder}; free some, or set QPEFT_CACHE to a folder on a larger disk"
            ) from error
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise InputError(
                f"the model cannot be stored in {folder} ({reason}); set QPEFT_CACHE to a folder you can write to"
            ) from error
        raise


def _flush(path: Path) -> None:
    if path.is_dir() and sys.platform == "win32":
        return  # Windows cannot open a folder to flush it
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
