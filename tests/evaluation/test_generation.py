import peft
import pytest
import torch

from qpeft.data import render
from qpeft.errors import InputError
from qpeft.evaluation import generate_answers
from qpeft.evaluation.generation import prepared_for_decoding


def ask(*questions):
    return [[{"role": "user", "content": question}] for question in questions]


QUESTIONS = ask("a", "a much longer question than the others?", "bb", "1+1", "心")


@torch.no_grad()
def greedy(model, tokenizer, prompt, n):
    """One token after the other, one prompt, no padding, no cache."""
    ids = tokenizer(render(prompt, tokenizer, add_generation_prompt=True), add_special_tokens=False)["input_ids"]
    start = len(ids)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_batches_equal_one_by_one(model, tokenizer):
    expected = [greedy(model, tokenizer, prompt, 12) for prompt in QUESTIONS]
    assert len(set(expected)) > 1
    calls = []
    answers = generate_answers(
        model, tokenizer, QUESTIONS, 12, batch_size=2, progress=lambda done, total: calls.append((done, total))
    )
    assert answers == expected
    assert calls == [(2, 5), (4, 5), (5, 5)]
    assert generate_answers(model, tokenizer, QUESTIONS, 12, batch_size=5) == expected


def test_end_of_sequence_ends_an_answer(model, tokenizer):
    first = model(torch.tensor([tokenizer(render(QUESTIONS[0], tokenizer, True))["input_ids"]])).logits[0, -1].argmax()
    with torch.no_grad():  # the end token takes over the likeliest token's place from the first step on
        model.lm_head.weight[tokenizer.eos_token_id] = 2 * model.lm_head.weight[first]
    assert generate_answers(model, tokenizer, QUESTIONS[:1], 12) == [""]


def test_stops_after_the_answer_line(model, tokenizer, monkeypatch):
    script = tokenizer("7+8=15\n#### 15\nand so on and on", add_special_tokens=False)["input_ids"]
    prompts = ask("x", "a question that holds\n#### 4\nalready")
    steps = []

    def forward(input_ids, *args, **kwargs):
        steps.append(len(steps))
        logits = torch.zeros(input_ids.shape[0], 1, len(tokenizer))
        logits[:, :, script[min(steps[-1], len(script) - 1)]] = 1.0
        return real(input_ids, *args, **kwargs).__class__(logits=logits)

    real = model.forward
    monkeypatch.setattr(model, "forward", forward)
    assert generate_answers(model, tokenizer, prompts, 40, stop_after_answer=True) == ["7+8=15\n#### 15\n"] * 2
    assert len(steps) == len("7+8=15\n#### 15\n")
    steps.clear()
    free = generate_answers(model, tokenizer, prompts, 20)
    assert free == ["7+8=15\n#### 15\nand s"] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_model_is_left_as_it_was(model, tokenizer, dtype):
    model = peft.get_peft_model(model.to(dtype), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    model.train()
    model.base_model.model.model.layers[0].eval()
    modes = {name: module.training for name, module in model.named_modules()}
    tensors = {
        name: (tensor, tensor.dtype, tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()
    }
    tokenizer.padding_side = "right"
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    generate_answers(model, tokenizer, QUESTIONS, 4, temperature=1.0, seed=9)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert tokenizer.padding_side == "right"
    assert {name: module.training for name, module in model.named_modules()} == modes
    for name, tensor in model.state_dict(keep_vars=True).items():
        before, kind, value = tensors[name]
        assert tensor is before
        assert tensor.dtype == kind
        assert torch.equal(tensor, value)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_weights_are_wide_while_decoding_and_narrow_after_an_error(model):
    def fail():
        with prepared_for_decoding(model):
            assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
            assert not model.training
            assert not torch.is_grad_enabled()
            raise RuntimeError("stop")

    model.to(torch.bfloat16).train()
    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.training
    assert torch.is_grad_enabled()


def test_sampling_follows_its_seed(model, tokenizer):
    first, again, other = (
        generate_answers(model, tokenizer, QUESTIONS, 8, temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_prompt_longer_than_the_window_keeps_its_end(make_model, tokenizer, caplog):
    model = make_model(max_position_embeddings=40)
    long = "z" * 100 + "the end?"
    text = render(ask(long)[0], tokenizer, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"][-30:]
    expected = model.generate(torch.tensor([ids]), max_new_tokens=10, do_sample=False)[0, 30:]
    answers = generate_answers(model, tokenizer, ask(long), 10)
    assert answers == [tokenizer.decode(expected, skip_special_tokens=True)]
    assert "1 of 1 prompts exceed" in caplog.text
    with pytest.raises(InputError, match="below the model's window of 40"):
        generate_answers(model, tokenizer, ask("a"), 40)


def test_nothing_to_do_and_bad_settings(model, tokenizer):
    assert generate_answers(model, tokenizer, []) == []
    for settings in ({"max_new_tokens": 0}, {"batch_size": 0}, {"temperature": -1.0}):
        with pytest.raises(InputError, match="at least"):
            generate_answers(model, tokenizer, QUESTIONS, **settings)
