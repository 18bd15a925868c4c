"""The skeleton that all reports share: one HTML file without network and scripts, readable in light and dark."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; --soft: #8888; }
body { font: 16px/1.55 system-ui, sans-serif; max-width: 62rem; margin: 2.5rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.7rem; line-height: 1.2; } h2 { font-size: 1.2rem; margin-top: 2.4rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { text-align: right; padding: .4rem .8rem; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th, td:first-child { white-space: normal; } th { font-weight: 600; vertical-align: bottom; }
figure { margin: 1.2rem 0; } img { max-width: 100%; background: white; border-radius: 6px; }
figcaption, .note { color: gray; font-size: .92rem; }
pre { overflow-x: auto; padding: .8rem; background: #8881; border-radius: 6px; }
{{ style }}</style></head><body>
<h1>{{ title }}</h1>
{{ body }}</body></html>
"""


def render_page(title: str, body: str, style: str = "", **values: Any) -> str:
    """A page of HTML.

    Args:
        title: Its heading, as text.
        body: A Jinja template of what follows the heading; whatever it puts in is escaped.
        style: Further CSS.
        values: What the template names.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True)
    content = environment.from_string(body).render(**values) + "\n"
    return environment.from_string(_PAGE).render(title=title, style=Markup(style), body=Markup(content))


def embed_picture(path: Path) -> str:
    """A PNG file as the address of an image, so that the page needs no other file."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")
