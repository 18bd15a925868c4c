"""Arithmetic that a model wrote, computed safely and exactly: no `eval`, no powers, bounded length, fractions."""

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction

# Longer texts are not the arithmetic of a word problem; the limit also bounds the size of every number below.
_LONGEST = 200
_INFIX = re.compile(r"[0-9+\-*/(). ]+")
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d*)?|\.\d+)", re.ASCII)

_OPERATIONS: dict[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_SIGNS: dict[str, type[ast.operator]] = {"+": ast.Add, "-": ast.Sub, "*": ast.Mult, "/": ast.Div}


def parse_number(text: str) -> Fraction | None:
    """Reads one number as people write it: `-3`, `1,200`, `$18`, `2.50`, `75%`, `5.`; `None` for anything else.

    A percent sign is a unit here, as in GSM8K's answers: `75%` is 75.
    """
    text = text.strip()[:_LONGEST].replace("$", "").replace(",", "").rstrip("%. ").replace("- ", "-")
    return Fraction(text) if _NUMBER.fullmatch(text) else None


def evaluate_infix(text: str) -> Fraction | None:
    """The value of an expression of numbers, `+ - * /` and parentheses; `None` if it is not one.

    Never raises: malformed text, division by zero, powers and over-long texts all give `None`.
    """
    parsed = parse_infix(text)
    return None if parsed is None else parsed[0]


def parse_infix(text: str) -> tuple[Fraction, tuple[Fraction, ...]] | None:
    """The value of an infix expression and the numbers that stand in it (one more than its operations)."""
    text = text.strip()
    if len(text) > _LONGEST or "**" in text or "//" in text or not _INFIX.fullmatch(text):
        return None
    try:
        numbers: list[Fraction] = []
        value = _walk(ast.parse(text, mode="eval").body, numbers)
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, MemoryError):
        return None
    return value, tuple(numbers)


def _walk(node: ast.expr, numbers: list[Fraction]) -> Fraction:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        number = Fraction(str(node.value))  # through the text: 0.1 is one tenth
        numbers.append(number)
        return number
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        operand = _walk(node.operand, numbers)
        return -operand if isinstance(node.op, ast.USub) else operand
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_walk(node.left, numbers), _walk(node.right, numbers))
    raise ValueError("not arithmetic")


def parse_prefix(text: str) -> tuple[Fraction, tuple[Fraction, ...]] | None:
    """The value of a prefix expression such as `- + 35 10 10` and its numbers; `None` if it is not one.

    Never raises, as `evaluate_infix`.
    """
    tokens = text.split()
    if not tokens or len(text) > _LONGEST:
        return None
    numbers: list[Fraction] = []
    stack: list[Fraction] = []
    for token in reversed(tokens):
        if token in _SIGNS:
            if len(stack) < 2:
                return None
            left, right = stack.pop(), stack.pop()
            if token == "/" and right == 0:
                return None
            stack.append(_OPERATIONS[_SIGNS[token]](left, right))
        elif _NUMBER.fullmatch(token):
            numbers.append(Fraction(token.rstrip(".")))
            stack.append(numbers[-1])
        else:
            return None
    return (stack[0], tuple(reversed(numbers))) if len(stack) == 1 else None
