from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qpeft.data import Problem, generate
from qpeft.evaluation.answers import (
    answer_correct,
    extract_answer,
    gsm8k_strict_correct,
    mawps_correct,
    mawps_strict_correct,
    mawps_value,
    strict_correct,
)
from qpeft.evaluation.expressions import evaluate_infix, parse_number, parse_prefix

# A text as a model may write it: mostly the characters of arithmetic, in any order.
arithmetic_text = st.text("0123456789+-*/=#.,$%() \n<>x", max_size=80)
BOMB = "9**9**9"

# Three packs of 8 cards, 5 given away, half of a dozen found: 24, 19, 25.
PROBLEM = Problem(
    question="3 packs of 8 cards, 5 go, half a dozen come?",
    steps=(("3*8", 24), ("24-5", 19), ("19+6", 25)),
    solution="3*8=24\n24-5=19\n19+6=25\n#### 25",
    answer=25,
    template="test",
    numbers=(3, 8, 5),
    unseen_template=False,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("7+8=15\n#### 15", 15),
        ("#### 1,200", 1200),
        ("#### $18", 18),
        ("#### -$3.50", Fraction(-7, 2)),
        ("#### $-3", -3),
        ("#### 75%", 75),
        ("#### 0.25", Fraction(1, 4)),
        ("#### .5", Fraction(1, 2)),
        ("#### 12.", 12),
        ("####15", 15),
        ("#### 15\nuser: next 99\n#### 7", 15),
        ("It is 3, or rather 4.", 4),
        ("She has $1,024.50 left.", Fraction(2049, 2)),
        ("the answer is -7", -7),
        ("10-3", 3),
        ("#### none, so 5", 5),
        ("no number", None),
        ("", None),
        ("#### ", None),
        ("٣", None),
    ],
)
def test_extract(text, value):
    assert extract_answer(text) == value


@pytest.mark.parametrize(
    ("text", "gold", "right"),
    [
        ("#### 18", "18", True),
        ("#### 18.00", "18", True),
        ("#### 1200", "1,200", True),
        ("#### 18", 18, True),
        ("#### 0.1", 0.1, True),
        ("#### 0.333333333", 1 / 3, True),
        ("#### 0.33", 1 / 3, False),
        ("#### 19", "18", False),
        ("", "18", False),
        ("nan", "18", False),
    ],
)
def test_answer_correct(text, gold, right):
    assert answer_correct(text, gold) is right


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7*8+3", 59),
        ("(2+3)*4", 20),
        ("1/3", Fraction(1, 3)),
        ("0.1+0.2", Fraction(3, 10)),
        ("-4+6", 2),
        ("+11", 11),
        ("4/0", None),
        (BOMB, None),
        ("2//3", None),
        ("__import__('os')", None),
        ("1e9", None),
        ("0x10", None),
        ("(1", None),
        ("1 2", None),
        ("2(3)", None),
        ("()", None),
        ("", None),
        ("(" * 150 + "1" + ")" * 49, None),
        ("1+" * 200 + "1", None),
    ],
)
def test_infix(expression, value):
    assert evaluate_infix(expression) == value


def combine(left, operation, right):
    """An expression's text with its value beside it, `None` where it divides by zero."""
    text = f"({left[0]}{operation}{right[0]})"
    if left[1] is None or right[1] is None or (operation == "/" and right[1] == 0):
        return text, None
    a, b = left[1], right[1]
    return text, {"+": a + b, "-": a - b, "*": a * b, "/": a / b if b else None}[operation]


leaves = st.integers(0, 99).map(lambda number: (str(number), Fraction(number)))


@given(
    st.recursive(
        leaves, lambda inner: st.builds(combine, inner, st.sampled_from("+-*/"), inner), max_leaves=12
    ).filter(lambda pair: len(pair[0]) <= 200)
)
def test_infix_of_any_shape(expression):
    text, value = expression
    assert evaluate_infix(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("- + 35 10 10", 35),
        ("/ 10 4", Fraction(5, 2)),
        ("7", 7),
        ("* -2 3.", -6),
        ("+ 1", None),
        ("+ 1 2 3", None),
        ("/ 1 0", None),
        ("+ a b", None),
        ("", None),
    ],
)
def test_prefix(text, value):
    parsed = parse_prefix(text)
    assert (parsed and parsed[0]) == value


@pytest.mark.parametrize("text", ["", "-", "$", "%", "..", "1.2.3", "1-2", "1e5", "inf", "nan", "½"])
def test_not_a_number(text):
    assert parse_number(text) is None


@settings(max_examples=400, deadline=3000)
@given(st.one_of(st.text(max_size=80), arithmetic_text))
@example(BOMB)
@example("9" * 5000)
@example("#### " + "9" * 5000)
@example("(" * 100_000)
@example("- " * 100_000 + "1")
@example("\ud800")
def test_nothing_raises_or_hangs(text):
    extract_answer(text)
    evaluate_infix(text)
    parse_prefix(text)
    mawps_value(text)
    for result in (
        answer_correct(text, "3"),
        answer_correct("#### 3", text),
        strict_correct(text, PROBLEM),
        strict_correct(f"{text}\n#### {PROBLEM.answer}", PROBLEM),
        gsm8k_strict_correct(f"<<{text}>>\n#### 3", "3"),
        mawps_correct(text, "3", text),
        mawps_strict_correct(text, text),
    ):
        assert result in (True, False)


