"""The walls of the house: imports run downward only, and `import qpeft` stays light."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "qpeft"

FLOORS = {
    "errors": 0, "version": 0, "deadline": 0, "quiet_import": 0,
    "circuits": 1,
    "simulators": 2, "chips": 2,
    "qpu": 3,
    "tensornet": 4, "layer": 4, "gradients": 4, "execution": 4,
    "adapters": 5, "models": 5, "data": 5,
    "training": 6, "evaluation": 6, "export": 6,
    "compare": 7, "cloud": 7, "serving": 7,
    "cli": 8, "__main__": 9,
}  # fmt: skip
# The package's own face: importing it registers the adapters, which rooms above them may ask for.
FACE = FLOORS["adapters"]
PURE = ("circuits", "simulators", "chips", "qpu", "tensornet", "layer", "gradients", "execution")
HEAVY = {"matplotlib", "trl", "datasets", "gguf", "typer", "rich", "pydantic", "jieba", "sacrebleu", "rouge_score",
         "tensorboard", "pandas", "pyarrow", "qiskit", "pyqpanda3", "qbraid", "mthree", "sqlite3", "starlette",
         "uvicorn", "lm_eval"}  # fmt: skip


def rooms() -> list[str]:
    entries = [p for p in SOURCE.iterdir() if p.suffix == ".py" or (p.is_dir() and any(p.glob("*.py")))]
    return sorted(p.stem for p in entries if p.stem != "__init__")


def files_of(room: str) -> list[Path]:
    single = SOURCE / f"{room}.py"
    return [single] if single.exists() else sorted((SOURCE / room).rglob("*.py"))


def imports_of(file: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of every import of a file, also of those inside functions."""
    package = ["qpeft", *file.relative_to(SOURCE).parent.parts]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from qpeft import models` names a room, `from qpeft import QTHAConfig` the face
            if module == "qpeft":
                yield from (
                    (node.lineno, f"qpeft.{alias.name}" if alias.name in FLOORS else "qpeft") for alias in node.names
                )
            else:
                yield node.lineno, module


def test_every_room_has_a_floor():
    assert set(rooms()) - {"recipes"} <= set(FLOORS)


@pytest.mark.parametrize("room", [room for room in rooms() if room in FLOORS])
def test_imports_run_downward(room):
    wrong = []
    for file in files_of(room):
        for line, name in imports_of(file):
            top, _, rest = name.partition(".")
            if top != "qpeft":
                continue
            target = rest.partition(".")[0]
            if (FLOORS[target] if target else FACE) > FLOORS[room]:
                wrong.append(f"{file.relative_to(SOURCE)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_rooms_of_one_floor_do_not_import_in_circles():
    neighbours = {
        room: {
            name.split(".")[1] if "." in name else "adapters"
            for file in files_of(room)
            for _, name in imports_of(file)
            if name.partition(".")[0] == "qpeft"
        }
        for room in rooms()
        if room in FLOORS
    }
    tuple(graphlib.TopologicalSorter({room: near - {room} for room, near in neighbours.items()}).static_order())


@pytest.mark.parametrize("room", PURE)
def test_quantum_rooms_know_nothing_of_language_models(room):
    wrong = [
        f"{file.relative_to(SOURCE)}:{line} imports {name}"
        for file in files_of(room)
        for line, name in imports_of(file)
        if name.partition(".")[0] in ("transformers", "peft", "trl", "accelerate", "datasets")
    ]
    assert not wrong, "\n".join(wrong)


def test_import_is_light():
    program = (
        "import sys, peft; before = set(sys.modules); import qpeft, torch; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}), sep='\\n'); "
        "print(*sorted(name for name in sys.modules if name.startswith('qpeft.')), sep='\\n'); "
        "assert not torch.cuda.is_initialized()"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    added = set(ran.stdout.split())
    assert not added & HEAVY
    upper = {room for room in FLOORS if FLOORS[room] > FACE}
    assert not {name for name in added if name.startswith("qpeft.") and name.split(".")[1] in upper}
