"""Hooks of the documentation's build: the recipe reference is written from the code, so it cannot fall behind."""

from __future__ import annotations

import re
import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

PLACE = "<!-- recipe reference -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace(PLACE, recipe_reference()) if PLACE in markdown else markdown


def recipe_reference() -> str:
    """A table for each section of a recipe: every key with its type, default and meaning."""
    from qpeft.training.recipe import Recipe

    parts = ["| key | type | default | meaning |\n| --- | --- | --- | --- |"]
    sections = {}
    for name, field in Recipe.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections[name] = field.annotation
        else:
            parts.append(_row(name, field))
    text = ["## Top level\n", "\n".join(parts), ""]
    for name, section in sections.items():
        rows = [_row(f"{name}.{key}", field) for key, field in section.model_fields.items()]
        summary = re.sub(r"\s+", " ", section.__doc__ or "").strip()
        text += [f"## {name}\n", summary + "\n", "| key | type | default | meaning |\n| --- | --- | --- | --- |"]
        text += [*rows, ""]
    return "\n".join(text)


def _row(key: str, field: FieldInfo) -> str:
    default = "required" if field.is_required() else f"`{_yaml(field.get_default(call_default_factory=True))}`"
    meaning = field.description or "as in transformers' `TrainingArguments`"
    limits = _limits(field)
    return f"| `{key}` | {_type(field.annotation)}{limits} | {default} | {meaning} |".replace("<<", "&lt;&lt;")


def _type(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is dict or annotation is dict:
        return "mapping"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limits(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(limit, name)}"
        for limit in field.metadata
        for name, sign in signs.items()
        if getattr(limit, name, None) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _yaml(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if value == {} else str(value)
