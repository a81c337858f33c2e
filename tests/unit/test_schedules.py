"""Multipliers equal transformers' schedules, and settings without effect are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optbench.options import LrSchedulerOptions
from optbench.schedules import check_schedule, multiplier, num_warmup_steps

NAMES = ("constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts")
TOTAL = 40


def schedule(name: str, warmup_steps: float = 0, num_cycles: int = 1) -> LrSchedulerOptions:
    return LrSchedulerOptions(name=name, warmup_steps=warmup_steps, num_cycles=num_cycles)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(
    ("name", "warmup"),
    [("constant", 0), *((name, warmup) for name in NAMES[1:] for warmup in (0, 1, 7, 0.25))],
)
def test_values_are_those_of_transformers(name: str, warmup: float) -> None:
    import torch
    from transformers.optimization import get_scheduler

    options = schedule(name, warmup, 3 if name == "cosine_with_restarts" else 1)
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    kwargs = {"num_cycles": 3} if name == "cosine_with_restarts" else None
    theirs = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=num_warmup_steps(options, TOTAL),
        num_training_steps=TOTAL,
        scheduler_specific_kwargs=kwargs,
    )
    for step_index in range(TOTAL + 1):
        expected = optimizer.param_groups[0]["lr"]
        assert multiplier(options, step_index, TOTAL) == pytest.approx(expected, abs=1e-12)
        theirs.step()


@pytest.mark.parametrize("name", NAMES[1:])
def test_warmup_rises_from_zero(name: str) -> None:
    values = [multiplier(schedule(name, 4), step_index, TOTAL) for step_index in range(5)]
    assert values == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_values_stay_between_zero_and_one(name: str) -> None:
    options = schedule(name, 0, 5 if name == "cosine_with_restarts" else 1)
    values = [multiplier(options, step_index, 37) for step_index in range(38)]
    assert values[0] == 1.0
    assert all(0.0 <= value <= 1.0 for value in values)
    assert values[-1] == pytest.approx(0.0 if "constant" not in name else 1.0, abs=1e-12)


def test_restarts_return_to_the_full_rate() -> None:
    options = schedule("cosine_with_restarts", 0, 4)
    full = [s for s in range(TOTAL) if multiplier(options, s, TOTAL) == pytest.approx(1.0)]
    assert full == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("warmup", "expected"), [(0, 0), (0.1, 3), (0.999, 36), (1, 1), (1.0, 1), (12, 12)]
)
def test_warmup_is_steps_or_a_fraction_rounded_down(warmup: float, expected: int) -> None:
    assert num_warmup_steps(schedule("linear", warmup), 37) == expected


@pytest.mark.parametrize("name", NAMES)
def test_plain_settings_are_accepted(name: str) -> None:
    assert check_schedule(schedule(name), total_steps=1) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (schedule("polynomial"), ("'polynomial'", "cosine_with_restarts", "lr_scheduler=cosine")),
        (schedule("cosine", 0, 3), ("no effect", "lr_scheduler=cosine_with_restarts")),
        (schedule("cosine_with_restarts", 0, 0), ("0 cycles", "1 or more")),
        (schedule("constant", 5), ("no effect", "lr_scheduler=constant_with_warmup")),
        (schedule("linear", -1), ("warm-up of -1", "lr_scheduler.warmup_steps=100")),
        (schedule("linear", 2.5), ("warm-up of 2.5", "whole steps")),
        (schedule("linear", float("nan")), ("warm-up of nan", "whole steps")),
    ],
)
def test_refusals_say_what_to_type(options: LrSchedulerOptions, words: tuple[str, ...]) -> None:
    problems = check_schedule(options)
    assert len(problems) == 1
    assert all(word in str(problems[0]) for word in words)


def test_every_problem_is_reported() -> None:
    assert len(check_schedule(schedule("constant", 5, 3))) == 2


def test_warmup_as_long_as_the_run_is_refused() -> None:
    options = schedule("cosine", 10)
    assert check_schedule(options) == []
    assert check_schedule(replace(options, warmup_steps=9), total_steps=10) == []
    (problem,) = check_schedule(options, total_steps=10)
    assert "a run of 10 steps" in str(problem)
    assert "train.max_steps" in str(problem)
