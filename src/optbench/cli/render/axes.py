"""Read the axes of a plot: `seed`, `{strength: [0,0.5,1]}`, ranges as A1111 writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optbench.config.build import check_value
from optbench.errors import Problem, near_names
from optbench.models.samplers import SAMPLERS
from optbench.schema import ImageSeed

KINDS = (
    *("lora", "epoch", "strength", "prompt", "seed"),
    *("cfg_scale", "steps", "sampler", "clip_skip", "sr", "wildcard"),
)
_OF_ALL = ("lora", "epoch", "prompt", "seed")  # these may stand without values
_INTEGERS = {"epoch": 0, "seed": 0, "steps": 1, "clip_skip": 1}  # and the least of each
_NUMBER = r"([+-]?(?:\d{1,15}+(?:\.\d*+)?|\.\d++))"  # no more digits than a float keeps
_RANGE = re.compile(
    rf"\s*+{_NUMBER}\s*+-\s*+{_NUMBER}\s*+(?:\(\s*+{_NUMBER}\s*+\)|\[\s*+(\d{{1,15}}+)\s*+\])?\s*+"
)
_MAX_VALUES = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One side of a plot."""

    kind: str  # one of KINDS
    values: tuple[Any, ...] | None  # None: all there are; of `wildcard` its name

    @property
    def key(self) -> tuple[str, Any]:
        """What no two sides may share: the kind, and the term or wildcard that is replaced."""
        named = self.kind in ("sr", "wildcard") and self.values
        return self.kind, self.values[0] if named and self.values else None


def read_axis(where: str, given: Any, problems: list[Problem]) -> Axis | None:
    """Return an axis, or None for none and after noting what is wrong with it."""
    if given is None:
        return None
    if isinstance(given, str) and given in _OF_ALL:
        return Axis(kind=given, values=None)
    if not isinstance(given, Mapping) or len(given) != 1 or next(iter(given)) not in KINDS:
        problems.append(
            Problem(
                where,
                str(given),
                f"{', '.join(_OF_ALL)}, null, or one of {', '.join(KINDS)} and its values",
                f"write {where}=seed, or '{where}={{strength:[0,0.5,1]}}'",
            )
        )
        return None
    kind, raw = next(iter(given.items()))
    listed = list(raw) if isinstance(raw, Sequence) and not isinstance(raw, str) else [raw]
    values: list[Any] = []
    for item in listed:
        values += _numbers(item) if kind in {*_INTEGERS, "strength", "cfg_scale"} else [item]
    checked = [_wrong_value(where, kind, value) for value in values]
    wrong = [problem for problem in checked if problem is not None]
    if not wrong and (not values or len(set(values)) < len(values) or len(values) > _MAX_VALUES):
        found = f"{len(values)} values, {len(set(values))} of them different"
        wrong = [_problem(where, found, f"from 1 to {_MAX_VALUES} values, none twice")]
    if not wrong and kind == "sr" and len(values) < 2:
        wrong = [_problem(where, "nothing to replace it with", "the text to replace, and others")]
    if not wrong and kind == "wildcard" and len(values) > 1:
        wrong = [_problem(where, f"{len(values)} names", "the name of one wildcard")]
    problems += wrong
    return None if wrong else Axis(kind=kind, values=tuple(values))


def _numbers(given: Any) -> list[Any]:
    """Return a number, or those of a range as A1111 writes it: 1-5, 1-10 (+3), 0-1 [5]."""
    if not isinstance(given, str) or not (match := _RANGE.fullmatch(given)):
        return [given]
    texts = match[1], match[2], match[3] or "1"
    first, last, step = (float(text) for text in texts)
    if match[4]:
        count = int(match[4])
        gaps = max(1, count - 1)
        numbers = [first + (last - first) * index / gaps for index in range(min(count, 2000))]
    elif step == 0 or (last - first) / step > 2 * _MAX_VALUES:
        return [given]
    else:
        count = int((last - first) / step + 1e-9) + 1
        numbers = [first + step * index for index in range(count)]
    are_whole = all(number.is_integer() for number in numbers)
    return [int(number) if are_whole else round(number, 10) for number in numbers]


def _wrong_value(where: str, kind: str, value: Any) -> Problem | None:
    if kind in _INTEGERS:
        least = _INTEGERS[kind]
        if type(value) is not int or value < least:
            return _problem(where, f"{kind} {value!r}", f"whole numbers from {least}")
        return next(iter(check_value(ImageSeed, value, where)), None) if kind == "seed" else None
    if kind in ("strength", "cfg_scale"):
        is_number = type(value) in (int, float) and abs(value) < float("inf")
        if not is_number or (kind == "cfg_scale" and value <= 0):
            above = " above 0" if kind == "cfg_scale" else ""
            return _problem(where, f"{kind} {value!r}", f"numbers{above}")
        return None
    if kind == "sampler" and value not in SAMPLERS:
        near = " or ".join(near_names(str(value), SAMPLERS, cutoff=0.5))
        return _problem(where, f"the sampler {value!r}", near or f"one of {', '.join(SAMPLERS)}")
    if not isinstance(value, str) or not value:
        return _problem(where, f"{kind} {value!r}", "texts")
    return None


def _problem(where: str, found: str, expected: str) -> Problem:
    return Problem(
        where,
        found,
        expected,
        f"write for instance '{where}={{strength:[0,0.5,1]}}' or '{where}={{seed:1-4}}'",
    )
