"""The plain page that says what is served: one HTML document without scripts or anything from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape

from qpeft.serving.engine import Engine
from qpeft.serving.models import ServedModel

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 48rem; padding: 0 1rem; }
h1 { font-size: 1.4rem; } pre { overflow-x: auto; padding: .8rem; border: 1px solid #8884; }
th, td { text-align: left; padding: .2rem 1.5rem .2rem 0; }
"""


def render_page(models: Sequence[ServedModel], engine: Engine, url: str) -> str:
    """The page as it is now."""
    rows = "".join(
        f"<tr><td><code>{escape(served.name)}</code></td>"
        f"<td>{escape(f'{served.method} on {served.base}' if served.method else 'base model')}</td>"
        f"<td>{served.window or 'unknown'}</td></tr>"
        for served in models
    )
    body = json.dumps({"model": models[0].name, "messages": [{"role": "user", "content": "Hello"}]})
    command = f"curl {url}v1/chat/completions -H 'Content-Type: application/json' -d '{body}'"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>qpeft serve</title><style>{_STYLE}</style></head><body><h1>qpeft serve</h1>"
        f"<table><thead><tr><th>Model</th><th>What it is</th><th>Window</th></tr></thead><tbody>{rows}</tbody></table>"
        f"<p>{engine.answered} answered, {engine.open_jobs} open; at most {engine.queue_size} wait.</p>"
        f"<pre>{escape(command)}</pre></body></html>"
    )
