import json

import pytest

from qpeft.data import load, question_and_answer, split_examples
from qpeft.errors import InputError


@pytest.fixture
def write(tmp_path):
    def _write(*records, name="set.jsonl"):
        path = tmp_path / name
        path.write_text(
            "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8"
        )
        return path

    return _write


def test_gsm8k(write):
    path = write({"question": "q?", "answer": "Half is 48/2 = <<48/2=24>>24.\n#### 1,024"})
    example = load(path)[0]
    assert example.question == "q?"
    assert example.target.startswith("Half is 48/2 = <<48/2=24>>24.")
    assert example.answer == "1,024"
    assert load(path, keep_calculator_marks=False)[0].target == "Half is 48/2 = 24.\n#### 1,024"
    with pytest.raises(InputError, match=r"set.jsonl, line 1: field 'answer' has no '#### '"):
        load(write({"question": "q", "answer": "24"}), layout="gsm8k")


def test_mawps(write):
    example = load(write({"question": "q", "equation_prefix": "- + 35 10 10", "answer": 35.0}))[0]
    assert (example.target, example.answer, example.meta["equation"]) == ("- + 35 10 10", "35.0", "- + 35 10 10")
    with pytest.raises(InputError, match="field 'answer' is list, expected a number"):
        load(write({"question": "q", "equation_prefix": "+ 1 1", "answer": []}))


def test_dialogue_ends_with_its_last_answer(write):
    turns = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "bye"},
    ]
    example = load(write({"messages": turns, "id": "x"}))[0]
    assert [turn["content"] for turn in example.messages] == ["a", "b"]
    with pytest.raises(InputError, match="line 1: field 'messages' has no assistant turn"):
        load(write({"messages": turns[:1]}))
    with pytest.raises(InputError, match="line 1: turn 1 has role 'client'"):
        load(write({"messages": [{"role": "client", "content": "a"}, turns[1]]}))
    with pytest.raises(InputError, match="expected a list of turns"):
        load(write({"messages": "hello"}))


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"question": "q", "answer": "a", "upvotes": 3}, ("q", "a", None)),
        ({"prompt": "q", "completion": "a"}, ("q", "a", None)),
        ({"instruction": "q", "output": "a"}, ("q", "a", None)),
        ({"text": "q", "label": 1}, ("q", "1", "1")),
    ],
)
def test_other_layouts(write, record, expected):
    example = load(write(record))[0]
    assert (example.question, example.target, example.answer) == expected


def test_named_fields(write):
    path = write({"ask": "q", "say": "a"})
    assert load(path, prompt_field="ask", answer_field="say")[0].target == "a"
    with pytest.raises(InputError, match=r"line 1 has no field 'reply' \(it has 'ask', 'say'\)"):
        load(path, prompt_field="ask", answer_field="reply")
    with pytest.raises(InputError, match=r"line 1 has the fields 'ask', 'say', none of the known sets"):
        load(path)
    with pytest.raises(InputError, match="given together"):
        load(path, prompt_field="ask")


def test_missing_field_names_file_line_and_fields(write):
    path = write({"question": "q", "answer": "a"}, "", {"question": "q", "reply": "a"})
    with pytest.raises(InputError, match=r"set.jsonl, line 3 has no field 'answer' \(it has 'question', 'reply'\)"):
        load(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "q", "answer": "a"', r"line 2 is not valid JSON \(.* at column \d+\)"),
        ("[1, 2]", "line 2 holds list"),
        ('{"question": 3, "answer": "a"}', "line 2: field 'question' is int, expected a string"),
        ('{"question": "q", "answer": "  "}', "line 2: field 'answer' is empty"),
        ("[" * 100_000, "line 2 is not valid JSON"),
    ],
)
def test_malformed_lines(write, line, message):
    path = write({"question": "q", "answer": "a"}, line)
    with pytest.raises(InputError, match=message):
        load(path)


def test_encodings(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"question": "q", "answer": "a"}\r\n')
    assert load(path)[0].target == "a"
    path.write_bytes('{"question": "é", "answer": "a"}'.encode("latin-1"))
    with pytest.raises(InputError, match=r"line 1 is not UTF-8 text \(byte 0xe9 at 14\)"):
        load(path)
    path.write_bytes('{"question": "心", "answer": "a"}'.encode())
    assert load(path)[0].question == "心"


def test_missing_and_empty_files(write, tmp_path):
    write({"question": "q", "answer": "a"}, name="train.jsonl")
    with pytest.raises(InputError, match=r"trian.jsonl does not exist: did you mean train.jsonl\?"):
        load(tmp_path / "trian.jsonl")
    with pytest.raises(InputError, match="nor does its folder"):
        load(tmp_path / "nowhere" / "train.jsonl")
    with pytest.raises(InputError, match=r"is a folder: name one of its files .*train.jsonl"):
        load(tmp_path)
    with pytest.raises(InputError, match="holds no example"):
        load(write("", name="empty.jsonl"))


def test_hub_sets_are_read_by_name(monkeypatch):
    import datasets

    asked = []

    def rows(repository, configuration, split):
        asked.append((repository, configuration, split))
        if repository == "no/such":
            raise FileNotFoundError("not there\nsecond line")
        return [{"question": "q", "answer": "a #### 3"}]

    monkeypatch.setattr(datasets, "load_dataset", rows)
    assert load("openai/gsm8k:main", split="test")[0].answer == "3"
    assert asked == [("openai/gsm8k", "main", "test")]
    with pytest.raises(InputError, match=r"no/such is neither a file here nor .*: not there\): check the name"):
        load("no/such")


def test_max_samples_and_arguments(write):
    path = write(*({"question": f"q{n}", "answer": "a"} for n in range(5)), "broken")
    assert [example.question for example in load(path, max_samples=3)] == ["q0", "q1", "q2"]
    with pytest.raises(InputError, match="max_samples must be at least 1"):
        load(path, max_samples=0)
    with pytest.raises(InputError, match="layout must be one of"):
        load(path, layout="csv")


def test_split_keeps_equal_questions_together():
    examples = [
        question_and_answer(f"Question  {n % 40}" if n % 2 else f"question {n % 40}", str(n)) for n in range(200)
    ]
    parts = split_examples(examples, seed=3)
    assert sorted(int(e.target) for part in parts for e in part) == list(range(200))
    sides = [{" ".join(e.question.lower().split()) for e in part} for part in parts]
    assert not sides[0] & sides[1]
    assert not sides[0] & sides[2]
    assert not sides[1] & sides[2]
    assert [len(side) for side in sides] == [32, 4, 4]
    assert split_examples(examples, seed=3) == parts
    assert split_examples(examples, seed=4) != parts


def test_split_refuses_what_it_cannot_do():
    examples = [question_and_answer("q", "a"), question_and_answer("r", "a")]
    with pytest.raises(InputError, match="2 different questions are too few"):
        split_examples(examples, seed=0)
    with pytest.raises(InputError, match="together below 1"):
        split_examples(examples, seed=0, validation=0.6, test=0.5)
    train, validation, test = split_examples(examples, seed=0, validation=0.0, test=0.5)
    assert [len(train), len(validation), len(test)] == [1, 0, 1]
