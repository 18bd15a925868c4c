"""From the name a user gives to a folder that transformers can load.

In this order: a local folder; a GGUF file (converted once, then from the cache); the hub's cache; for a known model
the cache of models converted earlier; the hub; for a known model, when the hub is out of reach, its package.
"""

import logging
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qpeft.errors import InputError
from qpeft.models import hub, packages
from qpeft.models.cache import cached, cached_or_built, sha256_of
from qpeft.models.convert import check_gguf, convert_gguf
from qpeft.models.folder import check_folder
from qpeft.models.known import KnownModel, find_known, suggest
from qpeft.models.progress import Progress, report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedModel:
    """A model that lies on this machine, ready to be loaded.

    Attributes:
        reference: The name to write down: hub name, or absolute path of the folder or GGUF file.
        folder: Where its files are, in the transformers format.
        source: How it was found: "folder", "gguf", "hub" or "package".
        version: What pins its content: the hub's commit, the SHA-256 of the GGUF file, the package and its version;
            None for a folder.
    """

    reference: str
    folder: Path
    source: Literal["folder", "gguf", "hub", "package"]
    version: str | None = None


def resolve_model(name: str, *, progress: Progress | None = None) -> ResolvedModel:
    """Find a model, downloading and converting it if need be.

    Args:
        name: A folder in the transformers format, a path ending in `.gguf`, a name on the Hugging Face hub, or the
            alias of a known model (`qpeft.models.KNOWN_MODELS`).
        progress: Receives one sentence a step (downloading, converting).

    Returns:
        Where it is, and what pins its content.

    Raises:
        InputError: There is no such model, it is damaged, or it can be neither found nor fetched.
    """
    if not name.strip():
        raise InputError(f"the model's name is empty; give a folder, a GGUF file or a hub name ({suggest(name)})")
    path = Path(name).expanduser()
    if path.is_dir():
        check_folder(path)
        return ResolvedModel(str(path.absolute()), path.absolute(), "folder")
    if path.suffix.lower() == ".gguf":
        return _from_gguf(path, progress)
    if path.exists():
        raise InputError(
            f"'{name}' is a file but no GGUF file; give a model folder, a path ending in .gguf or a hub name"
        )
    if _looks_like_path(name):
        raise InputError(f"there is no model folder '{name}'; {suggest(path.name)}")
    known = find_known(name)
    return _from_hub(name) or _from_network(name, progress) if known is None else _from_known(known, progress)


def _looks_like_path(name: str) -> bool:
    return name.startswith((".", "/", "~")) or "\\" in name or name.endswith("/") or name.count("/") > 1


def _from_gguf(path: Path, progress: Progress | None) -> ResolvedModel:
    if not path.is_file():
        raise InputError(f"there is no GGUF file '{path}'; check the path, or give a folder or hub name")
    check_gguf(path)
    path = path.absolute()
    digest = sha256_of(path)

    def build(scratch: Path, target: Path) -> None:
        report(progress, f"converting {path.name} (once; later loads take it from the cache)")
        convert_gguf(path, target)

    folder = cached_or_built(_key(path.stem, digest), build, progress)
    return ResolvedModel(str(path), folder, "gguf", digest)


def _from_hub(name: str) -> ResolvedModel | None:
    folder = hub.in_hub_cache(name)
    return None if folder is None else ResolvedModel(name, folder, "hub", folder.name)


def _from_network(name: str, progress: Progress | None) -> ResolvedModel:
    try:
        folder = hub.download(name, progress)
    except hub.HubUnreachable as error:
        raise InputError(
            f"'{name}' is no folder, no GGUF file and not in the hub's cache, and the model hub cannot be reached "
            f"({error}); connect to the network once, or give a model folder; {suggest(name)}"
        ) from error
    check_folder(folder)
    return ResolvedModel(name, folder, "hub", folder.name)


def _from_known(known: KnownModel, progress: Progress | None) -> ResolvedModel:
    found = _from_hub(known.reference)
    if found is not None:
        return found
    key = _key(known.alias, known.weights_sha256)
    folder = cached(key)
    if folder is None:
        try:
            return _from_hub_download(known, progress)
        except hub.HubUnreachable as error:
            report(progress, f"the model hub cannot be reached ({error}); taking {known.alias} from a package")
        folder = cached_or_built(key, lambda scratch, target: _build(known, scratch, target, progress), progress)
    return ResolvedModel(known.reference, folder, "package", known.requirement)


def _from_hub_download(known: KnownModel, progress: Progress | None) -> ResolvedModel:
    folder = hub.download(known.reference, progress)
    check_folder(folder)
    return ResolvedModel(known.reference, folder, "hub", folder.name)


def _build(known: KnownModel, scratch: Path, target: Path, progress: Progress | None) -> None:
    files = packages.fetch_files(known, scratch, progress)
    if known.gguf is not None:
        report(progress, f"converting {Path(known.gguf).name} (once; later loads take it from the cache)")
        convert_gguf(files / known.gguf, target)
    else:
        for name in known.files:
            shutil.copyfile(files / name, target / Path(name).name)


def _key(name: str, digest: str) -> str:
    """A folder name that tells the model to a reader and its content to the cache."""
    return f"{re.sub(r'[^a-z0-9]+', '-', name.lower()).strip('-')}-{digest[:12]}"
