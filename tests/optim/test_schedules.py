"""Multipliers equal transformers' schedules, and settings without effect are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from optbench.config.build import check_value, config_tree
from optbench.optim import toy_task
from optbench.optim.schedules import check_schedule, multiplier, num_warmup_steps
from optbench.schema import LrSchedulerOptions

TOTAL = 40
# Each schedule with what it cannot do without.
SETTINGS: dict[str, dict[str, Any]] = {
    "constant": {},
    "constant_with_warmup": {},
    "linear": {},
    "cosine": {},
    "cosine_with_restarts": {"num_cycles": 3},
    "cosine_with_min_lr": {"num_cycles": 1, "min_lr_ratio": 0.1},
    "polynomial": {"power": 2.0, "min_lr_ratio": 1e-3},
    "inverse_sqrt": {},
    "warmup_stable_decay": {"decay_steps": 12, "min_lr_ratio": 0.2},
    "rex": {},
    "piecewise": {"step_rules": "1:10,0.1:20,0.01"},
    "adafactor": {},
}
NAMES = tuple(SETTINGS)
WARMED = tuple(name for name in NAMES if name not in ("constant", "piecewise", "adafactor"))
ENDS_AT_ZERO = ("linear", "cosine", "cosine_with_restarts", "rex")


def schedule(name: str, warmup_steps: float = 0, **changes: Any) -> LrSchedulerOptions:
    return toy_task.schedule(name, warmup_steps, **(changes or SETTINGS.get(name, {})))


def theirs(options: LrSchedulerOptions) -> list[float]:
    """Return the rates of transformers' schedule of that name, or of diffusers' piecewise one."""
    import diffusers.optimization
    import torch
    import transformers.optimization

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    if options.name == "piecewise":
        assert options.step_rules is not None
        scheduler = diffusers.optimization.get_piecewise_constant_schedule(
            optimizer, step_rules=options.step_rules
        )
    else:
        num_warmup = num_warmup_steps(options, TOTAL)
        extras: dict[str, dict[str, Any]] = {
            "cosine_with_restarts": {"num_cycles": options.num_cycles},
            # Theirs counts whole waves, kohya's and ours half ones.
            "cosine_with_min_lr": {
                "num_cycles": options.num_cycles / 2,
                "min_lr_rate": options.min_lr_ratio,
            },
            "polynomial": {"power": options.power, "lr_end": options.min_lr_ratio},
            "inverse_sqrt": {"timescale": options.timescale},
            "warmup_stable_decay": {
                "num_decay_steps": options.decay_steps,
                "min_lr_ratio": options.min_lr_ratio,
            },
        }
        scheduler = transformers.optimization.get_scheduler(
            options.name,
            optimizer,
            num_warmup_steps=num_warmup,
            num_training_steps=TOTAL,
            scheduler_specific_kwargs=extras.get(options.name),
        )
    rates = []
    for _ in range(TOTAL + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step()
    return rates


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.parametrize(
    ("name", "warmup"),
    [
        ("constant", 0),
        ("piecewise", 0),
        *((name, warmup) for name in WARMED if name != "rex" for warmup in (0, 1, 7, 0.25)),
    ],
)
def test_values_are_those_of_transformers(name: str, warmup: float) -> None:
    options = schedule(name, warmup)
    expected = theirs(options)
    for step_index in range(TOTAL + 1):
        found = multiplier(options, step_index, TOTAL)
        assert found == pytest.approx(expected[step_index], abs=1e-12), step_index


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_time_scale_is_that_of_transformers() -> None:
    options = schedule("inverse_sqrt", 5, timescale=9)
    expected = theirs(options)
    assert [multiplier(options, s, TOTAL) for s in range(TOTAL + 1)] == pytest.approx(expected)


def test_rex_falls_late() -> None:
    options = schedule("rex")
    assert [multiplier(options, step, 4) for step in range(5)] == pytest.approx(
        [1, 0.75 / 0.875, 0.5 / 0.75, 0.25 / 0.625, 0]
    )


def test_lengths_may_be_fractions_of_the_run() -> None:
    steps = schedule("warmup_stable_decay", 4, decay_steps=10, min_lr_ratio=0.0)
    shares = schedule("warmup_stable_decay", 0.1, decay_steps=0.25, min_lr_ratio=0.0)
    rules = schedule("piecewise", step_rules="1:10,0.1:20,0.01")
    parts = schedule("piecewise", step_rules="1:0.25,0.1:0.5,0.01")
    for step_index in range(TOTAL):
        assert multiplier(steps, step_index, TOTAL) == multiplier(shares, step_index, TOTAL)
        assert multiplier(rules, step_index, TOTAL) == multiplier(parts, step_index, TOTAL)


@pytest.mark.parametrize("name", [name for name in WARMED if name != "warmup_stable_decay"])
def test_warmup_rises_from_zero(name: str) -> None:
    values = [multiplier(schedule(name, 4), step_index, TOTAL) for step_index in range(5)]
    assert values == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_values_stay_between_zero_and_one(name: str) -> None:
    values = [multiplier(schedule(name), step_index, 37) for step_index in range(38)]
    assert values[0] == 1.0
    assert all(0.0 <= value <= 1.0 for value in values)
    assert all(value > 0 for value in values[:-1]), "several classes cannot take a rate of 0"
    assert (values[-1] == pytest.approx(0.0, abs=1e-12)) is (name in ENDS_AT_ZERO)


def test_restarts_return_to_the_full_rate() -> None:
    options = schedule("cosine_with_restarts", num_cycles=4)
    full = [s for s in range(TOTAL) if multiplier(options, s, TOTAL) == pytest.approx(1.0)]
    assert full == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("warmup", "expected"), [(0, 0), (0.1, 3), (0.999, 36), (1, 1), (1.0, 1), (12, 12)]
)
def test_warmup_is_steps_or_a_fraction_rounded_down(warmup: float, expected: int) -> None:
    assert num_warmup_steps(schedule("linear", warmup), 37) == expected


@pytest.mark.parametrize("name", NAMES)
def test_plain_settings_are_accepted(name: str) -> None:
    assert check_schedule(schedule(name), total_steps=TOTAL) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (schedule("sawtooth"), ("'sawtooth'", "cosine_with_restarts", "lr_scheduler=cosine")),
        (schedule("cosine", num_cycles=3), ("no effect", "lr_scheduler=cosine_with_restarts")),
        (schedule("cosine_with_restarts", num_cycles=0), ("found 0", "1 or more")),
        (schedule("rex", power=2.0), ("no effect", "lr_scheduler=polynomial")),
        (schedule("linear", min_lr_ratio=0.1), ("no effect", "lr_scheduler=cosine_with_min_lr")),
        (schedule("cosine_with_min_lr", num_cycles=1), ("cannot do without", "min_lr_ratio=0.1")),
        (schedule("cosine_with_min_lr", min_lr_ratio=1.0), ("up to, but not including, 1",)),
        (schedule("polynomial", power=0.0, min_lr_ratio=0.0), ("above 0", "power=null")),
        (schedule("inverse_sqrt", timescale=-3), ("found -3", "timescale=100")),
        (schedule("warmup_stable_decay", min_lr_ratio=0.0, decay_steps=2.5), ("found 2.5",)),
        (schedule("piecewise", step_rules="1:10"), ("'1:10'", "one last multiplier")),
        (schedule("piecewise", step_rules="1:20,0.1:10,0.01"), ("rising ends",)),
        (schedule("piecewise", step_rules="0:10,1"), ("all above 0",)),
        (schedule("piecewise", step_rules="a lot"), ("'a lot'", "step_rules='\"1:0.5")),
        (schedule("piecewise", 5, step_rules="1:10,0.1"), ("no effect",)),
        (schedule("constant", 5), ("no effect", "lr_scheduler=constant_with_warmup")),
        (schedule("adafactor", 5), ("no effect", "lr_scheduler=constant_with_warmup")),
        (schedule("linear", -1), ("found -1", "lr_scheduler.warmup_steps=100")),
        (schedule("linear", 2.5), ("found 2.5", "whole steps")),
        (schedule("linear", float("nan")), ("found nan", "whole steps")),
    ],
)
def test_refusals_say_what_to_type(options: LrSchedulerOptions, words: tuple[str, ...]) -> None:
    wrong = check_value(LrSchedulerOptions, config_tree(options), "lr_scheduler")
    problems = wrong or check_schedule(options)
    assert len(problems) == 1
    assert all(word in str(problems[0]) for word in words)


def test_every_problem_is_reported() -> None:
    assert len(check_schedule(schedule("constant", 5, num_cycles=3))) == 2


def test_warmup_as_long_as_the_run_is_refused() -> None:
    options = schedule("cosine", 10)
    assert check_schedule(options) == []
    assert check_schedule(replace(options, warmup_steps=9), total_steps=10) == []
    (problem,) = check_schedule(options, total_steps=10)
    assert "a run of 10 steps" in str(problem)
    assert "train.max_steps" in str(problem)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            schedule("warmup_stable_decay", 6, decay_steps=5, min_lr_ratio=0.0),
            ("a warm-up of 6 and a decay of 5", "no longer than the run"),
        ),
        (
            schedule("warmup_stable_decay", decay_steps=0.01, min_lr_ratio=0.0),
            ("a decay of 0 steps", "lr_scheduler.decay_steps"),
        ),
        (schedule("piecewise", step_rules="1:5,0.1:10,0.01"), ("end at 5, 10", "one step long")),
        (schedule("piecewise", step_rules="1:0.5,0.1:5,0.01"), ("end at 5, 5",)),
    ],
)
def test_pieces_must_fit_into_the_run(options: LrSchedulerOptions, words: tuple[str, ...]) -> None:
    assert check_schedule(options) == []
    (problem,) = check_schedule(options, total_steps=10)
    assert all(word in str(problem) for word in words), str(problem)
