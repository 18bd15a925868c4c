"""What TRL's trainers are given to read."""

import json
from dataclasses import replace

import pytest
from trl import DatasetMixtureConfig, ScriptArguments
from trl.scripts.utils import DatasetConfig

from qpeft.data import generate
from qpeft.errors import InputError
from qpeft.evaluation import answer_correct, strict_correct
from qpeft.training.trl_data import load_sets, miscalculated
from tiny_base import byte_tokenizer

CHAT, PLAIN = byte_tokenizer(), byte_tokenizer(None)


def sets(kind, source="arithmetic", tokenizer=CHAT, evaluated=False, **options):
    options = {"problems": 6, "steps": 2} | options
    return load_sets(kind, ScriptArguments(str(source)), DatasetMixtureConfig(), tokenizer, evaluated, **options)


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_arithmetic_becomes_prompt_and_completion():
    train, test = sets("sft", system="Be brief.")
    problem = generate(6, 0, "train", 2)[0]
    assert test is None
    assert train[0] == {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": problem.question}],
        "completion": [{"role": "assistant", "content": problem.solution}],
    }
    plain, _ = sets("sft", tokenizer=PLAIN)
    assert plain[0] == {"prompt": problem.question + "\n", "completion": problem.solution}


def test_grpo_gets_the_answer_of_each_problem():
    train, test = sets("grpo", evaluated=True)
    assert train["answer"] == [str(problem.answer) for problem in generate(6, 0, "train", 2)]
    assert not {str(row) for row in train["prompt"]} & {str(row) for row in test["prompt"]}


def test_rejected_solutions_are_wrong_and_chosen_ones_right():
    train, _ = sets("dpo", tokenizer=PLAIN)
    for row, problem in zip(train, generate(6, 0, "train", 2), strict=True):
        assert row["chosen"] == problem.solution
        assert row["rejected"] == miscalculated(problem)
    for problem in generate(100, 1, "train", 3):
        assert strict_correct(problem.solution, problem)
        assert not answer_correct(miscalculated(problem), problem.answer)


def test_files_in_layouts_of_ours(tmp_path):
    file = lines(tmp_path / "a.jsonl", {"question": "2+3?", "answer": "2+3=5\n#### 5"})
    assert sets("grpo", file, PLAIN)[0][0] == {"prompt": "2+3?\n", "answer": "5"}
    assert sets("sft", file)[0][0]["completion"] == [{"role": "assistant", "content": "2+3=5\n#### 5"}]
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user", "assistant")]
    assert sets("sft", lines(tmp_path / "b.jsonl", {"messages": turns}))[0][0] == {"messages": turns}


def test_files_in_forms_of_trl_go_through(tmp_path):
    for kind, row in (
        ("sft", {"text": "all of it"}),
        ("dpo", {"prompt": "a", "chosen": "b", "rejected": "c"}),
        ("grpo", {"prompt": "2+3?", "answer": 5, "hint": "add"}),
    ):
        assert sets(kind, lines(tmp_path / "rows.jsonl", row), CHAT)[0][0] == row


def test_a_mixture_takes_the_place_of_a_name(tmp_path):
    file = lines(tmp_path / "rows.jsonl", *({"prompt": "a", "completion": str(number)} for number in range(10)))
    mixture = DatasetMixtureConfig([DatasetConfig("json", data_files=str(file))], test_split_size=0.2)
    train, test = load_sets("sft", ScriptArguments(None), mixture, CHAT, evaluated=True)
    assert (len(train), len(test)) == (8, 2)
    with pytest.raises(InputError, match="chosen and rejected"):
        load_sets("dpo", ScriptArguments(None), mixture, CHAT, evaluated=False)
    whole = replace(mixture, test_split_size=None)
    with pytest.raises(InputError, match="no split test; it has: train"):
        load_sets("sft", ScriptArguments(None), whole, CHAT, evaluated=True)


def test_unusable_sets_are_refused(tmp_path):
    file = lines(tmp_path / "rows.jsonl", {"question": "a?", "answer": "b"})
    with pytest.raises(InputError, match="question, answer, and dpo needs chosen and rejected"):
        sets("dpo", file)
    with pytest.raises(InputError, match="one file without a test split"):
        sets("sft", file, evaluated=True)
    with pytest.raises(InputError, match=r"did you mean rows\.jsonl"):
        sets("sft", tmp_path / "row.jsonl")
    with pytest.raises(InputError, match="holds no example"):
        sets("sft", lines(tmp_path / "empty.jsonl"))
    with pytest.raises(InputError, match="do not form one table"):
        sets("sft", lines(tmp_path / "mixed.jsonl", {"text": "a"}, {"text": {"b": 1}}))
    with pytest.raises(InputError, match="no data set is named"):
        load_sets("sft", ScriptArguments(None), DatasetMixtureConfig(), CHAT, evaluated=False)
