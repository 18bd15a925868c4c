"""The loss at labelled positions alone equals the loss from all logits, in value and in gradient."""

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from qpeft.training import labelled_loss


@pytest.fixture
def model(llama_base):
    base = AutoModelForCausalLM.from_pretrained(llama_base, dtype=torch.float32)
    torch.manual_seed(0)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    return model.train()


def batch(model, labelled: int):
    torch.manual_seed(1)
    ids = torch.randint(0, model.config.vocab_size, (3, 12))
    labels = torch.full_like(ids, -100)
    labels[:, 12 - labelled :] = ids[:, 12 - labelled :]
    mask = torch.ones_like(ids)
    mask[0, -2:], labels[0, -2:] = 0, -100
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("positions", [512, 4])
def test_equals_the_loss_from_all_logits(model, monkeypatch, positions):
    monkeypatch.setattr(labelled_loss, "LOGITS", positions * model.config.vocab_size)
    inputs = batch(model, labelled=5)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    targets = inputs["labels"][:, 1:]
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=-100, reduction="sum"
    )
    expected_gradient = torch.autograd.grad(expected, parameters)
    learned = targets != -100

    total, right, n = labelled_loss.labelled_loss(model, inputs)
    gradient = torch.autograd.grad(total, parameters)

    torch.testing.assert_close(total, expected)
    for ours, theirs in zip(gradient, expected_gradient, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert n == learned.sum() == 13
    assert right == (logits.argmax(-1) == targets)[learned].sum()


def test_a_batch_without_labels_gives_zero_that_can_be_differentiated(model):
    inputs = batch(model, labelled=0)
    total, right, n = labelled_loss.labelled_loss(model, inputs)
    total.backward()
    assert total.item() == right.item() == n.item() == 0


def test_a_trained_head_is_left_to_the_trainer(model):
    model.get_base_model().lm_head.weight.requires_grad_()
    assert not labelled_loss.supports(model)


def test_is_not_used_where_something_happens_between_backbone_and_logits(model, llama_base):
    assert labelled_loss.supports(model)
    base = AutoModelForCausalLM.from_pretrained(llama_base)
    prompts = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not labelled_loss.supports(get_peft_model(base, prompts))
    model.config.logit_scale = 0.5
    assert not labelled_loss.supports(model)
