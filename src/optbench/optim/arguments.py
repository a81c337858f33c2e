"""Type the arguments of an optimizer, which no schema knows, by values that are right already.

A class takes any object, and many a class takes the text `no` for true. So an argument has the
kind of the value its recipe ships with, or of the default in the class's signature. Torch-free.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from optbench.errors import Problem

# Words that YAML or another program reads as something else than the text they are here.
_READS_AS: dict[str, str] = {
    **dict.fromkeys(("yes", "on", "y", "true"), "true"),
    **dict.fromkeys(("no", "off", "n", "false"), "false"),
    **dict.fromkeys(("none", "null", "nil", "~"), "null"),
}
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d+)([eE][-+]?\d+)?|[-+]?\.?(inf|nan)")


def check_kind(where: str, value: object, example: object) -> list[Problem]:
    """Return a problem if a value is of another kind than one that is right.

    Args:
        where: The setting's dotted key.
        value: What it is set to; null is left to the class.
        example: The recipe's own value, or the default of the class.
    """
    if value is None or example is None:
        return []
    if isinstance(example, bool):
        if isinstance(value, bool):
            return []
        meant = _READS_AS.get(str(value).lower(), {"1": "true", "0": "false"}.get(str(value), ""))
        fix = f"write {where}={meant}" if meant in ("true", "false") else ""
        return [_problem(where, value, "true or false", fix or f"write {where}={typed(example)}")]
    if isinstance(example, (int, float)):
        return _check_number(where, value, example)
    if isinstance(example, str):
        if isinstance(value, str):
            return []
        return [_problem(where, value, "text", f"write \"{where}='{typed(value)}'\"")]
    if isinstance(example, Sequence):
        return _check_list(where, value, example)
    return []


def check_word(where: str, value: object) -> list[Problem]:
    """Return a problem for a bare word that reads like another kind, where no kind is known."""
    meant = _READS_AS.get(value.lower()) if isinstance(value, str) else None
    if meant is None and isinstance(value, str) and _NUMBER.fullmatch(value.strip().lower()):
        number = value.strip().replace("_", "")
        try:
            meant = typed(int(number, 10) if number.lstrip("+-").isdigit() else float(number))
        except ValueError:
            meant = "0"
    if meant is None:
        return []
    return [
        _problem(
            where,
            value,
            "a value of another kind: a class would take this text for true, or refuse it",
            f"write {where}={meant}, or \"{where}='{value}'\" for the text itself",
        )
    ]


def _check_number(where: str, value: object, example: float) -> list[Problem]:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if is_number and (math.isfinite(value) or value == example):  # type: ignore[arg-type]
        return []
    fix = f"write {where}={typed(example)}"
    if isinstance(value, str) and _NUMBER.fullmatch(value.lower()):
        with_point = value.replace("_", "")
        number = float(with_point)
        if math.isfinite(number):
            fix = f"write {where}={typed(int(number) if number == int(number) else number)}"
    expected = "a number"
    if is_number:
        expected = "a finite number"
    elif isinstance(value, Sequence) and not isinstance(value, str):
        expected = "one number, and no list"
    return [_problem(where, value, expected, fix)]


def _check_list(where: str, value: object, example: Sequence[Any]) -> list[Problem]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    fix = f"write '{where}={typed(example)}'"
    if not is_list or len(value) != len(example):  # type: ignore[arg-type]
        expected = f"a list of {len(example)}: {typed(example)}"
        return [_problem(where, value, expected, fix)]
    wrong = [
        problem
        for item, part in zip(value, example, strict=True)  # type: ignore[call-overload]
        for problem in check_kind(where, item, part)
    ]
    return [_problem(where, value, f"a list like {typed(example)}", fix)] if wrong else []


def _problem(where: str, value: object, expected: str, fix: str) -> Problem:
    return Problem(where, repr(value) if isinstance(value, str) else typed(value), expected, fix)


def typed(value: object) -> str:
    """Return a value as it is typed behind `key=`."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        text = f"{value:g}"
        return text if float(text) == value else repr(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{','.join(typed(item) for item in value)}]"
    return str(value)
