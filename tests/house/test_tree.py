"""What the repository must not hold: places of one machine, registry hosts, large files, data, unfinished marks."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Assembled, so that this file does not hold them itself.
PLACES = ["/".join(("", name, "")) for name in ("work", "farm", "root", "opt")]
HOSTS = [".".join(parts) for parts in (("pypi", "org"), ("pythonhosted", "org"), ("download", "pytorch", "org"))]
OPTIONS = ["--" + "-".join(parts) for parts in (("index", "url"), ("extra", "index", "url"), ("find", "links"))]
MARKS = ["TO" + "DO", "FIX" + "ME", "X" * 3]


def tracked() -> list[Path]:
    ran = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        pytest.fail(f"git cannot list the files of the repository: {ran.stderr.strip()}")
    return [ROOT / name for name in ran.stdout.split("\0") if name and (ROOT / name).is_file()]


def text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_no_machine_or_registry_is_named():
    pattern = re.compile("|".join(map(re.escape, [*PLACES, *HOSTS, *OPTIONS])))
    found = []
    for file in tracked():
        for number, line in enumerate(text_of(file).splitlines(), start=1):
            match = pattern.search(line)
            if match:
                found.append(f"{file.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found, "\n".join(found)


def test_nothing_is_left_unfinished():
    pattern = re.compile("|".join(rf"\b{mark}\b" for mark in MARKS))
    found = [
        f"{file.relative_to(ROOT)}:{number}"
        for file in tracked()
        if file.suffix in (".py", ".yaml", ".toml")
        for number, line in enumerate(text_of(file).splitlines(), start=1)
        if pattern.search(line)
    ]
    assert not found, "\n".join(found)


def test_no_large_files():
    large = [str(file.relative_to(ROOT)) for file in tracked() if file.stat().st_size > 1_000_000]
    assert not large


def test_constraints_pin_every_direct_dependency():
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {_normal(re.match(r"[A-Za-z0-9_.-]+", requirement).group()) for requirement in wanted} - {"qpeft"}
    lines = [line for line in text_of(ROOT / "constraints.txt").splitlines() if line and not line.startswith("#")]
    pinned = dict(line.split("==") for line in lines)
    assert all(re.fullmatch(r"[0-9][0-9a-z.]*", version) for version in pinned.values())
    assert names <= {_normal(name) for name in pinned}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
