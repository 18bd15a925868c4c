"""Registration of the adapters with peft, from outside.

peft looks every method up in three module-level dictionaries, keyed by a string-valued enum member. An own enum whose
member names equal their values is interchangeable with peft's, with the plain string in ``adapter_config.json``, and
with what transformers expects of ``peft_type``; so nothing in peft has to be patched.
"""

from enum import Enum

from peft import PeftConfig, mapping
from peft.tuners.tuners_utils import BaseTuner


class QPeftType(str, Enum):  # noqa: UP042 - StrEnum would change what str() prints, which peft's own members do not
    """The methods this package adds. A member's name must equal its value: its hash is that of the name."""

    QTHA = "QTHA"


def register(kind: QPeftType, config_class: type[PeftConfig], model_class: type[BaseTuner]) -> None:
    """Tell peft about a method; a second call with the same classes does nothing.

    Args:
        kind: The method. Its parameters' names must start with the lower-case name and an underscore, because
            transformers derives that prefix from the name.
        config_class: Configuration class, recreated from ``adapter_config.json``.
        model_class: Tuner class.

    Raises:
        RuntimeError: peft, or another package, already has a method of that name or a prefix of that kind.
    """
    owner = mapping.PEFT_TYPE_TO_TUNER_MAPPING.get(kind)  # type: ignore[call-overload]
    if owner is model_class:
        return
    if owner is not None:
        raise RuntimeError(
            f"peft already has a method called {kind.value} ({owner.__module__}.{owner.__qualname__}): "
            "uninstall the package that registers it, or use a qpeft version that knows of it"
        )
    prefix = f"{kind.value.lower()}_"
    if model_class.prefix != prefix or prefix in mapping.PEFT_TYPE_TO_PREFIX_MAPPING.values():
        raise RuntimeError(
            f"the parameters of {kind.value} must have the prefix {prefix!r}, used by no other method "
            f"(got {model_class.prefix!r})"
        )
    mapping.PEFT_TYPE_TO_CONFIG_MAPPING[kind] = config_class  # type: ignore[index]
    mapping.PEFT_TYPE_TO_TUNER_MAPPING[kind] = model_class  # type: ignore[index]
    mapping.PEFT_TYPE_TO_PREFIX_MAPPING[kind] = prefix  # type: ignore[index]
