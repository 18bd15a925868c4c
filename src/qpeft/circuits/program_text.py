"""What the text formats share: angles with 8 decimals, angle expressions, the comment that keeps the observables.

Eight decimals are what quantum clouds accept and send; two angles that agree to 8 decimals are one program to them.
"""

from __future__ import annotations

import ast
import math
import re

from qpeft.circuits.circuit import Angle, Circuit, Input, Observable, Weight
from qpeft.errors import InputError

MAX_QUBITS = 4096  # keeps a typing error in a register size from filling the memory
_MAX_EXPRESSION = 200
_OBSERVABLE = re.compile(r"//\s*observable:(.*)")


def number_text(value: float) -> str:
    """Write an angle with 8 decimals, never as ``-0.00000000``."""
    return f"{round(value, 8) + 0.0:.8f}"


def observable_comments(circuit: Circuit) -> list[str]:
    """One comment line per observable; neither format has a statement for expectations."""
    return [f"// observable: {observable}" for observable in circuit.observables]


def observable_of(line: str, number: int) -> Observable | None:
    """The observable that a comment line holds, if it holds one."""
    match = _OBSERVABLE.search(line)
    if match is None:
        return None
    try:
        return Observable(match[1].strip())
    except InputError as error:
        raise InputError(f"line {number}: {error}") from error


def measured_in_z(circuit: Circuit) -> bool:
    """Whether measuring every qubit in the computational basis yields all the observables."""
    return all(observable.is_diagonal for observable in circuit.observables)


def register_size(text: str, number: int) -> int:
    """Read a register size, refusing what cannot be meant."""
    size = int(text) if len(text) < 9 else MAX_QUBITS + 1
    if not 1 <= size <= MAX_QUBITS:
        raise InputError(f"line {number}: register size {text} is not between 1 and {MAX_QUBITS}; correct the size.")
    return size


def parse_angle(text: str, number: int, symbols: frozenset[str] = frozenset()) -> Angle:
    """Read ``0.5``, ``-pi/4``, ``x0``, ``2*w3``: numbers, pi, + - * / and at most one declared symbol, never code.

    Args:
        text: The expression.
        number: Line number for the error message.
        symbols: Declared parameter names, ``x<i>`` for inputs and ``w<k>`` for weights.
    """
    wrong = InputError(f"line {number}: angle {text[:60]!r} cannot be read; write a number such as 0.5 or pi/2.")
    if len(text) > _MAX_EXPRESSION:
        raise wrong

    def fold(node: ast.expr) -> tuple[float, str | None]:  # value is coefficient * symbol
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, (int, float))
            and not isinstance(node.value, bool)
        ):
            return float(node.value), None
        if isinstance(node, ast.Name):
            if node.id in ("pi", "π"):
                return math.pi, None
            if node.id in symbols:
                return 1.0, node.id
            raise InputError(
                f"line {number}: {node.id!r} is not declared; declare it as 'input float[64] {node.id};'."
            )
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value, symbol = fold(node.operand)
            return (-value if isinstance(node.op, ast.USub) else value), symbol
        if isinstance(node, ast.BinOp):
            (a, left), (b, right) = fold(node.left), fold(node.right)
            if isinstance(node.op, ast.Mult) and not (left and right):
                return a * b, left or right
            if isinstance(node.op, ast.Div) and right is None:
                return a / b, left
            if isinstance(node.op, (ast.Add, ast.Sub)) and left is None and right is None:
                return (a + b if isinstance(node.op, ast.Add) else a - b), None
        raise wrong

    try:
        value, symbol = fold(ast.parse(text.strip(), mode="eval").body)
    except InputError:
        raise
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError, MemoryError) as error:
        raise wrong from error
    if not math.isfinite(value):
        raise wrong
    if symbol is None:
        return value
    return (Input if symbol[0] == "x" else Weight)(int(symbol[1:]), value)
