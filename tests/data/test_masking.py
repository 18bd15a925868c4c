import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qpeft.data import Example, encode, encode_dataset, question_and_answer, render
from qpeft.data.formatting import render_with_spans, turn_end
from qpeft.errors import InputError

TALK = Example(
    [
        {"role": "user", "content": "a"},  # also a piece of the word "assistant"
        {"role": "assistant", "content": "assistant"},
        {"role": "user", "content": "你好?"},
        {"role": "assistant", "content": "理解 7"},
    ]
)

# The rendered conversation cut by hand: (text, whether the loss counts there).
EXPECTED = {
    "chatml": [
        ("<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", False),
        ("assistant<|im_end|>", True),
        ("\n<|im_start|>user\n你好?<|im_end|>\n<|im_start|>assistant\n", False),
        ("理解 7<|im_end|>", True),
        ("\n", False),
    ],
    "llama": [
        ("<bos><head>user</head>\n\na<eot><head>assistant</head>\n\n", False),
        ("assistant<eot>", True),
        ("<head>user</head>\n\n你好?<eot><head>assistant</head>\n\n", False),
        ("理解 7<eot>", True),
    ],
    "inst": [
        ("<bos>[INST] a [/INST] ", False),
        ("assistant <eot>", True),
        ("<bos>[INST] 你好? [/INST] ", False),
        ("理解 7 <eot>", True),
    ],
    "no_end": [
        ("user: a\nassistant: ", False),
        ("assistant\n", True),
        ("user: 你好?\nassistant: ", False),
        ("理解 7\n", True),
    ],
    "plain": [("a\n", False), ("assistant<eot>", True), ("\n你好?\n", False), ("理解 7<eot>", True)],
}


def by_hand(tokenizer, segments):
    ids, labels = [], []
    for text, learned in segments:
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += tokens
        labels += tokens if learned else [-100] * len(tokens)
    return ids, labels


@pytest.mark.parametrize("name", EXPECTED)
def test_labels_token_by_token(name, make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.get(name))
    sample = encode(TALK, tokenizer)
    ids, labels = by_hand(tokenizer, EXPECTED[name])
    assert tokenizer.decode(sample["input_ids"]) == "".join(text for text, _ in EXPECTED[name])
    assert sample["input_ids"] == ids
    assert sample["labels"] == labels
    assert sample["attention_mask"] == [1] * len(ids)


@pytest.mark.parametrize("name", EXPECTED)
def test_last_turn_only(name, make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.get(name))
    segments = EXPECTED[name]
    last = max(index for index, (_, learned) in enumerate(segments) if learned)
    _, labels = by_hand(tokenizer, [(text, index == last) for index, (text, _) in enumerate(segments)])
    assert encode(TALK, tokenizer, turns="last")["labels"] == labels


@pytest.mark.parametrize("name", ["chatml", "llama", "plain"])
def test_unlabelled_beginning_is_the_prompt_of_generation(name, make_tokenizer, templates):
    tokenizer = make_tokenizer(templates.get(name))
    sample = encode(TALK, tokenizer, turns="last")
    first = next(index for index, label in enumerate(sample["labels"]) if label != -100)
    prompt = render(TALK.prompt, tokenizer, add_generation_prompt=True)
    assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == sample["input_ids"][:first]


def test_token_across_the_border_is_labelled(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates["chatml"], merges=[("Ċ", "7")])
    example = question_and_answer("q", "7+8")
    tokens = tokenizer.convert_ids_to_tokens(encode(example, tokenizer)["input_ids"])
    labels = encode(example, tokenizer)["labels"]
    learned = [token for token, label in zip(tokens, labels, strict=True) if label != -100]
    assert learned == ["Ċ7", "+", "8", "<|im_end|>"]


def test_stripped_content_is_found(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates["llama"])
    rendered = render_with_spans(question_and_answer(" q ", "\n 7 \n").messages, tokenizer)
    assert [rendered.text[turn.start : turn.end] for turn in rendered.turns] == ["q", "7"]


contents = st.text(st.characters(exclude_categories=("Cs", "Co")), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(contents, min_size=2, max_size=6).filter(lambda texts: len(texts) % 2 == 0))
@pytest.mark.parametrize("name", ["chatml", "inst", "plain"])
def test_spans_hold_any_text(name, texts, request):
    tokenizer = request.getfixturevalue("make_tokenizer")(request.getfixturevalue("templates").get(name))
    messages = [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]
    rendered = render_with_spans(messages, tokenizer)
    assert [rendered.text[turn.start : turn.end] for turn in rendered.turns[-len(texts) :]] == texts


