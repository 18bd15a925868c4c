"""YAML as people mean it: `2e-4` is a number, and a key that stands there twice is an error."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from qpeft.errors import InputError
from qpeft.training.keys import nearest


class StrictLoader(yaml.SafeLoader):
    """YAML 1.1 reads `2e-4` as text, where people mean the number, and lets the second of two equal keys win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} stands there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*\.?[\d_]*([eE][-+]?\d+)|\d[\d_]*\.[\d_]*|\.\d[\d_]*([eE][-+]?\d+)?|\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)


def read_yaml(path: Path, what: str = "recipe", others: Iterable[str] = ()) -> Any:
    """The content of a YAML file.

    Args:
        path: The file.
        what: What it is called in messages.
        others: Names that could have been meant, should there be no such file, besides its neighbours.

    Raises:
        InputError: the file is missing, cannot be read, or is not YAML; the message names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        near = nearest(str(path), [*(str(other) for other in path.parent.glob("*.y*ml")), *others])
        raise InputError(f"there is no {what} {path}{near}") from error
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise InputError(f"the {what} {path} cannot be read ({reason}): give a YAML file") from error
    try:
        return yaml.load(text, StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{where}: not valid YAML ({getattr(error, 'problem', error)})") from error
