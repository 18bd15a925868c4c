"""The Hugging Face hub: what its local cache already holds, and a download that keeps no offline machine waiting."""

import logging
from pathlib import Path

from qpeft.deadline import within
from qpeft.errors import InputError
from qpeft.models.folder import check_folder
from qpeft.models.known import suggest
from qpeft.models.progress import Progress, report

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 4.0  # how long the hub may take to say whether it has a model, before it counts as out of reach

_TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]


class HubUnreachable(Exception):
    """The hub cannot be asked: no network, no answer in time, or offline mode was set."""


def in_hub_cache(name: str) -> Path | None:
    """The folder of a model that was downloaded from the hub before, if all of it is there; asks no network."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True))
        check_folder(folder)
    except (OSError, ValueError):  # not there; or only its tokenizer is; or the name is no hub name
        return None
    return folder


def download(name: str, progress: Progress | None = None) -> Path:
    """Download a model from the hub into the hub's cache.

    Args:
        name: `owner/model`.
        progress: Receives one sentence a step.

    Returns:
        The folder that holds it.

    Raises:
        HubUnreachable: There is no way to the hub.
        InputError: The hub has no such model, does not let this user have it, or the download broke off.
    """
    from huggingface_hub import snapshot_download

    files = _ask(name)
    weights = "*.safetensors" if any(f.endswith(".safetensors") and "/" not in f for f in files) else "*.bin"
    report(progress, f"downloading {name} from the model hub")
    try:
        folder = snapshot_download(name, allow_patterns=[*_TEXT_FILES, weights], ignore_patterns=["*/*"])
    except Exception as error:  # the hub's client passes on errors of whichever network library it is built on
        if _is_refusal(error):
            raise _refused(name, error) from error
        raise InputError(
            f"the download of '{name}' from the model hub broke off ({_short(error)}); "
            "run the same command again: it goes on where it stopped"
        ) from error
    return Path(folder)


def _ask(name: str) -> list[str]:
    """The names of the model's files, or why there are none."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise InputError(f"'{name}' is no folder, no GGUF file and no possible hub name; {suggest(name)}") from error
    try:
        info = within(ANSWER_SECONDS, lambda: HfApi().model_info(name, timeout=ANSWER_SECONDS))
    except OfflineModeIsEnabled as error:
        raise HubUnreachable("HF_HUB_OFFLINE is set") from error
    except Exception as error:  # as above: any network library's errors
        if _is_refusal(error):
            raise _refused(name, error) from error
        raise HubUnreachable(_short(error)) from error
    return [sibling.rfilename for sibling in info.siblings or []]


def _is_refusal(error: Exception) -> bool:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    return isinstance(error, GatedRepoError | RepositoryNotFoundError)


def _refused(name: str, error: Exception) -> InputError:
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        return InputError(
            f"the model hub gives '{name}' only to those who accepted its terms; "
            "accept them on the model's page and log in with `hf auth login`"
        )
    return InputError(
        f"'{name}' is no folder, no GGUF file and no model the hub shows to you; if it is private, log in with "
        f"`hf auth login`; {suggest(name)}"
    )


def _short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0].rstrip(".")
