"""Is a written answer right? The final number alone ("answer"), or form and every step as well ("strict").

The final number is the one after `####`, GSM8K's mark (Cobbe et al. 2021), or the last number of the text where the
mark is missing. All comparisons are on exact fractions; a text that cannot be read is wrong, never an error.
"""

import re
from collections import Counter
from fractions import Fraction

from qpeft.data import Problem
from qpeft.evaluation.expressions import parse_infix, parse_number, parse_prefix

# Data sets store thirds and sixths as rounded decimals.
_RELATIVE_TOLERANCE = Fraction(1, 10**6)
# Worked solutions round their decimals, usually to cents.
_STEP_TOLERANCE = Fraction(1, 100)

_FIGURE = r"-?\s?\$?-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)"
_MARKED = re.compile(rf"####\s*({_FIGURE})", re.ASCII)
_ANY = re.compile(r"(?<![\w.])-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)|(?:\d[\d,]*(?:\.\d+)?|\.\d+)", re.ASCII)
_FINAL_LINE = re.compile(r"#### (-?\$?-?[\d,]*\.?\d+%?)", re.ASCII)
_CALCULATOR = re.compile(r"<<([^<>]*)>>")
_UNIT = re.compile(r"(?<=\d)\s*[A-Za-z][A-Za-z/ ]*(?=[-+*/=×÷])")  # "20 miles + 15 miles = 35" to "20+ 15= 35"
_INLINE = re.compile(r"([\d.,$()\s+\-*/x×÷]*[\d)])\s*=\s*(-?\$?[\d,]*\.?\d+)", re.ASCII)


def extract_answer(text: str) -> Fraction | None:
    """The final number of a text: the one after the first `####`, else the last number; `None` if there is none."""
    marked = _MARKED.search(text)
    if marked:
        return parse_number(marked.group(1))
    figures = _ANY.findall(text)
    return parse_number(figures[-1]) if figures else None


def answer_correct(text: str, gold: str | float | Fraction) -> bool:
    """Whether the final number of `text` equals `gold` (a number or its text, `"1,200"`)."""
    return _same(extract_answer(text), _as_number(gold))


def strict_correct(text: str, problem: Problem) -> bool:
    """Whether a solution of a generated problem is right in number, form and every step.

    Required are: one equation a line and `#### n` on the last; n is the answer; every equation is true; it uses only
    numbers of the problem and results of earlier lines; every result but the last is used later, the last one is the
    answer; and there are at least as many operations as in the reference.
    """
    lines = [line.strip() for line in text.strip().splitlines()]
    if len(lines) < 2:
        return False
    final = _FINAL_LINE.fullmatch(lines[-1])
    if not final or not _same(parse_number(final.group(1)), Fraction(problem.answer)):
        return False
    given = {Fraction(number) for number in problem.numbers} | _constants(problem)
    results: list[Fraction] = []
    unused: set[Fraction] = set()
    operations = 0
    for line in lines[:-1]:
        expression, equals, written = line.partition("=")
        parsed, result = parse_infix(expression), parse_number(written)
        if not equals or parsed is None or result is None or parsed[0] != result:
            return False
        used = parsed[1]
        if len(used) < 2 or any(number not in given and number not in results for number in used):
            return False
        unused.difference_update(used)
        unused.add(result)
        results.append(result)
        operations += len(used) - 1
    return results[-1] == problem.answer and unused <= {results[-1]} and operations >= len(problem.steps)


def gsm8k_strict_correct(text: str, gold: str | float | Fraction) -> bool:
    """Whether a GSM8K solution ends in the right `#### n` and all its calculator marks `<<48/2=24>>` are true.

    Where a text has no marks (they can be removed from the training data) its written equations are checked
    instead. A solution without any equation is not a worked one. Results may be rounded to cents.
    """
    lines = text.strip().splitlines()
    final = _FINAL_LINE.fullmatch(lines[-1].strip()) if lines else None
    if not final or not _same(parse_number(final.group(1)), _as_number(gold)):
        return False
    equations = [mark.rpartition("=")[::2] for mark in _CALCULATOR.findall(text)]
    if not equations:
        plain = text.replace(" x ", "*").replace("−", "-").replace("–", "-")
        equations = _INLINE.findall(_UNIT.sub("", plain))
    return bool(equations) and all(_equation_true(left, right) for left, right in equations)


def mawps_value(text: str) -> Fraction | None:
    """The number that an answer to a MAWPS problem stands for.

    The first line is read as a prefix equation (`- + 35 10 10`), then as an infix one (`(35+10)-10`); failing both,
    the final number of the text counts.
    """
    first = _first_line(text)
    for parsed in (parse_prefix(first), parse_infix(first.partition("=")[0])):
        if parsed is not None:
            return parsed[0]
    return extract_answer(text)


def mawps_correct(text: str, gold: str | float | Fraction, equation_prefix: str = "") -> bool:
    """Whether the executed equation, or the number written instead, equals `gold`.

    The set stores some answers rounded (`/ 10 3` as 3.33333); the value of the reference equation, where it is
    given, is right as well.
    """
    value, reference = mawps_value(text), parse_prefix(equation_prefix)
    return _same(value, _as_number(gold)) or (reference is not None and _same(value, reference[0]))


def mawps_strict_correct(text: str, equation_prefix: str) -> bool:
    """Whether the text is one prefix equation with the reference's value, made of the reference's numbers."""
    parsed, reference = parse_prefix(text.strip()), parse_prefix(equation_prefix)
    if parsed is None or reference is None:
        return False
    return _same(parsed[0], reference[0]) and Counter(parsed[1]) == Counter(reference[1])


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _constants(problem: Problem) -> set[Fraction]:
    """Numbers of the reference that the story only implies (a week's 7, a dozen's 12, the 2 of "half")."""
    known = {Fraction(number) for number in problem.numbers}
    constants: set[Fraction] = set()
    for expression, result in problem.steps:
        _, numbers = parse_infix(expression) or (None, ())
        constants.update(number for number in numbers if number not in known)
        known.add(Fraction(result))
    return constants


def _equation_true(left: str, right: str) -> bool:
    for written, sign in (("$", ""), (",", ""), ("x", "*"), ("×", "*"), ("÷", "/"), ("//", "/")):
        left, right = left.replace(written, sign), right.replace(written, sign)
    value, result = parse_infix(left), parse_infix(right)
    return value is not None and result is not None and abs(value[0] - result[0]) <= _STEP_TOLERANCE


def _as_number(gold: str | float | Fraction) -> Fraction | None:
    return parse_number(gold) if isinstance(gold, str) else Fraction(str(gold))


def _same(value: Fraction | None, gold: Fraction | None) -> bool:
    if value is None or gold is None:
        return False
    return abs(value - gold) <= _RELATIVE_TOLERANCE * max(abs(gold), Fraction(1))
