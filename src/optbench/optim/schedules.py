"""Multiply every group's learning rate over a run, by schedules that are pure maths.

With s the zero-based index of the update, N all updates, w the warm-up, p = (s - w) / (N - w),
c = num_cycles, r = min_lr_ratio, D = decay_steps and T = timescale (null: w, or 10000 without
a warm-up):

    every schedule, s < w       s / w            (the first update of a warm-up has rate 0)
    constant, _with_warmup      1
    linear                      1 - p
    cosine                      (1 + cos(pi p)) / 2
    cosine_with_restarts        (1 + cos(pi (c p mod 1))) / 2, and 0 from p = 1 on
    cosine_with_min_lr          r + (1 - r) (1 + cos(pi c p)) / 2
    polynomial                  r + (1 - r) (1 - p)^power
    inverse_sqrt                sqrt(T / (T + s - w))
    warmup_stable_decay         1 until N - D, then r + (1 - r) (1 + cos(pi (s - N + D) / D)) / 2;
                                the warm-up is r + (1 - r) s / w
    rex                         (1 - p) / (1 - p / 2)
    piecewise                   by step_rules "1:10,0.1:20,0.01": 1 before update 10, 0.1 before
                                update 20, 0.01 from there on
    adafactor                   1: the rate is the class's own

These are the values of transformers' and diffusers' `get_scheduler` and of kohya's trainer, where
they have the name; rex is from Chen, Wolfe and Kyrillidis, REX: Revisiting Budgeted Training with
an Improved Schedule, arXiv:2107.04197.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optbench.errors import Problem
from optbench.schema import LrSchedulerOptions, is_length

_LONG_TIMESCALE = 10_000
_MEANS = {
    "warmup_steps": "a warm-up",
    "num_cycles": "cycles",
    "power": "a power",
    "min_lr_ratio": "a smallest rate",
    "timescale": "a time scale",
    "decay_steps": "a decay",
    "step_rules": "rules",
}
_NONE: Mapping[str, object] = {"warmup_steps": 0, "num_cycles": 1}  # else None
_EXAMPLES = {
    "power": "2",
    "min_lr_ratio": "0.1",
    "decay_steps": "0.2",
    "step_rules": "'\"1:0.5,0.1:0.8,0.01\"'",
}


@dataclass(frozen=True, slots=True)
class _Place:
    """One update of a run, and the settings of its schedule."""

    options: LrSchedulerOptions
    step_index: int
    total_steps: int
    num_warmup: int

    @property
    def progress(self) -> float:
        """Return how much of the run after the warm-up is over, from 0 to 1."""
        return (self.step_index - self.num_warmup) / max(1, self.total_steps - self.num_warmup)

    @property
    def floor(self) -> float:
        """Return the smallest multiplier, 0 where the schedule has none."""
        return self.options.min_lr_ratio or 0.0


def multiplier(options: LrSchedulerOptions, step_index: int, total_steps: int) -> float:
    """Return what every rate is multiplied by at update `step_index` (from 0) of `total_steps`."""
    num_warmup = num_warmup_steps(options, total_steps)
    place = _Place(options, step_index, total_steps, num_warmup)
    if step_index < num_warmup:
        start = place.floor if options.name == "warmup_stable_decay" else 0.0
        return start + (1 - start) * step_index / num_warmup
    return _SHAPES[options.name].value(place)


def settings_in_use(name: str) -> tuple[str, ...]:
    """Return the settings that have an effect on the schedule of a name."""
    return _SHAPES[name].uses


def num_warmup_steps(options: LrSchedulerOptions, total_steps: int) -> int:
    """Return the updates spent warming up; a fraction of the run is rounded down."""
    return _num_steps(options.warmup_steps, total_steps)


def check_schedule(options: LrSchedulerOptions, *, total_steps: int | None = None) -> list[Problem]:
    """Return everything that is impossible or without effect in `options`.

    Args:
        options: The schedule.
        total_steps: The updates of the run, or None where they are not known yet.
    """
    if options.name not in _SHAPES:
        return [
            Problem(
                "lr_scheduler.name",
                f"the schedule {options.name!r}",
                f"one of {', '.join(_SHAPES)}",
                "choose one with lr_scheduler=cosine",
            )
        ]
    problems = [*_check_effect(options), *_check_rules(options)]
    if not problems and total_steps is not None:
        problems = _check_lengths(options, total_steps)
    return problems


def _check_effect(options: LrSchedulerOptions) -> list[Problem]:
    """Return a problem for each setting the schedule has no use for, and each it lacks."""
    shape = _SHAPES[options.name]
    problems = []
    for name, meaning in _MEANS.items():
        value = getattr(options, name)
        is_given = value != _NONE.get(name)
        if is_given and name not in shape.uses:
            users = [other for other, user in _SHAPES.items() if name in user.uses]
            problems.append(
                Problem(
                    f"lr_scheduler.{name}",
                    f"{meaning} ({value}) for {options.name}, which has none",
                    "no such setting, because it would have no effect",
                    f"leave lr_scheduler.{name} out, or write "
                    + " or ".join(f"lr_scheduler={user}" for user in users[:3]),
                )
            )
        elif not is_given and name in shape.uses and name in _EXAMPLES:
            problems.append(
                Problem(
                    f"lr_scheduler.{name}",
                    "null",
                    f"{meaning}, which {options.name} cannot do without",
                    f"write lr_scheduler.{name}={_EXAMPLES[name]}",
                )
            )
    return problems


def _check_rules(options: LrSchedulerOptions) -> list[Problem]:
    if options.step_rules is None or _rules(options.step_rules) is not None:
        return []
    return [
        Problem(
            "lr_scheduler.step_rules",
            repr(options.step_rules),
            "multiplier:end pairs with rising ends and one last multiplier, all above 0; ends are "
            "steps, or fractions of the run below 1",
            f"write lr_scheduler.step_rules={_EXAMPLES['step_rules']}",
        )
    ]


def _check_lengths(options: LrSchedulerOptions, total_steps: int) -> list[Problem]:
    """Return a problem if the run is too short for what is asked."""
    num_warmup = num_warmup_steps(options, total_steps)
    num_decay = _num_steps(options.decay_steps or 0, total_steps)
    rules = _rules(options.step_rules or "1") or ()
    pieces = [_num_steps(end, total_steps) for _, end in rules if end < math.inf]
    falling = total_steps - num_warmup
    if num_warmup and num_warmup >= total_steps:
        what, name, value, expected = (
            f"a warm-up of {options.warmup_steps:g} steps",
            "warmup_steps",
            "0.1",
            "a warm-up shorter than the run, so that the rate reaches its value",
        )
    elif options.num_cycles > 1 and options.num_cycles >= falling:
        what, name, value, expected = (
            f"{options.num_cycles} cycles in the {falling} steps after the warm-up",
            "num_cycles",
            f"{max(1, falling // 10)}",
            "cycles of two steps or more: in shorter ones the rate never falls",
        )
    elif num_decay and num_warmup + num_decay > total_steps:
        what, name, value, expected = (
            f"a warm-up of {num_warmup} and a decay of {num_decay} steps",
            "decay_steps",
            "0.2",
            "both together no longer than the run",
        )
    elif options.decay_steps and not num_decay:
        what, name, value, expected = "a decay of 0 steps", "decay_steps", "1", "at least one step"
    elif pieces and (pieces[-1] >= total_steps or len(set(pieces)) < len(pieces)):
        what, name, value, expected = (
            f"pieces that end at {', '.join(map(str, pieces))}",
            "step_rules",
            _EXAMPLES["step_rules"],
            "each piece at least one step long, the last one too",
        )
    else:
        return []
    return [
        Problem(
            f"lr_scheduler.{name}",
            f"{what} in a run of {total_steps} steps",
            expected,
            f"write lr_scheduler.{name}={value}, or train longer: train.epochs, train.max_steps",
        )
    ]


def _num_steps(length: float, total_steps: int) -> int:
    """Return a length in updates: 1 and more are updates, less is a fraction, rounded down."""
    return int(length * total_steps) if length < 1 else int(length)


def _rules(text: str) -> tuple[tuple[float, float], ...] | None:
    """Return (multiplier, end) of each piece, the last without end; None where it is no rule."""
    try:
        pairs = [
            (float(value), float(end) if colon else math.inf)
            for value, colon, end in (piece.partition(":") for piece in text.split(","))
        ]
    except ValueError:
        return None
    ends = [end for _, end in pairs]
    is_rule = (
        all(0 < value < math.inf for value, _ in pairs)
        and all(is_length(end) for end in ends[:-1])
        and ends[-1] == math.inf
        and all(end < after or end >= 1 > after for end, after in zip(ends, ends[1:], strict=False))
    )
    return tuple(pairs) if is_rule else None


def _constant(place: _Place) -> float:
    return 1.0


def _linear(place: _Place) -> float:
    return max(0.0, 1.0 - place.progress)


def _cosine(place: _Place) -> float:
    return max(0.0, _falling(place.progress))


def _cosine_with_restarts(place: _Place) -> float:
    if place.progress >= 1.0:
        return 0.0
    return max(0.0, _falling((place.options.num_cycles * place.progress) % 1.0))


def _cosine_with_min_lr(place: _Place) -> float:
    return _above(place.floor, _falling(place.options.num_cycles * place.progress))


def _polynomial(place: _Place) -> float:
    assert place.options.power is not None
    return _above(place.floor, max(0.0, 1.0 - place.progress) ** place.options.power)


def _inverse_sqrt(place: _Place) -> float:
    if place.options.timescale is not None:
        timescale = max(1, _num_steps(place.options.timescale, place.total_steps))
    else:
        timescale = place.num_warmup or _LONG_TIMESCALE
    return math.sqrt(timescale / (timescale + place.step_index - place.num_warmup))


def _warmup_stable_decay(place: _Place) -> float:
    assert place.options.decay_steps is not None
    num_decay = _num_steps(place.options.decay_steps, place.total_steps)
    if num_decay == 0:
        return 1.0
    num_left = max(0, place.total_steps - place.step_index)
    return _above(place.floor, _falling(max(0.0, 1.0 - num_left / num_decay)))


def _rex(place: _Place) -> float:
    return max(0.0, (1.0 - place.progress) / (1.0 - place.progress / 2))


def _piecewise(place: _Place) -> float:
    rules = _rules(place.options.step_rules or "")
    assert rules is not None
    return next(
        value
        for value, end in rules
        if end == math.inf or place.step_index < _num_steps(end, place.total_steps)
    )


def _falling(progress: float) -> float:
    """Return half a cosine, from 1 at 0 to 0 at 1 (and up again to 1 at 2)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _above(floor: float, share: float) -> float:
    return floor + (1.0 - floor) * max(0.0, share)


