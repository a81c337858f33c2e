"""How the learning rate changes over a run: multipliers of every group's rate, as pure maths.

With s the zero-based index of the update, N all updates and w the warm-up, p = (s - w) / (N - w):

    every schedule, s < w       s / w            (the first update of a warm-up has rate 0)
    constant, _with_warmup      1
    linear                      (N - s) / (N - w)
    cosine                      (1 + cos(pi p)) / 2
    cosine_with_restarts        (1 + cos(pi (c p mod 1))) / 2, and 0 from p = 1 on; c = num_cycles

These are the values of transformers' `get_scheduler` and of kohya's trainer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from optbench.errors import Problem
from optbench.options import LrSchedulerOptions


def multiplier(options: LrSchedulerOptions, step_index: int, total_steps: int) -> float:
    """Return what every rate is multiplied by at update `step_index` (from 0) of `total_steps`."""
    num_warmup = num_warmup_steps(options, total_steps)
    if step_index < num_warmup:
        return step_index / num_warmup
    num_left = max(1, total_steps - num_warmup)
    progress = (step_index - num_warmup) / num_left
    return _SHAPES[options.name](progress, options.num_cycles)


def num_warmup_steps(options: LrSchedulerOptions, total_steps: int) -> int:
    """Return the updates spent warming up; a fraction of the run is rounded down."""
    if options.warmup_steps < 1:
        return int(options.warmup_steps * total_steps)
    return int(options.warmup_steps)


def check_schedule(options: LrSchedulerOptions, *, total_steps: int | None = None) -> list[Problem]:
    """Return everything that is impossible or without effect in `options`.

    Args:
        options: The schedule asked for.
        total_steps: The updates of the run, or None where they are not known yet.
    """
    if options.name not in _SHAPES:
        return [
            Problem(
                found=f"the schedule {options.name!r}",
                expected=f"one of {', '.join(_SHAPES)}",
                where="lr_scheduler.name",
                fix="choose one with lr_scheduler=cosine",
            )
        ]
    return [*_check_cycles(options), *_check_warmup(options, total_steps)]


def _check_cycles(options: LrSchedulerOptions) -> list[Problem]:
    if options.num_cycles < 1:
        return [
            Problem(
                found=f"{options.num_cycles} cycles",
                expected="1 or more",
                where="lr_scheduler.num_cycles",
                fix="write lr_scheduler.num_cycles=3 for three falls of the rate",
            )
        ]
    if options.num_cycles != 1 and options.name != "cosine_with_restarts":
        return [
            Problem(
                found=f"{options.num_cycles} cycles for {options.name}, which has none",
                expected="1, because the setting would have no effect",
                where="lr_scheduler.num_cycles",
                fix="write lr_scheduler=cosine_with_restarts, or leave lr_scheduler.num_cycles out",
            )
        ]
    return []


def _check_warmup(options: LrSchedulerOptions, total_steps: int | None) -> list[Problem]:
    warmup = options.warmup_steps
    where = "lr_scheduler.warmup_steps"
    if not math.isfinite(warmup) or warmup < 0 or (warmup >= 1 and warmup != int(warmup)):
        return [
            Problem(
                found=f"a warm-up of {warmup:g}",
                expected="whole steps (1 and more), a fraction of the run (below 1), or 0",
                where=where,
                fix="write lr_scheduler.warmup_steps=100 or lr_scheduler.warmup_steps=0.1",
            )
        ]
    if warmup and options.name == "constant":
        return [
            Problem(
                found=f"a warm-up of {warmup:g} for constant, which has none",
                expected="0, because the setting would have no effect",
                where=where,
                fix="write lr_scheduler=constant_with_warmup, or leave the warm-up out",
            )
        ]
    if total_steps is not None and num_warmup_steps(options, total_steps) >= max(1, total_steps):
        return [
            Problem(
                found=f"a warm-up of {warmup:g} steps in a run of {total_steps} steps",
                expected="a warm-up shorter than the run, so that the rate reaches its value",
                where=where,
                fix="shorten it, or train longer with train.epochs or train.max_steps",
            )
        ]
    return []


def _constant(progress: float, num_cycles: int) -> float:
    return 1.0


def _linear(progress: float, num_cycles: int) -> float:
    return max(0.0, 1.0 - progress)


def _cosine(progress: float, num_cycles: int) -> float:
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def _cosine_with_restarts(progress: float, num_cycles: int) -> float:
    if progress >= 1.0:
        return 0.0
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * ((num_cycles * progress) % 1.0))))


_SHAPES: dict[str, Callable[[float, int], float]] = {
    "constant": _constant,
    "constant_with_warmup": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "cosine_with_restarts": _cosine_with_restarts,
}
