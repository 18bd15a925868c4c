"""peft's own custom-model tests, run with QTHA in place of peft's methods.

The tests come from peft's source package at the installed version. Their list of cases is replaced by ours; the rest
stays, but for three things. ``diffusers`` is a stub. The tests which merge an adapter are skipped, by the function
peft has for its own non-merging methods, for the architectures that are not a fixed matrix. And where peft lowers the
learning rate for some of its methods ("otherwise we get nan": inputs up to 90, plain gradient descent), QTHA joins
them.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import peft
import pytest

ARCHITECTURES = (
    "mpo+quantum", "mpo", "quantum", "quantum_only", "linear", "classical", "mpo+classical", "pointwise",
    "mpo+pointwise",
)  # fmt: skip
MERGING = ("mpo", "linear")
SMALL = {"r": 3, "bond_dim": 2, "inner_features": 16}

# Name of the case, peft's test model, arguments. The first two are the representative part.
VARIANTS = [
    ("both layers", "MLP", {"target_modules": ["lin0", "lin1"]}),
    ("Conv1D of transformers", "EmbConv1D", {"target_modules": ["conv1d"]}),
    ("modules_to_save", "MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    ("regular expression", "MLP", {"target_modules": "lin0"}),
    ("first layer", "MLP", {"target_modules": ["lin0"]}),
    ("second layer", "MLP", {"target_modules": ["lin1"]}),
]
N_REPRESENTATIVE = 2

LOWER_RATES = (
    "if isinstance(config, PveraConfig):\n            lr = 1e-4",
    "elif issubclass(\n            config_cls, PveraConfig\n        ):",
)

CASES_MODULE = """
import pytest
from qpeft import QTHAConfig

MERGING = {merging!r}
TEST_CASES = [(name, model, QTHAConfig, kwargs) for name, model, kwargs in {cases!r}]
MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES = [
    (name, "qtha", QTHAConfig, first, second) for name, first, second in {pairs!r}
]


def skip_if_not_linear(config_cls, config_kwargs):
    if config_cls is QTHAConfig and config_kwargs.get("arch", "mpo+quantum") not in MERGING:
        pytest.skip("this architecture is not a fixed matrix and does not support merging")
"""

SKIP_PATCH = """

from .qtha_cases import skip_if_not_linear

_peft_skip_if_merging_not_supported = _skip_if_merging_not_supported


def _skip_if_merging_not_supported(model_id, config_cls, config_kwargs):
    skip_if_not_linear(config_cls, config_kwargs)
    _peft_skip_if_merging_not_supported(model_id, config_cls, config_kwargs)
"""


def peft_tests() -> Path:
    """The ``tests`` folder of peft's source package at the installed version, fetched once into the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "qpeft" / "peft-tests"
    folder = cache / peft.__version__
    if (folder / "test_custom_models.py").is_file():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "peft"]
        run = subprocess.run(
            [*command, "--dest", temporary, f"peft=={peft.__version__}"], capture_output=True, text=True, check=False
        )
        archives = list(Path(temporary).glob("peft-*.tar.gz"))
        if run.returncode or not archives:
            pytest.fail(
                f"peft's tests are neither in {folder} nor could its source package be downloaded: connect once, or "
                f"copy the tests folder of peft {peft.__version__} there. pip said:\n{run.stderr[-2000:]}"
            )
        with tarfile.open(archives[0]) as archive:
            archive.extractall(temporary, filter="data")
        unpacked = Path(temporary) / archives[0].name.removesuffix(".tar.gz") / "tests"
        try:
            os.rename(unpacked, folder)  # atomic: another process sees no folder, or all of it
        except OSError:
            if not (folder / "test_custom_models.py").is_file():  # another process was first
                raise
    return folder


def replace_list(source: str, name: str) -> str:
    """Replace a module-level list by an import of the list of the same name from our cases."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and [getattr(t, "id", None) for t in node.targets] == [name]:
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [f"from .qtha_cases import QTHAConfig, {name}"]
            return "\n".join(lines) + "\n"
    raise AssertionError(f"peft {peft.__version__} has no list {name} in test_custom_models.py any more")


def build(folder: Path, architectures: tuple[str, ...], variants: list) -> None:
    """Write a test package with our cases into ``folder``."""
    package = folder / "matrix"
    shutil.copytree(peft_tests(), package)
    cases = [
        (f"{arch}, {name}", model, {**SMALL, **kwargs, "arch": arch})
        for arch in architectures
        for name, model, kwargs in variants
    ]
    pairs = []
    for arch in architectures:
        first = {**SMALL, "arch": arch, "target_modules": ["lin0"], "init_weights": False}
        pairs += [
            (f"{arch}, same layer", first, first),
            (f"{arch}, different layers", first, {**first, "target_modules": ["lin1"]}),
        ]
    (package / "__init__.py").touch()
    (package / "qtha_cases.py").write_text(CASES_MODULE.format(merging=MERGING, cases=cases, pairs=pairs))
    source = (package / "test_custom_models.py").read_text()
    for name in ("TEST_CASES", "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES"):
        source = replace_list(source, name)
    for lower_rate in LOWER_RATES:
        assert lower_rate in source, f"peft {peft.__version__} no longer has {lower_rate!r} in test_custom_models.py"
        source = source.replace(lower_rate, lower_rate.replace("PveraConfig", "(PveraConfig, QTHAConfig)"))
    (package / "test_custom_models.py").write_text(source)
    with (package / "testing_common.py").open("a") as common:
        common.write(SKIP_PATCH)
    (folder / "diffusers.py").write_text("StableDiffusionPipeline = None\n")
    (folder / "pytest.ini").write_text("[pytest]\n")


def run_matrix(folder: Path, architectures: tuple[str, ...], variants: list) -> dict[str, int]:
    """Run peft's tests for our cases and return the counts of the outcomes."""
    build(folder, architectures, variants)
    report = folder / "report.txt"
    options = ["-q", "-rfEs", "-p", "no:cacheprovider", "-n", "2", "--tb=short", "-W", "ignore"]
    with report.open("w") as output:
        subprocess.run(
            [sys.executable, "-m", "pytest", "matrix/test_custom_models.py", "-k", "QTHAConfig", *options],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
                "OMP_NUM_THREADS": "1",
                "HF_HUB_OFFLINE": "1",
            },
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    text = report.read_text()
    summary = text.splitlines()[-1]
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", summary)}
    print(f"peft {peft.__version__}, {len(architectures)} architectures x {len(variants)} variants: {summary}")
    assert counts.get("passed"), text[-6000:]
    assert not counts.get("failed"), text[-6000:]
    assert not counts.get("error"), text[-6000:]
    reasons = {
        reason: int(number) for number, reason in re.findall(r"^SKIPPED \[(\d+)\] \S+ (.*)$", text, flags=re.MULTILINE)
    }
    for reason, number in reasons.items():
        print(f"skipped {number}: {reason}")
    return {
        **counts,
        "no merge": reasons.get("this architecture is not a fixed matrix and does not support merging", 0),
    }


def test_representative_part(tmp_path):
    counts = run_matrix(tmp_path, ARCHITECTURES, VARIANTS[:N_REPRESENTATIVE])
    assert counts["no merge"] > 0


@pytest.mark.slow
def test_whole_matrix(tmp_path):
    run_matrix(tmp_path, ARCHITECTURES, VARIANTS)
