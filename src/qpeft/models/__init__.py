"""Finding and loading base models: a folder, a GGUF file, a name on the model hub, or a known model from a package."""

from qpeft.models.cache import cache_root
from qpeft.models.known import KNOWN_MODELS, KnownModel
from qpeft.models.load import load_model, load_tokenizer
from qpeft.models.resolve import ResolvedModel, resolve_model

__all__ = [
    "KNOWN_MODELS",
    "KnownModel",
    "ResolvedModel",
    "cache_root",
    "load_model",
    "load_tokenizer",
    "resolve_model",
]
