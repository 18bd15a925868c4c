import pytest

from qpeft.errors import InputError
from qpeft.evaluation.rewards import exact_answer, find_rewards


def test_exact_answer_on_known_answers():
    texts = ["6*7=42\n#### 42", "The answer is 42.", "#### 41", "I do not know.", "", "42 or 43"]
    assert exact_answer(texts, answer=["42"] * 6) == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]


def test_exact_answer_reads_messages_and_solutions_and_numbers():
    messages = [[{"role": "assistant", "content": "#### 1,200"}]] * 3
    assert exact_answer(messages, answer=["12 * 100 = 1200\n#### 1200", 1200, "$1,200.00"]) == [1.0, 1.0, 1.0]


def test_an_answer_without_a_number_is_refused():
    with pytest.raises(InputError, match="'blue' holds no number"):
        exact_answer(["42"], answer=["blue"])


def test_rewards_are_found_by_name_and_by_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_own_rewards.py").write_text(
        "def length(completions, **_):\n    return [float(len(text)) for text in completions]\n"
        "def broken(completions, **_):\n    raise KeyError('solution')\n"
    )
    ours, length, broken = find_rewards(["exact_answer", "my_own_rewards.length", "my_own_rewards.broken"])
    assert ours(completions=["5"], answer=["5"], prompts=["2+3?"]) == [1.0]
    assert length.__name__ == "length"  # the name TRL logs it under
    assert length(completions=["abc"]) == [3.0]
    with pytest.raises(InputError, match=r"the reward my_own_rewards\.broken failed"):
        broken(completions=["abc"])


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("exact_anser", "did you mean exact_answer"),
        ("nothing_alike", "there are: exact_answer"),
        ("no_such_module.reward", "cannot be imported"),
        ("os.sep", "is str, not a function"),
    ],
)
def test_unknown_rewards_are_refused(name, part):
    with pytest.raises(InputError, match=part):
        find_rewards([name])
