"""Impossible recipes are refused with the way out, without torch; departures are said."""

from __future__ import annotations

from dataclasses import replace
from email.message import Message
from typing import Any

import pytest

from optbench.config.build import check_value, config_tree
from optbench.errors import Problem
from optbench.optim import toy_task
from optbench.optim.recipes import check_recipe, departures, rate_notices, requested_rate, unwise
from optbench.schema import BaseOptions, LrSchedulerOptions, OptimizerOptions, OptimizerTraits

CONSTANT = toy_task.schedule("constant")
WARM = toy_task.schedule("constant_with_warmup", 0.1)
COSINE = toy_task.schedule("cosine")
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
        group_args={},
        refused_args={},
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
    lr_mult: float = 1.0,
    unet_weights: tuple[float, ...] = (1.0,),
) -> list[Problem]:
    return check_recipe(
        options,
        lr_scheduler=lr_scheduler,
        max_grad_norm=max_grad_norm,
        num_parts=num_parts,
        lr_mult=lr_mult,
        unet_weights=unet_weights,
    )


def refused(problems: list[Problem], *words: str) -> None:
    assert len(problems) == 1, problems
    assert all(word in str(problems[0]) for word in words), str(problems[0])


def test_plain_recipe_is_accepted() -> None:
    assert check(recipe(), WARM_COSINE) == []


def test_unequal_rates_are_refused_where_the_class_has_one() -> None:
    problems = check(recipe(group_rates="equal", lr=1.0, text_encoder_lr=0.5))
    refused(problems, "1 for the unet and 0.5 for the text encoder", "raise at its first step")
    refused(problems, "silently uses the first group's", "network.train_text_encoder=false")


def test_equal_rates_are_accepted_where_the_class_has_one() -> None:
    assert check(recipe(group_rates="equal", text_encoder_lr=None)) == []
    assert check(recipe(group_rates="equal", unet_lr=0.5, text_encoder_lr=0.5)) == []


def test_unequal_rates_do_not_matter_for_one_part() -> None:
    assert check(recipe(group_rates="equal"), num_parts=1) == []


def test_blocks_of_unequal_rates_are_refused_where_the_class_has_one() -> None:
    one_rate = recipe(group_rates="equal", text_encoder_lr=None)
    refused(check(one_rate, unet_weights=(1.0, 0.25)), "0.25, 1 for blocks", "0 or 1")
    refused(check(one_rate, unet_weights=(0.5,)), "network.down_lr_weight")
    assert check(one_rate, unet_weights=(0.5,), num_parts=1) == []
    assert check(recipe(), unet_weights=(1.0, 0.25)) == []


def test_blocks_have_no_rates_where_the_class_finds_its_own() -> None:
    options = recipe(**AUTOMATIC)
    refused(check(options, CONSTANT, unet_weights=(0.5,), num_parts=1), "finds its own rates")
    assert check(options, CONSTANT) == []


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["lr", "unet_lr", "text_encoder_lr"])
def test_rates_must_be_above_zero(name: str, rate: float) -> None:
    options = recipe(**{name: rate})
    problems = check_value(OptimizerOptions, config_tree(options), "optimizer")
    refused(problems, f"optimizer.{name}", "above 0", "network.train_text_encoder=false")


def test_missing_package_names_the_command() -> None:
    options = recipe(target="no_such_package_at_all.Sgd", package="no-such-package")
    refused(
        check(options),
        "pip install no-such-package",
        "optimizer=glob(*,exclude=[dadaptation,mine])",
    )


@pytest.mark.parametrize("target", ["AdamW", "", ".AdamW", "torch."])
def test_class_must_be_a_dotted_path(target: str) -> None:
    refused(check(recipe(target=target)), "a dotted path")


@pytest.mark.parametrize(("name", "instead"), [("lr", "optimizer.lr"), ("params", "network")])
def test_arguments_that_other_settings_give_are_refused(name: str, instead: str) -> None:
    refused(check(recipe(args={name: 1})), f"optimizer.args.{name}", instead)


AUTOMATIC: dict[str, Any] = {
    "lr_role": "automatic",
    "effective_lr": "relative",
    "schedule": "own",
    "lr": None,
    "text_encoder_lr": None,
}
ADAFACTOR = toy_task.schedule("adafactor")


@pytest.mark.parametrize("wrong", ["lr_role", "effective_lr", "schedule"])
def test_traits_of_a_class_with_its_own_rate_belong_together(wrong: str) -> None:
    plain = {"lr_role": "manual", "effective_lr": "lr", "schedule": "external"}
    changes = AUTOMATIC | {wrong: plain[wrong]}
    if wrong == "lr_role":
        changes |= {"lr": 0.1}
    problems = check(recipe(**changes), CONSTANT)
    refused(problems, "traits of recipe mine", "only with it")


def test_class_with_its_own_rate_takes_none() -> None:
    options = recipe(**AUTOMATIC)
    assert check(options, CONSTANT) == []
    assert check(options, ADAFACTOR) == []
    refused(check(replace(options, lr=0.1), CONSTANT), "optimizer.lr (", "would ignore it")
    refused(check(replace(options, unet_lr=0.1), CONSTANT), "optimizer.unet_lr", "ignore it")
    refused(check(options, CONSTANT, lr_mult=0.3), "lr_mult", "0.3", "optimizer.args.eps")


def test_class_without_its_own_rate_needs_one() -> None:
    refused(check(recipe(lr=None)), "no rate", "optimizer.lr=1e-4")


