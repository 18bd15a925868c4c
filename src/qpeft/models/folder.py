"""Whether a folder holds a whole model in the transformers format, told before anything heavy is loaded."""

import json
import struct
from pathlib import Path

from qpeft.errors import InputError

_SINGLE = ("model.safetensors", "pytorch_model.bin")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def check_folder(folder: Path) -> None:
    """Refuse a folder that is not a model, or not all of one.

    Args:
        folder: An existing folder.

    Raises:
        InputError: No or unreadable `config.json`, no weights, a missing shard, or a truncated safetensors file.
    """
    _check_config(folder)
    weights = _weight_files(folder)
    for path in weights:
        if not path.is_file():
            raise InputError(f"model folder '{folder}' lacks its weight file {path.name}; copy or download it again")
        if path.suffix == ".safetensors":
            _check_safetensors(path)


def _check_config(folder: Path) -> None:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / "adapter_config.json").is_file():
            raise InputError(
                f"folder '{folder}' holds an adapter, not a base model; load it with qpeft.load, "
                "or give the base model it was trained on"
            )
        ggufs = sorted(folder.glob("*.gguf"))
        if ggufs:
            raise InputError(
                f"folder '{folder}' has no config.json but a GGUF file; give the file itself: '{ggufs[0]}'"
            )
        raise InputError(
            f"folder '{folder}' has no config.json, so it is not a model in the transformers format; "
            "give the folder that save_pretrained wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"'{path}' cannot be read as JSON ({error}); copy or download the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"'{path}' holds a {type(config).__name__} instead of an object; download the model again")


def _weight_files(folder: Path) -> list[Path]:
    for name in _SINGLE:
        if (folder / name).exists():
            return [folder / name]
    for name in _INDEXES:
        path = folder / name
        if path.exists():
            try:
                shards = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"'{path}' is not a weight index ({error!r}); download the model again") from error
            return [folder / shard for shard in sorted(shards)]
    raise InputError(
        f"model folder '{folder}' has no weights (looked for {', '.join(_SINGLE + _INDEXES)}); "
        "copy or download them next to config.json"
    )


def _check_safetensors(path: Path) -> None:
    """Compare the file's size with what its header announces: 8 bytes of header length, the header, the tensors."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (header_size,) = struct.unpack("<Q", file.read(8))
            if header_size > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(header_size))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise InputError(f"weight file '{path}' is damaged ({error}); copy or download it again") from error
    expected = 8 + header_size + max(ends, default=0)
    if size != expected:
        raise InputError(
            f"weight file '{path}' is damaged: {size:,} bytes instead of {expected:,}; copy or download it again"
        )
