"""A document as a list of blocks, written as markdown and as one HTML page: both say the same, from one source."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape as escape_html
from pathlib import Path
from typing import Any

from qpeft.compare.page import embed_picture, render_page

_STYLE = """body { max-width: 70rem; } th, td { padding: .35rem .6rem; } table { font-size: .94rem; }
h3 { font-size: 1.05rem; margin: 1.8rem 0 .4rem; } h1, h2, h3, p, li { overflow-wrap: anywhere; }
.verdict { border-left: 4px solid #3b4cc0; background: #3b4cc01c; padding: .6rem 1rem; border-radius: 0 6px 6px 0;
  font-size: 1.08rem; font-weight: 600; }
.warning { border-left: 4px solid #d95f02; background: #d95f021c; padding: .4rem 1rem; border-radius: 0 6px 6px 0; }
.note { color: inherit; opacity: .72; } figcaption { color: inherit; opacity: .72; }
td { vertical-align: top; } td:first-child { min-width: 11rem; }
.prose table { white-space: normal; } .prose td, .prose th { text-align: left; }
.prose td:first-child { min-width: 6rem; }
figure.wide img { min-width: 44rem; }
@media (max-width: 40rem) {
  table { font-size: .82rem; } th, td { padding: .3rem .4rem; } td:first-child { min-width: 7rem; }
  .prose thead { display: none; } .prose tr { display: block; border-bottom: 1px solid var(--line); padding: .4rem 0; }
  .prose td { display: block; border: 0; padding: .1rem 0; } .prose td:first-child { font-weight: 600; }
}
details { margin: 1rem 0; } summary { cursor: pointer; font-weight: 600; } pre { font-size: .88rem; }
"""


@dataclass(frozen=True)
class Heading:
    text: str
    level: int = 2


@dataclass(frozen=True)
class Paragraph:
    """`look` is `""`, `"verdict"`, `"warning"` or `"note"`."""

    text: str
    look: str = ""


@dataclass(frozen=True)
class Bullets:
    items: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text; the first column names the row, the others hold numbers, or `prose`."""

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: bool = False


@dataclass(frozen=True)
class Picture:
    """A PNG file in the document's folder or below."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Code:
    text: str


@dataclass(frozen=True)
class Details:
    """What opens on a click."""

    summary: str
    blocks: tuple[Block, ...]


Block = Heading | Paragraph | Bullets | Table | Picture | Code | Details


def to_html(title: str, blocks: Sequence[Block]) -> str:
    """One page that needs no other file, no network and no scripts."""
    from markupsafe import Markup

    content = Markup("\n").join(_html(block) for block in blocks)
    return render_page(title, "{{ content }}", _STYLE, content=content)


def to_markdown(title: str, blocks: Sequence[Block], folder: Path) -> str:
    """Markdown (GitHub's kind) with pictures by their path from `folder`."""
    return "\n\n".join([f"# {_md(title)}", *(_markdown(block, folder) for block in blocks)]) + "\n"


def _html(block: Block) -> Any:
    from markupsafe import Markup

    match block:
        case Heading(text, level):
            return Markup("<h{0}>{1}</h{0}>").format(level, text)
        case Paragraph(text, look):
            return Markup('<p class="{}">{}</p>').format(look, text) if look else Markup("<p>{}</p>").format(text)
        case Bullets(items):
            return Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(item) for item in items))
        case Table(heads, rows, prose):
            lines = [_row("th", heads), *(_row("td", row) for row in rows)]
            return Markup('<div class="{}"><table><thead>{}</thead>\n<tbody>{}</tbody></table></div>').format(
                "prose" if prose else "wide", lines[0], Markup("\n").join(lines[1:])
            )
        case Picture(path, caption):
            image = Markup('<img alt="{}" src="{}">').format(caption, embed_picture(path))
            return Markup('<figure class="wide">{}<figcaption>{}</figcaption></figure>').format(image, caption)
        case Code(text):
            return Markup("<pre>{}</pre>").format(text)
        case Details(summary, blocks):
            inside = Markup("\n").join(_html(inner) for inner in blocks)
            return Markup("<details><summary>{}</summary>\n{}\n</details>").format(summary, inside)


def _row(tag: str, cells: Sequence[str]) -> Any:
    from markupsafe import Markup

    return Markup("<tr>{}</tr>").format(
        Markup("").join(Markup("<{0}>{1}</{0}>").format(Markup(tag), cell) for cell in cells)
    )


def _markdown(block: Block, folder: Path) -> str:
    match block:
        case Heading(text, level):
            return f"{'#' * level} {_md(text)}"
        case Paragraph(text, look):
            return f"**{_md(text)}**" if look == "verdict" else f"> {_md(text)}" if look == "warning" else _md(text)
        case Bullets(items):
            return "\n".join(f"- {_md(item)}" for item in items)
        case Table(heads, rows, prose):
            rule = ["---", *["---" if prose else "--:"] * (len(heads) - 1)]
            lines = [[_md(cell) for cell in line] for line in (heads, *rows)]
            return "\n".join(f"| {' | '.join(line)} |" for line in [lines[0], rule, *lines[1:]])
        case Picture(path, caption):
            return f"![{_md(caption)}]({path.relative_to(folder).as_posix()})\n\n{_md(caption)}"
        case Code(text):
            fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
            return f"{fence}\n{text}\n{fence}"
        case Details(summary, blocks):
            inside = "\n\n".join(_markdown(inner, folder) for inner in blocks)
            return f"<details><summary>{escape_html(summary)}</summary>\n\n{inside}\n\n</details>"


def _md(text: str) -> str:
    """Text that markdown shows as it is: on one line, its signs not taken for markup, links or HTML."""
    text = re.sub(r"([\\`*|~]|<(?! ))", r"\\\1", " ".join(text.split()))
    text = re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text)
    return re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("](", r"]\(")
