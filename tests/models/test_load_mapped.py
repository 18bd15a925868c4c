"""Weights that are wanted as they are stored stay in their file: mapped into memory, shared, and given back freely."""

import shutil
import sys

import pytest
import torch

from qpeft.models import load_model
from tiny_base import save_llama

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/maps")


@pytest.fixture(scope="module")
def stored_in_bfloat16(tmp_path_factory):
    folder = save_llama(tmp_path_factory.mktemp("mapped") / "base")
    load_model(str(folder), dtype="bfloat16").save_pretrained(folder)
    return folder


def mapped_ranges(path):
    """Addresses under which a file is mapped into this process."""
    with open("/proc/self/maps", encoding="utf-8") as lines:
        spans = [line.split()[0].split("-") for line in lines if line.rstrip().endswith(str(path))]
    return [(int(first, 16), int(last, 16)) for first, last in spans]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_weights_lie_in_their_file(stored_in_bfloat16, dtype):
    model = load_model(str(stored_in_bfloat16), dtype=dtype, device="cpu")
    ranges = mapped_ranges(stored_in_bfloat16 / "model.safetensors")
    for name, weight in model.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert any(first <= weight.data_ptr() < last for first, last in ranges), name


def test_another_precision_takes_memory_of_its_own(stored_in_bfloat16):
    model = load_model(str(stored_in_bfloat16), dtype="float32", device="cpu")
    ranges = mapped_ranges(stored_in_bfloat16 / "model.safetensors")
    assert not any(first <= p.data_ptr() < last for p in model.parameters() for first, last in ranges)


def test_a_changed_weight_never_reaches_the_file(stored_in_bfloat16, tmp_path):
    folder = shutil.copytree(stored_in_bfloat16, tmp_path / "base")
    before = (folder / "model.safetensors").read_bytes()
    with torch.no_grad():
        for weight in load_model(str(folder), device="cpu").parameters():
            weight += 1
    assert (folder / "model.safetensors").read_bytes() == before
