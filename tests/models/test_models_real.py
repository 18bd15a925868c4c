"""The two known models, taken from their packages: real weights, so only run on demand."""

import math
import time

import pytest
import torch

from qpeft.models import load_model, load_tokenizer, resolve_model

pytestmark = pytest.mark.slow

SENTENCES = (
    "The sun rises in the east and sets in the west.",
    "Water boils at one hundred degrees Celsius at sea level.",
    "She went to the market to buy bread, milk and eggs.",
    "The history of the city goes back more than a thousand years.",
    "Children learn to read and write at school.",
)


def perplexity(model, tokenizer, texts) -> float:
    loss = tokens = 0
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids  # (1, n)
        with torch.no_grad():
            loss += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        tokens += ids.shape[1] - 1
    return math.exp(loss / tokens)


def test_smollm2_from_its_package_speaks():
    found = resolve_model("smollm2-135m-instruct")
    assert found.source == "package"
    begin = time.monotonic()
    model, tokenizer = load_model(found), load_tokenizer(found)
    assert time.monotonic() - begin < 20  # converted already: no second conversion
    assert model.name_or_path == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    answer = tokenizer.decode(model.generate(**prompt, max_new_tokens=6, do_sample=False)[0])
    assert "Paris" in answer
    # the value that a second, independent reader of the same file gives
    assert perplexity(model, tokenizer, SENTENCES) == pytest.approx(26.12, abs=0.1)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False).endswith(
        "<|im_start|>user\nHi<|im_end|>\n"
    )


def test_minilm_from_its_package_classifies():
    found = resolve_model("minilm-l6")
    assert found.source == "package"
    torch.manual_seed(0)
    model, tokenizer = load_model(found, task="sequence-classification", num_labels=2), load_tokenizer(found)
    batch = tokenizer(
        ["a guitar", "an instrument with strings", "the stock market"], padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        assert model(**batch).logits.shape == (3, 2)
        states = model.base_model(**batch).last_hidden_state  # (3, n, 384)
    mask = batch["attention_mask"][..., None]  # (3, n, 1)
    means = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)  # (3, 384)
    assert means[0] @ means[1] > means[0] @ means[2] + 0.2
