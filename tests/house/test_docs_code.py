"""README and documentation speak the truth: Python blocks run, command lines parse, make targets exist.

The blocks of a page run in order and share their names, in an empty folder, with a tiny model in place of SmolLM2. A
block whose first line is `# no-run: reason` is not run.
"""

import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest
from command_lines import parse_command

import qpeft.models

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes" / "README.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, *languages: str) -> list[str]:
    return [code for language, code in BLOCK.findall(page.read_text(encoding="utf-8")) if language in languages]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def tiny(llama_base, monkeypatch):
    """Gives a tiny model where a page asks for SmolLM2."""
    for function in ("load_model", "load_tokenizer"):
        original = getattr(qpeft.models, function)

        def load(name, *, original=original, **options):
            assert name == "smollm2-135m-instruct", f"pages use one model, not {name}"
            return original(str(llama_base), **options)

        monkeypatch.setattr(qpeft.models, function, load)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_python_blocks_run(page, tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "page"}
    _prepare(tmp_path)
    for number, code in enumerate(blocks(page, "python"), start=1):
        if code.startswith("# no-run: "):
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(code, f"{name_of(page)}, block {number}", "exec"), names)


def _prepare(folder: Path) -> None:
    """The one data file a page works on: MAWPS as it comes, in one file."""
    data = folder / "data" / "mawps"
    data.mkdir(parents=True)
    line = '{{"question": "Tom has 3 apples.", "equation_prefix": "+ 3 4", "answer": 7, "fold0": "{}"}}\n'
    (data / "mawps.jsonl").write_text(line.format("train") + line.format("dev"), encoding="utf-8")


def commands(page: Path) -> list[list[str]]:
    """Words of the `qpeft` and `make` lines of shell blocks, and of such commands in running text."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code in blocks(page, "bash", "") for line in code.splitlines()]
    lines += re.findall(r"`((?:qpeft|make) [^`]+)`", BLOCK.sub("", text))
    return [shlex.split(line, comments=True) for line in lines if line.startswith(("qpeft ", "make "))]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_command_lines_parse(page):
    for words in commands(page):
        if words[0] == "qpeft":
            parse_command(words)


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for words in commands(page):
            if words[0] == "make":
                assert {word for word in words[1:] if "=" not in word} <= targets, f"{name_of(page)}: {words}"


def test_links_within_the_repository_lead_somewhere():
    """Links of README and the like; the site's own are checked when it is built."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            if not target.startswith(("http", "mailto:")) and not target.endswith(".png"):
                assert (page.parent / target).exists(), f"{name_of(page)}: {target}"