@pytest.mark.parametrize(
    "text",
    [
        PROBLEM.solution,
        PROBLEM.solution + "\n",
        "3 * 8 = 24\n24 - 5 = 19\n19 + 6 = 25\n#### 25",
        "8*3=24\n24+6=30\n30-5=25\n#### 25",
        "3*8=24\n24-5+6=25\n#### 25",
    ],
)
def test_strict_accepts(text):
    assert strict_correct(text, PROBLEM)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("3*8=24\n24-5=19\n19+6=25\n#### 24", "wrong number"),
        ("3*8=24\n24-5=19\n19+6=25", "no final line"),
        ("3*8=24\n24-5=19\n19+6=25\n25", "no mark"),
        ("#### 25\n3*8=24\n24-5=19\n19+6=25", "mark not last"),
        ("3*8=24\n24-5=19\n19+6=25\n#### 25\nmore", "text after the mark"),
        ("#### 25", "no steps"),
        ("3*8=25\n25-5=20\n20+5=25\n#### 25", "false equation"),
        ("3*8=24\n24-5=20\n20+5=25\n#### 25", "false equation behind a true one"),
        ("3*8=24\n19+6=25\n#### 25", "19 comes from nowhere"),
        ("3*8=24\n24-5=19\n#### 25", "last value is not the answer"),
        ("20+5=25\n#### 25", "20 comes from nowhere"),
        ("3*8=24\n8+3=11\n24-5=19\n19+6=25\n#### 25", "a step that leads nowhere"),
        ("So 3*8=24\n24-5=19\n19+6=25\n#### 25", "words"),
        ("3*8=24\n24-5=19\n19+6=25\n25=25\n#### 25", "an equation without operation"),
        ("3*8=24=24\n24-5=19\n19+6=25\n#### 25", "two equal signs"),
        ("3**8=6561\n24-5=19\n19+6=25\n#### 25", "power"),
        (f"{BOMB}=25\n#### 25", "power tower"),
        ("", "empty"),
    ],
)
def test_strict_refuses(text, why):
    assert not strict_correct(text, PROBLEM), why


def test_strict_needs_as_many_operations_as_the_reference():
    short = Problem("6 and 6 and 6?", (("6+6", 12), ("12+6", 18)), "", 18, "t", (6, 6, 6), False)
    assert strict_correct("6+6=12\n12+6=18\n#### 18", short)
    assert not strict_correct("6+12=18\n#### 18", short)


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_generated_solution_is_strictly_right(split):
    for problem in generate(1500, 1, split):
        assert strict_correct(problem.solution, problem)
        assert answer_correct(problem.solution, problem.answer)
        wrong = problem.solution.replace(f"#### {problem.answer}", f"#### {problem.answer + 1}")
        assert not strict_correct(wrong, problem)
        assert not answer_correct(wrong, problem.answer)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("48/2 = <<48/2=24>>24\n48+24 = <<48+24=72>>72\n#### 72", True),
        ("48/2 = <<48/2=23>>23\n#### 72", False),
        ("48/2 = <<48/2=24>>24\n#### 71", False),
        ("48/2 = <<48/2=24>>24\nso 72", False),
        ("#### 72", False),
        ("24 clips and 48 more = 72\n#### 72", False),
        ("She sold 48 clips / 2 = 24 clips and 48 + 24 = $72.\n#### 72", True),
        ("She sold 48/2 = 25 clips.\n#### 72", False),
        ("<<10/3=3.33>>\n#### 72", True),
        ("<<3/4=3/4>>\n#### 72", True),
        ("<<2*(20+16)=72>>\n#### $72", True),
        ("<<>>\n#### 72", False),
        ("<<9**9**9=72>>\n#### 72", False),
    ],
)
def test_gsm8k_strict(text, right):
    assert gsm8k_strict_correct(text, "72") is right


@pytest.mark.parametrize(
    ("text", "right", "strict"),
    [
        ("- + 35 10 10", True, True),
        ("- + 10 35 10", True, True),
        ("35", True, False),
        ("+ 30 5", True, False),
        ("(35+10)-10", True, False),
        ("35+10-10 = 35", True, False),
        ("The answer is 35.", True, False),
        ("- + 35 10 10\nand more", True, False),
        ("- + 35 10 11", False, False),
        ("- 35", False, False),
        ("", False, False),
    ],
)
def test_mawps(text, right, strict):
    assert mawps_correct(text, "35.0", "- + 35 10 10") is right
    assert mawps_strict_correct(text, "- + 35 10 10") is strict


def test_mawps_takes_the_value_of_the_equation_where_the_stored_answer_is_rounded():
    assert mawps_correct("/ 10 3", "3.33333", "/ 10 3")
    assert not mawps_correct("/ 10 3", "3.33333")
