"""Commands run in this process, without network; one finished run that tests may read."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from qpeft import cli
from tiny_base import recipe_values


@dataclass
class Spoken:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("QPEFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def qpeft(capsys):
    """Run a command line; a refusal has to be one sentence, never a traceback."""

    def command(*arguments):
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err, captured.err
        if code in (1, 2, 130):
            last = captured.err.strip().splitlines()[-1]
            assert last.startswith(("error: ", "interrupted: ", "Error: ")), captured.err
        return Spoken(code, captured.out, captured.err)

    return command


@pytest.fixture
def write_recipe(tmp_path, llama_base):
    """A recipe file on the tiny model; see `tiny_base.recipe_values`."""

    def write(output="run", model=None, **changes):
        path = tmp_path / f"{Path(output).name}.yaml"
        path.write_text(json.dumps(recipe_values(model or llama_base, tmp_path / output, **changes)))
        return path

    return write


@pytest.fixture(scope="session")
def finished(tmp_path_factory, llama_base):
    """Folder of a finished run of a linear adapter that was also measured; not to be written to."""
    from qpeft.cli.console import be_quiet

    folder = tmp_path_factory.mktemp("finished")
    values = recipe_values(
        llama_base, folder / "run", adapter__arch="mpo", training__max_steps=2,
        evaluation={"task": "arithmetic", "limit": 3, "batch_size": 3, "max_new_tokens": 4},
    )  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(values))
    assert cli.run(["train", str(folder / "recipe.yaml"), "--quiet"]) == 0
    be_quiet(False)
    return folder / "run"
