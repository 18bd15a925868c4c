"""A report in one HTML file: no network, no scripts, pictures inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qpeft.compare.page import embed_picture, render_page
from qpeft.training.run_folder import write_text

_STYLE = """.example { border-left: 3px solid var(--soft); padding-left: 1rem; margin: 1.2rem 0; }
.example td { white-space: pre-line; vertical-align: top; text-align: left;
  font-family: ui-monospace, monospace; font-size: .88rem; }
"""

_BODY = """{% for line in summary %}<p>{{ line }}</p>{% endfor %}
<div class="wide"><table><thead><tr>{% for head in heads %}<th>{{ head }}</th>{% endfor %}</tr></thead>
<tbody>{% for row in rows %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}</tbody>
</table></div>
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
{% for picture in pictures %}<figure><img alt="{{ picture.caption }}" src="{{ picture.data }}">
<figcaption>{{ picture.caption }}</figcaption></figure>{% endfor %}
{% if examples %}<h2>What they answer</h2>
{% for example in examples %}<div class="example"><p>{{ example.question }}</p><div class="wide"><table><tbody>
{% for name, text in example.answers %}<tr><td>{{ name }}</td><td>{{ text }}</td></tr>{% endfor %}
</tbody></table></div></div>{% endfor %}
{% endif %}
<h2>Repeat it</h2>
<pre>{{ commands }}</pre>
<p class="note">{{ made_on }}</p>
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
    shown = [{"data": embed_picture(file), "caption": caption} for file, caption in pictures]
    write_text(
        path,
        render_page(
            title, _BODY, _STYLE, summary=summary, heads=heads, rows=rows, notes=notes, pictures=shown,
            examples=examples, commands=commands, made_on=made_on,
        ),
    )  # fmt: skip
    return path
