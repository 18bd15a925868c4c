import math

import peft
import pytest
import torch
from torch.nn import functional

from qpeft.data import Example, encode, question_and_answer
from qpeft.errors import InputError
from qpeft.evaluation import measure_loss


@pytest.fixture
def samples(tokenizer):
    talk = Example([{"role": role, "content": text} for role, text in
                    (("user", "hello"), ("assistant", "yes"), ("user", "and?"), ("assistant", "no"))])  # fmt: skip
    examples = [question_and_answer("a", "b"), question_and_answer("what is it?", "a longer answer " * 4), talk]
    return [encode(example, tokenizer) for example in examples]


@torch.no_grad()
def naive(model, samples):
    """Every sample alone, all logits, one labelled token after the other."""
    losses = []
    for sample in samples:
        logits = model(torch.tensor([sample["input_ids"]])).logits[0]
        for position, label in enumerate(sample["labels"]):
            if label != -100:
                losses.append(-functional.log_softmax(logits[position - 1].double(), -1)[label].item())
    mean = sum(losses) / len(losses)
    return mean, math.sqrt(sum((loss - mean) ** 2 for loss in losses) / len(losses)), len(losses)


@pytest.mark.parametrize("max_batch_tokens", [1, 150, 10_000])
def test_equals_the_naive_sum(model, samples, max_batch_tokens):
    mean, deviation, tokens = naive(model, samples)
    calls = []
    loss = measure_loss(model, samples, max_batch_tokens, lambda done, total: calls.append((done, total)))
    assert loss.loss == pytest.approx(mean, rel=1e-5)
    assert loss.perplexity == pytest.approx(math.exp(mean), rel=1e-4)
    assert loss.deviation == pytest.approx(deviation, rel=1e-4)
    assert (loss.tokens, loss.samples) == (tokens, 3)
    assert calls[-1] == (3, 3)
    assert len(calls) == {1: 3, 150: 2, 10_000: 1}[max_batch_tokens]


def test_batch_mean_of_means_would_differ(model, samples):
    means = [naive(model, [sample])[0] for sample in samples]
    assert measure_loss(model, samples).loss != pytest.approx(sum(means) / 3, rel=1e-3)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM"),
        peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False),
        peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    ],
    ids=["lora", "lora-no-task", "prompt-tuning"],
)
def test_adapters(model, samples, config):
    adapted = peft.get_peft_model(model, config)
    adapted.train()
    losses = []
    with torch.no_grad():
        adapted.eval()
        for sample in samples:
            logits = adapted(input_ids=torch.tensor([sample["input_ids"]])).logits[0][-len(sample["input_ids"]) :]
            losses += [
                functional.cross_entropy(logits[position - 1], torch.tensor(label)).item()
                for position, label in enumerate(sample["labels"])
                if label != -100
            ]
        adapted.train()
    assert measure_loss(adapted, samples).loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert adapted.training


def test_logits_are_asked_only_where_a_label_is(model, samples, monkeypatch):
    seen = []
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: seen.append(hidden.shape) or functional.linear(
        hidden, model.lm_head.weight))  # fmt: skip
    measure_loss(model, samples[:1])
    labelled = sum(label != -100 for label in samples[0]["labels"])
    assert seen == [(1, labelled, 32)]


def test_model_that_cannot_choose_positions(model, samples):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask, use_cache):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask)

    assert measure_loss(Plain(), samples) == measure_loss(model, samples)


def test_bfloat16_is_near(model, samples):
    wide = measure_loss(model, samples).loss
    assert measure_loss(model.to(torch.bfloat16), samples).loss == pytest.approx(wide, rel=0.05)


def test_broken_and_empty(model, samples):
    with pytest.raises(InputError, match="no sample has a labelled token"):
        measure_loss(model, [{"input_ids": [1, 2], "labels": [-100, -100]}])
    with pytest.raises(InputError, match="no sample has a labelled token"):
        measure_loss(model, [])
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    loss = measure_loss(model, samples)
    assert math.isnan(loss.loss)
    assert math.isnan(loss.perplexity)
