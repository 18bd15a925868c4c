import json
import sys

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from qpeft.data import Example, encode, generate_examples, question_and_answer
from qpeft.errors import InputError, MissingDependencyError
from qpeft.evaluation import TASKS, Settings, measure_loss, run_task
from qpeft.evaluation.dialogue import dialogue_metrics, is_chinese, segment


def test_arithmetic_counts_what_is_right(model, tokenizer, script):
    examples = generate_examples(40, 0, "test")
    solutions = {example.question: example.meta["problem"] for example in examples}
    order = list(solutions)

    def answer(question):  # a quarter each: strict, right number only, wrong, empty
        problem = solutions[question]
        return (problem.solution, f"It is {problem.answer}", "#### 1", "")[order.index(question) % 4]

    stand_in = script(answer)
    result = run_task("arithmetic", model, tokenizer, examples, Settings(batch_size=7))
    assert (result.n, result["answer_accuracy"], result["strict_accuracy"]) == (40, 0.5, 0.25)
    assert result.metrics["strict_accuracy"].low == pytest.approx(0.1419, abs=1e-4)
    assert stand_in.settings["batch_size"] == 7
    assert stand_in.settings["stop_after_answer"] is True
    unseen = [record for record in result.records if record["unseen_template"]]
    assert 0 < len(unseen) < 40
    assert result["strict_accuracy_unseen_templates"] == sum(r["strict_correct"] for r in unseen) / len(unseen)
    seen_right = result["strict_accuracy_seen_templates"] * (40 - len(unseen))
    assert seen_right + result["strict_accuracy_unseen_templates"] * len(unseen) == pytest.approx(10)


def test_arithmetic_through_a_real_model(model, tokenizer):
    result = run_task("arithmetic", model, tokenizer, generate_examples(3, 0), Settings(max_new_tokens=3))
    assert result.n == 3
    assert json.loads(result.to_json())["records"][0]["text"] == result.records[0]["text"]


