"""A report in one HTML file: no network, no scripts, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpeft.training.run_folder import write_text

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
.example { border-left: 3px solid var(--soft); padding-left: 1rem; margin: 1.2rem 0; }
.example td { white-space: pre-line; vertical-align: top; text-align: left;
  font-family: ui-monospace, monospace; font-size: .88rem; }
</style></head><body>
<h1>{{ title }}</h1>
{% for line in summary %}<p>{{ line }}</p>{% endfor %}
<div class="wide"><table><thead><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
{% for picture in pictures %}<figure><img alt="{{ picture.caption }}" src="data:image/png;base64,{{ picture.data }}">
<figcaption>{{ picture.caption }}</figcaption></figure>{% endfor %}
{% if examples %}<h2>What they answer</h2>
{% for example in examples %}<div class="example"><p>{{ example.question }}</p><div class="wide"><table><tbody>
{% for name, text in example.answers %}<tr><td>{{ name }}</td><td>{{ text }}</td></tr>{% endfor %}
</tbody></table></div></div>{% endfor %}
{% endif %}
<h2>Repeat it</h2>
<pre>{{ commands }}</pre>
<p class="note">{{ made_on }}</p>
</body></html>
"""


def write_report(
    path: Path,
    title: str,
    summary: Sequence[str],
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str],
    pictures: Sequence[tuple[Path, str]],
    examples: Sequence[dict[str, Any]],
    commands: str,
    made_on: str,
) -> Path:
    """Write the report.

    Args:
        path: The HTML file.
        title: Its heading.
        summary: Paragraphs above the table.
        heads: Column heads of the table.
        rows: Its rows, as text.
        notes: Small print under the table.
        pictures: PNG files with their captions; they are put into the page.
        examples: `{"question", "answers": [(arm, text), ...]}`.
        commands: What to type to repeat the result.
        made_on: Versions and machine.
    """
    from jinja2 import Environment

    page = Environment(autoescape=True).from_string(_PAGE)
    shown = [
        {"data": base64.b64encode(file.read_bytes()).decode("ascii"), "caption": caption} for file, caption in pictures
    ]
    write_text(
        path,
        page.render(
            title=title, summary=summary, heads=heads, rows=rows, notes=notes, pictures=shown, examples=examples,
            commands=commands, made_on=made_on,
        ),
    )  # fmt: skip
    return path