def test_the_rule_of_a_class_is_no_schedule_for_others() -> None:
    refused(check(recipe(), ADAFACTOR), "stay at one rate", "optimizer=adafactor_auto")
    averaging = recipe(schedule="constant")
    refused(check(averaging, ADAFACTOR), "the schedule adafactor", "lr_scheduler=constant")


def test_arguments_known_to_be_broken_are_refused_with_the_reason() -> None:
    options = recipe(refused_args={"nesterov": "it is ignored"}, args={"nesterov": True})
    refused(check(options), "nesterov=True", "it is ignored", "leave out optimizer.args.nesterov")
    assert check(replace(options, args={"momentum": 0.9})) == []


def test_missing_package_of_an_extra_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    extras = Message()
    extras["Provides-Extra"] = "no-such-package"
    monkeypatch.setattr("importlib.metadata.metadata", lambda _: extras)
    options = recipe(target="no_such_package_at_all.Sgd", package="no-such-package")
    refused(check(options), "pip install 'optbench[no-such-package]'")


def sentences(
    options: OptimizerOptions, lr_scheduler: LrSchedulerOptions, max_grad_norm: float = 0.0
) -> str:
    return "\n".join(unwise(options, lr_scheduler=lr_scheduler, max_grad_norm=max_grad_norm))


@pytest.mark.parametrize("rule", ["constant", "own"])
def test_a_falling_schedule_is_said_where_the_class_has_its_own_rule(rule: str) -> None:
    options = recipe(schedule=rule)
    assert check(options, COSINE) == []
    assert "lr_scheduler=cosine lowers the rate" in sentences(options, COSINE)
    assert sentences(options, CONSTANT) == ""
    assert sentences(options, WARM) == ""
    assert sentences(recipe(), WARM_COSINE) == ""


def test_a_schedule_is_said_to_change_nothing_where_the_class_finds_its_own_rate() -> None:
    options = recipe(**AUTOMATIC)
    for schedule in (COSINE, WARM):
        assert check(options, schedule) == []
        assert "changes nothing" in sentences(options, schedule)
    assert sentences(options, CONSTANT) == sentences(options, ADAFACTOR) == ""


def test_warmup_is_refused_where_the_class_cannot_start_from_zero() -> None:
    options = recipe(warmup="refused")
    refused(check(options, WARM_COSINE), "rate of 0", "lr_scheduler.warmup_steps=0")
    assert check(options, COSINE) == []


def test_a_second_warmup_is_said_where_the_class_has_its_own() -> None:
    options = recipe(schedule="constant", args={"warmup_steps": 0})
    assert check(options, WARM) == []
    assert "the class's own warm-up, optimizer.args.warmup_steps" in sentences(options, WARM)
    assert sentences(options, CONSTANT) == ""


def test_clipping_is_said_where_the_class_limits_its_updates() -> None:
    options = recipe(clip="own")
    assert check(options) == []
    assert "clipped to a norm of 1" in sentences(options, COSINE, max_grad_norm=1.0)
    assert sentences(options, COSINE) == sentences(recipe(), COSINE, max_grad_norm=1.0) == ""


def test_clipping_is_refused_where_the_class_must_not_have_it() -> None:
    options = recipe(clip="refused")
    refused(check(options), "a norm of 1", "write train.max_grad_norm=0")
    assert check(options, max_grad_norm=0.0) == []


def test_every_problem_is_reported() -> None:
    options = recipe(group_rates="equal", clip="refused", warmup="refused", lr=1.0)
    assert len(check(options, WARM_COSINE)) == 3


def test_requested_rate_falls_back_to_lr() -> None:
    assert requested_rate(recipe(), "unet") == 1e-4
    assert requested_rate(recipe(unet_lr=0.3), "unet") == 0.3
    assert requested_rate(recipe(), "text_encoder") == 5e-5
    assert requested_rate(recipe(text_encoder_lr=None), "text_encoder") == 1e-4


def test_plain_recipe_departs_in_nothing() -> None:
    assert departures(recipe()) == ()


@pytest.mark.parametrize(
    ("trait", "value", "words"),
    [
        ("lr_role", "multiplier", "d x lr"),
        ("lr_role", "automatic", "a rate for each tensor"),
        ("group_rates", "equal", "one rate"),
        ("schedule", "constant", "place of a falling rate"),
        ("schedule", "own", "place of a falling rate"),
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


@pytest.mark.parametrize(
    ("lr_role", "scale", "scales", "words"),
    [
        ("manual", 60.0, {"mine": None}, "60 times the recipe's usual one"),
        ("manual", 60.0, {}, "60 times the recipe's usual one"),
        ("multiplier", 60.0, {"mine": None}, "the recipe's usual factor"),
        ("manual", 60.0, {"mine": 40.0}, None),
        ("automatic", 60.0, {}, None),
        ("manual", 1.0, {}, None),  # what the rates are meant for
    ],
)
def test_a_recipe_that_no_race_gave_a_rate_says_so(
    lr_role: str, scale: float, scales: dict[str, float | None], words: str | None
) -> None:
    base = BaseOptions(
        name="tiny",
        family="sd15",
        path="x",
        vae=None,
        v_parameterization=None,
        lr_scale=scale,
        lr_scales=scales,
    )
    assert rate_notices(recipe(lr_role=lr_role), base, lr_mult=0.3) == ()
    notices = rate_notices(recipe(lr_role=lr_role), base, lr_mult=1.0)
    assert len(notices) == (words is not None)
    assert words is None or (words in notices[0] and "base=tiny" in notices[0])