def test_system_message(make_tokenizer, templates):
    tokenizer = make_tokenizer(templates["chatml"])
    example = question_and_answer("q", "r")
    assert "Be kind" in render(example.messages, tokenizer)
    assert render(example.messages, tokenizer, system="").startswith("<|im_start|>system\n<|im_end|>")
    assert render(example.messages, tokenizer, system="Add.", format="plain") == "Add.\nq\nr<eot>"
    assert render(example.messages, tokenizer, system="", format="plain") == "q\nr<eot>"
    own = [{"role": "system", "content": "Own"}, *example.messages]
    assert "Own" in render(own, tokenizer, system="Other")
    assert "Other" not in render(own, tokenizer, system="Other")
    for system in ("", "Add."):
        for format in ("chat", "plain"):
            labels = encode(example, tokenizer, system=system, format=format)["labels"]
            assert tokenizer.decode([label for label in labels if label != -100]).startswith("r<")


def test_model_without_chat_template(make_tokenizer):
    tokenizer = make_tokenizer()
    example = question_and_answer("q", "r")
    assert render(example.messages, tokenizer) == "q\nr<eot>"
    assert render(example.prompt, tokenizer, add_generation_prompt=True) == "q\n"
    with pytest.raises(InputError, match="no chat template"):
        render(example.messages, tokenizer, format="chat")
    with pytest.raises(InputError, match="format must be one of"):
        render(example.messages, tokenizer, format="xml")


def test_template_that_refuses(make_tokenizer, templates):
    with pytest.raises(InputError, match=r"refuses a conversation .*no system role"):
        render(question_and_answer("q", "r").messages, make_tokenizer(templates["inst"]), system="x")


def test_template_that_rewrites(make_tokenizer):
    tokenizer = make_tokenizer("{% for m in messages %}{{ m['content'] | upper }}<eot>{% endfor %}")
    with pytest.raises(InputError, match=r"rewrites turn 1 \(user\)"):
        encode(question_and_answer("q", "r"), tokenizer)


def test_turn_end(make_tokenizer, templates):
    ends = {name: turn_end(make_tokenizer(template)) for name, template in templates.items()}
    assert ends == {"chatml": "<|im_end|>", "llama": "<eot>", "inst": " <eot>", "no_end": "\n"}


def test_sample_longer_than_the_limit(make_tokenizer):
    tokenizer = make_tokenizer()
    example = question_and_answer("0123456", "abc")  # 8 + 4 tokens
    assert encode(example, tokenizer, max_length=12) == encode(example, tokenizer)
    assert encode(example, tokenizer, max_length=11) is None
    cut = encode(example, tokenizer, max_length=10, too_long="truncate")
    assert cut["input_ids"] == encode(example, tokenizer)["input_ids"][:10]
    assert cut["labels"] == encode(example, tokenizer)["labels"][:10]
    assert encode(example, tokenizer, max_length=8, too_long="truncate") is None  # nothing left to learn
    with pytest.raises(InputError, match="12 tokens and the limit is 11"):
        encode(example, tokenizer, max_length=11, too_long="error")
    with pytest.raises(InputError, match="too_long must be one of"):
        encode(example, tokenizer, too_long="maybe")
    with pytest.raises(InputError, match="max_length must be at least 1"):
        encode(example, tokenizer, max_length=0)


def test_data_set_and_report(make_tokenizer, caplog):
    tokenizer = make_tokenizer()
    examples = [question_and_answer("q", "r" * n) for n in (1, 3, 5)]  # 2 + n + 1 tokens
    rows, report = encode_dataset(examples, tokenizer, max_length=6)
    assert rows.column_names == ["input_ids", "labels", "attention_mask"]
    assert (report.kept, report.dropped, report.truncated) == (2, 1, 0)
    assert (report.tokens, report.labelled_tokens, report.longest) == (4 + 6, 2 + 4, 8)
    assert "1 of 3 samples were dropped" in caplog.text
    _, report = encode_dataset(examples, tokenizer, max_length=6, too_long="truncate")
    assert (report.kept, report.dropped, report.truncated) == (3, 0, 1)
    with pytest.raises(InputError, match="none of the 3 samples is left: the longest has 8 tokens and the limit is 3"):
        encode_dataset(examples, tokenizer, max_length=3)
    with pytest.raises(InputError, match="data set is empty"):
        encode_dataset([], tokenizer)


def test_batches_pad_with_the_collator_of_transformers(make_tokenizer):
    from transformers import DataCollatorForSeq2Seq

    tokenizer = make_tokenizer()
    rows, _ = encode_dataset([question_and_answer("q", "r"), question_and_answer("q", "rrr")], tokenizer)
    batch = DataCollatorForSeq2Seq(tokenizer)(list(rows))
    assert batch["input_ids"].shape == batch["labels"].shape == batch["attention_mask"].shape == (2, 6)
    assert batch["labels"][0].tolist() == [-100, -100, *tokenizer("r<eot>")["input_ids"], -100, -100]
    assert batch["attention_mask"].sum(1).tolist() == [4, 6]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "got none"),
        ([{"role": "user", "content": "q"}], "end with the assistant's"),
        ([{"role": "robot", "content": "q"}], "role 'robot'"),
        ([{"role": "assistant", "content": 3}], "type int"),
        (["q"], "turn 1 is str"),
    ],
)
def test_bad_conversations(messages, message):
    with pytest.raises(InputError, match=message):
        Example(messages)