@dataclass(frozen=True, slots=True)
class _Shape:
    """A schedule's formula after the warm-up, and the settings that have an effect on it."""

    value: Callable[[_Place], float]
    uses: tuple[str, ...]


_SHAPES: dict[str, _Shape] = {
    "constant": _Shape(_constant, ()),
    "constant_with_warmup": _Shape(_constant, ("warmup_steps",)),
    "linear": _Shape(_linear, ("warmup_steps",)),
    "cosine": _Shape(_cosine, ("warmup_steps",)),
    "cosine_with_restarts": _Shape(_cosine_with_restarts, ("warmup_steps", "num_cycles")),
    "cosine_with_min_lr": _Shape(
        _cosine_with_min_lr, ("warmup_steps", "num_cycles", "min_lr_ratio")
    ),
    "polynomial": _Shape(_polynomial, ("warmup_steps", "power", "min_lr_ratio")),
    "inverse_sqrt": _Shape(_inverse_sqrt, ("warmup_steps", "timescale")),
    "warmup_stable_decay": _Shape(
        _warmup_stable_decay, ("warmup_steps", "min_lr_ratio", "decay_steps")
    ),
    "rex": _Shape(_rex, ("warmup_steps",)),
    "piecewise": _Shape(_piecewise, ("step_rules",)),
    "adafactor": _Shape(_constant, ()),
}
