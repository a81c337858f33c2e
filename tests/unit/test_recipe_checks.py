"""Impossible recipes are refused with the way out, without torch; departures are said."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from optbench.errors import Problem
from optbench.options import LrSchedulerOptions, OptimizerOptions, OptimizerTraits
from optbench.recipes import asked_rate, check_recipe, departures

CONSTANT = LrSchedulerOptions(name="constant", warmup_steps=0, num_cycles=1)
WARM = LrSchedulerOptions(name="constant_with_warmup", warmup_steps=0.1, num_cycles=1)
COSINE = LrSchedulerOptions(name="cosine", warmup_steps=0, num_cycles=1)
WARM_COSINE = replace(COSINE, warmup_steps=100)

PLAIN = OptimizerTraits(
    stepping="plain",
    weights="live",
    schedule="external",
    warmup="allowed",
    clip="external",
    lr_role="manual",
    group_rates="free",
    effective_lr="lr",
    uses_global_rng=False,
    exact_load=False,
)


def recipe(**changes: Any) -> OptimizerOptions:
    traits = {name: changes.pop(name) for name in list(changes) if hasattr(PLAIN, name)}
    options = OptimizerOptions(
        name="mine",
        target="torch.optim.AdamW",
        lr=1e-4,
        unet_lr=None,
        text_encoder_lr=5e-5,
        args={},
        traits=replace(PLAIN, **traits),
        package="torch",
        paper="",
        note="",
    )
    return replace(options, **changes)


def check(
    options: OptimizerOptions,
    lr_scheduler: LrSchedulerOptions = COSINE,
    *,
    max_grad_norm: float = 1.0,
    num_parts: int = 2,
) -> list[Problem]:
    return check_recipe(
        options, lr_scheduler=lr_scheduler, max_grad_norm=max_grad_norm, num_parts=num_parts
    )


def refused(problems: list[Problem], *words: str) -> None:
    assert len(problems) == 1, problems
    assert all(word in str(problems[0]) for word in words), str(problems[0])


def test_plain_recipe_is_accepted() -> None:
    assert check(recipe(), WARM_COSINE) == []


def test_unequal_rates_are_refused_where_the_class_has_one() -> None:
    problems = check(recipe(group_rates="equal", lr=1.0, text_encoder_lr=0.5))
    refused(problems, "1 for the unet and 0.5 for the text encoder", "raises at its first step")
    refused(problems, "silently uses the first group's", "network.train_text_encoder=false")


def test_equal_rates_are_accepted_where_the_class_has_one() -> None:
    assert check(recipe(group_rates="equal", text_encoder_lr=None)) == []
    assert check(recipe(group_rates="equal", unet_lr=0.5, text_encoder_lr=0.5)) == []


def test_unequal_rates_do_not_matter_for_one_part() -> None:
    assert check(recipe(group_rates="equal"), num_parts=1) == []


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lr", "unet_lr", "text_encoder_lr"])
def test_rates_must_be_above_zero(name: str, rate: float) -> None:
    problems = check(recipe(**{name: rate}))
    refused(problems, f"optimizer.{name}", "above 0", "network.train_text_encoder=false")


def test_missing_package_names_the_command() -> None:
    options = recipe(target="no_such_package_at_all.Sgd", package="no-such-package")
    refused(check(options), "pip install no-such-package", "optimizer=glob(*,exclude=mine)")


@pytest.mark.parametrize("target", ["AdamW", "", ".AdamW", "torch."])
def test_class_must_be_a_dotted_path(target: str) -> None:
    refused(check(recipe(target=target)), "a dotted path")


@pytest.mark.parametrize(("name", "instead"), [("lr", "optimizer.lr"), ("params", "network")])
def test_arguments_that_other_settings_give_are_refused(name: str, instead: str) -> None:
    refused(check(recipe(args={name: 1})), f"optimizer.args.{name}", instead)


@pytest.mark.parametrize("traits", [{"lr_role": "automatic"}, {"effective_lr": "relative"}])
def test_classes_with_their_own_rate_are_refused(traits: dict[str, str]) -> None:
    refused(check(recipe(**traits)), "relative_step=false")


@pytest.mark.parametrize("rule", ["constant", "own"])
def test_falling_schedule_is_refused_where_the_class_has_its_own_rule(rule: str) -> None:
    options = recipe(schedule=rule)
    refused(check(options, COSINE), "the schedule cosine", "write lr_scheduler=constant")
    assert check(options, CONSTANT) == []
    assert check(options, WARM) == []


def test_warmup_is_refused_where_the_class_cannot_start_from_zero() -> None:
    options = recipe(warmup="refused")
    refused(check(options, WARM_COSINE), "rate of 0", "lr_scheduler.warmup_steps=0")
    assert check(options, COSINE) == []


def test_warmup_is_refused_where_the_class_has_its_own() -> None:
    options = recipe(warmup="refused", schedule="constant", args={"warmup_steps": 0})
    refused(check(options, WARM), "a warm-up of its own", "optimizer.args.warmup_steps=STEPS")
    assert len(check(options, WARM_COSINE)) == 2


def test_clipping_is_refused_where_the_class_must_not_have_it() -> None:
    options = recipe(clip="refused")
    refused(check(options), "a norm of 1", "write train.max_grad_norm=0")
    assert check(options, max_grad_norm=0.0) == []
    assert check(recipe(clip="own")) == []


def test_every_problem_is_reported() -> None:
    options = recipe(group_rates="equal", clip="refused", schedule="constant", lr=-1.0)
    assert len(check(options)) == 4


def test_asked_rate_falls_back_to_lr() -> None:
    assert asked_rate(recipe(), "unet") == 1e-4
    assert asked_rate(recipe(unet_lr=0.3), "unet") == 0.3
    assert asked_rate(recipe(), "text_encoder") == 5e-5
    assert asked_rate(recipe(text_encoder_lr=None), "text_encoder") == 1e-4


def test_plain_recipe_departs_in_nothing() -> None:
    assert departures(recipe()) == ()


@pytest.mark.parametrize(
    ("trait", "value", "words"),
    [
        ("lr_role", "multiplier", "d x lr"),
        ("group_rates", "equal", "one rate"),
        ("schedule", "constant", "stays constant"),
        ("schedule", "own", "stays constant"),
        ("warmup", "refused", "no warm-up"),
        ("clip", "refused", "not clipped"),
        ("clip", "own", "limits its own updates"),
        ("stepping", "closure", "given the loss"),
        ("weights", "averaged", "averaged weights"),
        ("uses_global_rng", True, "global generator"),
    ],
)
def test_each_departure_is_said(trait: str, value: object, words: str) -> None:
    (sentence,) = departures(recipe(**{trait: value}))
    assert words in sentence


def test_checking_a_recipe_imports_no_torch() -> None:
    code = "import sys, optbench.recipes, optbench.schedules; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
