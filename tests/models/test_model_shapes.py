"""Known shapes have the published number of parameters."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from qpeft.models.shapes import KNOWN_SHAPES, known_shape


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2-135m-instruct", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M", 361_821_120),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("Qwen2.5-1.5B-Instruct", 1_543_714_304),
        ("DeepSeek-R1-Distill-Qwen-1.5B", 1_777_088_000),
        ("qwen2.5-3b", 3_085_938_688),
        ("llama-3.2-3b", 3_212_749_824),
        ("qwen2.5-7b", 7_615_616_512),
        ("llama-3.1-8b", 8_030_261_248),
        ("qwen2.5-14b", 14_770_033_664),
        ("llama-3.1-70b", 70_553_706_496),
    ],
)
def test_parameters(name, parameters):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(known_shape(name))
    model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_names():
    assert known_shape("Qwen/Qwen2.5-0.5B-Instruct").name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert known_shape("a/model") is None
    assert all(known_shape(name) is not None for name in KNOWN_SHAPES)