def test_gsm8k(model, tokenizer, script):
    script({"a": "<<1+1=2>>\n#### 2", "b": "I think 3", "c": ""}.get)
    examples = [question_and_answer(q, "", gold) for q, gold in (("a", "2"), ("b", "3"), ("c", "4"))]
    result = run_task("gsm8k", model, tokenizer, examples)
    assert (result["answer_accuracy"], result["strict_accuracy"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    with pytest.raises(InputError, match="needs a final answer"):
        run_task("gsm8k", model, tokenizer, [question_and_answer("q", "r")])


def test_mawps(model, tokenizer, script):
    script({"a": "+ 1 2", "b": "3", "c": "nothing"}.get)
    examples = [question_and_answer(q, "+ 1 2", "3.0", equation="+ 1 2") for q in "abc"]
    result = run_task("mawps", model, tokenizer, examples)
    assert (result["answer_accuracy"], result["strict_accuracy"]) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    with pytest.raises(InputError, match="reference equations"):
        run_task("mawps", model, tokenizer, [question_and_answer("q", "r", "3")])


def test_perplexity(model, tokenizer):
    examples = [question_and_answer("q", "some answer"), question_and_answer("r", "x")]
    expected = measure_loss(model, [encode(example, tokenizer) for example in examples])
    result = run_task("perplexity", model, tokenizer, examples)
    assert result["loss"] == expected.loss
    assert result["perplexity"] == expected.perplexity
    assert result["tokens"] == len("some answer") + 1 + 2
    assert result.metrics["perplexity"].low < expected.perplexity < result.metrics["perplexity"].high


def test_broken_model_gives_json_without_nan(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    result = run_task("perplexity", model, tokenizer, [question_and_answer("q", "r")])
    assert json.loads(result.to_json())["metrics"]["loss"] == {"value": None, "low": None, "high": None}
    answers = run_task("arithmetic", model, tokenizer, generate_examples(2, 0), Settings(max_new_tokens=2))
    assert answers["answer_accuracy"] == 0


def test_dialogue(model, tokenizer, script):
    script(lambda question: question)
    examples = [
        Example([{"role": "user", "content": "w"}, {"role": "assistant", "content": "v"},
                 {"role": "user", "content": "the cat sat on the mat"},
                 {"role": "assistant", "content": "the cat sat on the mat"}]),
        question_and_answer("a dog ran over the green hill", "a dog ran over the green hill"),
    ]  # fmt: skip
    result = run_task("dialogue", model, tokenizer, examples)
    assert result["bleu4"] == pytest.approx(100)
    assert result["rougel"] == pytest.approx(100)
    assert result["empty"] == 0
    script(lambda question: "")
    result = run_task("dialogue", model, tokenizer, examples)
    assert (result["bleu4"], result["rouge1"], result["empty"]) == (0, 0, 1)


def test_dialogue_english_by_hand():
    metrics = dialogue_metrics(["the cat sat"], ["the cat sat down"])
    # ROUGE-1: precision 3/3, recall 3/4; ROUGE-2: 2/2 and 2/3; the longest common subsequence has 3 words.
    assert metrics["rouge1"].value == pytest.approx(100 * 6 / 7)
    assert metrics["rouge2"].value == pytest.approx(80)
    assert metrics["rougel"].value == pytest.approx(100 * 6 / 7)


def test_dialogue_chinese_is_compared_by_words():
    assert segment("我爱北京天安门") == "我 爱 北京 天安门"
    reference = "我爱北京天安门,太阳升起来了"
    same = dialogue_metrics([reference], [reference])
    assert [same[name].value for name in ("bleu4", "rouge1", "rougel")] == pytest.approx([100, 100, 100])
    # Words 我 爱 北京 天安门 against 我 爱 上海: two in common.
    part = dialogue_metrics(["我爱上海"], ["我爱北京天安门"])
    assert part["rouge1"].value == pytest.approx(100 * 2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert dialogue_metrics(["完全不同"], ["我爱北京天安门"])["rouge1"].value == 0


def test_language():
    assert is_chinese("我想说 hello")
    assert not is_chinese("the word 爱 means love, and it is used often")
    assert not is_chinese("")


@pytest.mark.parametrize(
    ("module", "package"),
    [("sacrebleu", "sacrebleu"), ("rouge_score.rouge_scorer", "rouge-score"), ("jieba", "jieba")],
)
def test_missing_metric_libraries_are_named(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=rf"package {package}: install .*pip install 'qpeft\[metrics\]'"):
        dialogue_metrics(["我爱北京"], ["我爱北京"])


def test_metric_libraries_are_missed_before_anything_is_generated(model, tokenizer, script, monkeypatch):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    script(lambda question: pytest.fail("generated"))
    with pytest.raises(MissingDependencyError):
        run_task("dialogue", model, tokenizer, [question_and_answer("q", "r")])


def test_dialogue_lengths():
    with pytest.raises(InputError, match="as many answers as references"):
        dialogue_metrics(["a"], [])


@pytest.fixture
def classifier(tokenizer):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=32, initializer_range=0.5, num_labels=2,
                        id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})  # fmt: skip
    return BertForSequenceClassification(config)


def test_classification(classifier, tokenizer):
    texts = [chr(97 + n) * (n + 1) for n in range(12)] + ["long " * 30]
    classifier.eval()
    with torch.no_grad():
        guesses = [
            int(classifier(torch.tensor([tokenizer(text)["input_ids"][:32]])).logits.argmax()) for text in texts
        ]
    assert len(set(guesses)) == 2
    classifier.train()
    names = ["bad", "good"]
    examples = [
        question_and_answer(text, "", names[guess] if place % 2 else str(guess))
        for place, (text, guess) in enumerate(zip(texts, guesses, strict=True))
    ]
    result = run_task("classification", classifier, tokenizer, examples, Settings(batch_size=4))
    assert result["accuracy"] == 1
    assert classifier.training
    wrong = [question_and_answer(text, "", names[1 - guess]) for text, guess in zip(texts, guesses, strict=True)]
    assert run_task("classification", classifier, tokenizer, wrong)["accuracy"] == 0
    with pytest.raises(InputError, match="label 'fine' is none of the classifier's: use bad, good"):
        run_task("classification", classifier, tokenizer, [question_and_answer("a", "fine")])
    with torch.no_grad():
        classifier.classifier.bias.fill_(float("nan"))
    assert run_task("classification", classifier, tokenizer, examples)["accuracy"] == 0


def test_unknown_task_and_no_examples(model, tokenizer):
    with pytest.raises(InputError, match="there is no task 'poetry': choose one of arithmetic, gsm8k"):
        run_task("poetry", model, tokenizer, [])
    for name in TASKS:
        with pytest.raises(InputError, match="got no examples"):
            run_task(name, model, tokenizer, [])
