"""What is built is what was asked for, steps as its traits say, and goes on where it stopped."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from optbench.contracts import StepOptimizer
from optbench.errors import ConfigError, DamagedFileError, MissingPackageError, OptbenchError
from optbench.optim import conformance, toy_task
from optbench.optim.build import as_arguments, build_optimizer, check_arguments
from optbench.optim.stepping import BuiltOptimizer
from optbench.records import ParameterGroup
from optbench.schema import LrSchedulerOptions, OptimizerOptions, OptimizerTraits

CONSTANT = toy_task.schedule("constant")
COSINE = toy_task.schedule("cosine")
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
ADAPTIVE = replace(PLAIN, lr_role="multiplier", group_rates="equal", effective_lr="d*lr")
AVERAGED = replace(
    PLAIN, weights="averaged", schedule="constant", warmup="refused", effective_lr="scheduled_lr"
)


class Renaming(torch.optim.SGD):
    """Keeps another weight decay than it is given."""

    def __init__(self, params: Any, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay * 2)


class OtherRate(torch.optim.SGD):
    """Trains at a rate that was not asked for."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr=lr)
        self.param_groups[0]["lr"] = max(lr, 0.1)


class Forgetful(torch.optim.SGD):
    """Takes an argument and does not keep it."""

    def __init__(self, params: Any, lr: float, colour: str = "red") -> None:
        super().__init__(params, lr=lr)


class Talkative(torch.optim.SGD):
    """Warns while it is built."""

    def __init__(self, params: Any, lr: float) -> None:
        warnings.warn("this is slow here", stacklevel=2)
        super().__init__(params, lr=lr)


class NeedsLoss(torch.optim.SGD):
    """Cannot step without a closure."""

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        return super().step(closure)


class Swallowing(torch.optim.SGD):
    """Takes any argument and hands it to nobody."""

    def __init__(self, params: Any, lr: float, **kwargs: Any) -> None:
        super().__init__(params, lr=lr)


class Stubborn(torch.optim.SGD):
    """Goes on at the rate it was built with."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            group["lr"] = group["initial_lr"]
        return super().step(closure)


class NamedGroups(torch.optim.SGD):
    """Wants a key of its own in every group."""

    def __init__(self, params: Any, lr: float) -> None:
        params = list(params)
        if not all(group["colour"] == (1, 2) for group in params):
            raise ValueError("no colour")
        super().__init__(params, lr=lr)


class Drawing(torch.optim.SGD):
    """Draws from torch's global generator."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        torch.rand(1)
        return super().step(closure)


Alias = torch.optim.SGD


def not_a_class(params: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=lr)


def recipe(
    target: str = "torch.optim.SGD", traits: OptimizerTraits = PLAIN, **changes: Any
) -> OptimizerOptions:
    if target[0].isupper() or target == "not_a_class":
        target = f"{__name__}.{target}"
    options = OptimizerOptions(
        name="mine",
        target=target,
        lr=1.0 if traits.lr_role == "multiplier" else 0.01,
        unet_lr=None,
        text_encoder_lr=None,
        args={},
        group_args={},
        refused_args={},
        traits=traits,
        package=target.partition(".")[0],
        paper="",
        note="",
    )
    return replace(options, **changes)


def build(
    options: OptimizerOptions,
    groups: Sequence[ParameterGroup] | None = None,
    *,
    lr_mult: float = 1.0,
    lr_scheduler: LrSchedulerOptions = CONSTANT,
    total_steps: int = 20,
) -> BuiltOptimizer:
    return build_optimizer(
        options,
        toy_task.ToyTask().groups() if groups is None else groups,
        lr_mult=lr_mult,
        lr_scheduler=lr_scheduler,
        total_steps=total_steps,
    )


def test_fulfils_the_contract() -> None:
    built: StepOptimizer = build(recipe())
    assert list(built.parameters())


def test_groups_are_named_and_have_the_rates_asked_for() -> None:
    options = recipe(lr=0.5, unet_lr=0.25, text_encoder_lr=0.125)
    built = build(options, lr_mult=0.1)
    assert [group["name"] for group in built.optimizer.param_groups] == ["unet", "text_encoder"]
    assert built.rates()[0] == {"unet": 0.025, "text_encoder": 0.0125}
    assert built.optimizer.defaults["lr"] == 0.05


def test_blocks_have_the_parts_rate_times_their_weight() -> None:
    unet, text_encoder = toy_task.ToyTask().groups()
    half = replace(unet, name="unet_x0.5", lr_weight=0.5)
    built = build(recipe(lr=0.5, text_encoder_lr=0.25), [text_encoder, half], lr_mult=0.1)
    assert built.rates()[0] == {"text_encoder": 0.025, "unet_x0.5": 0.025}
    assert built.described()["groups"]["unet_x0.5"]["lr"] == 0.025
    one_rate = recipe("dadaptation.DAdaptLion", ADAPTIVE)
    with pytest.raises(ConfigError, match=r"0\.5 for unet_x0\.5"):
        build(one_rate, [text_encoder, half])


def test_described_can_be_stored() -> None:
    options = recipe("dadaptation.DAdaptAdam", ADAPTIVE, args={"growth_rate": float("inf")})
    described = build(options, lr_scheduler=replace(COSINE, warmup_steps=0.25)).described()
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert described["class"] == "dadaptation.dadapt_adam.DAdaptAdam"
    assert described["arguments"] == {"growth_rate": "inf"}
    assert described["defaults"]["d"] == 1e-6
    assert described["groups"]["unet"] == {"lr": 1.0, "num_parameters": 16 * (288 + 264)}
    assert described["traits"]["group_rates"] == "equal"
    assert described["schedule"] == {
        "name": "cosine",
        "warmup_steps": 0.25,
        "num_warmup_steps": 5,
        "num_cycles": 1,
        "total_steps": 20,
    }


def test_group_arguments_reach_every_group() -> None:
    built = build(recipe("NamedGroups", group_args={"colour": [1, 2]}))
    assert [group["colour"] for group in built.optimizer.param_groups] == [(1, 2), (1, 2)]


def test_class_that_swallows_arguments_gets_none_it_does_not_know() -> None:
    with pytest.raises(ConfigError, match="the argument 'momentun', which"):
        build(recipe("Swallowing", args={"momentun": 0.9}))
    assert build(recipe("pytorch_optimizer.ADOPT", args={"weight_decouple": True}))


RELATIVE = replace(
    PLAIN, lr_role="automatic", schedule="own", warmup="refused", effective_lr="relative"
)


def test_class_that_finds_its_own_rate_has_none_and_says_what_it_takes() -> None:
    options = recipe("transformers.optimization.Adafactor", RELATIVE, lr=None)
    task = toy_task.ToyTask()
    built = build(options, task.groups())
    assert built.described()["groups"]["unet"]["lr"] is None
    for step_index in range(3):
        lr, d, effective = built.rates()
        assert (lr, d) == ({}, {})
        toy_task.train(task, built, step_index, step_index + 1)
        for group in built.optimizer.param_groups:
            states = [built.optimizer.state[one] for one in group["params"]]
            used = [built.optimizer._get_lr(group, state) for state in states]  # type: ignore[operator]
            assert effective[group["name"]] == pytest.approx(sum(used) / len(used))


def test_asking_for_rates_leaves_the_state_alone() -> None:
    built = build(recipe("transformers.optimization.Adafactor", RELATIVE, lr=None))
    built.rates()
    assert not built.optimizer.state


def test_effective_rate_of_prodigyplus_includes_its_rectification() -> None:
    traits = replace(AVERAGED, lr_role="multiplier", effective_lr="rect*d*lr", exact_load=True)
    target = "prodigyplus.ProdigyPlusScheduleFree"
    options = recipe(target, traits, args={"use_bias_correction": True})
    task = toy_task.ToyTask()
    built = build(options, task.groups())
    for step_index in range(8):
        _, d, effective = built.rates()
        group = built.optimizer.param_groups[0]
        used = built.optimizer.get_bias_correction(  # type: ignore[operator]
            d["unet"] * group["lr"], group["betas"][1], group["k"]
        )[0]
        assert effective["unet"] == pytest.approx(used)
        toy_task.train(task, built, step_index, step_index + 1)


def test_lists_become_tuples() -> None:
    assert as_arguments({"betas": [0.9, [1, 2]], "name": "ab", "more": {"a": [1]}}) == {
        "betas": (0.9, (1, 2)),
        "name": "ab",
        "more": {"a": (1,)},
    }
    built = build(recipe("torch.optim.AdamW", args={"betas": [0.8, 0.9]}))
    assert built.optimizer.defaults["betas"] == (0.8, 0.9)


def test_printing_is_kept_and_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    options = recipe("dadaptation.DAdaptAdam", ADAPTIVE, args={"decouple": True})
    assert build(options).described()["said"] == "Using decoupled weight decay"
    assert capsys.readouterr().out == ""


def test_warnings_while_building_are_kept() -> None:
    assert build(recipe("Talkative")).described()["said"] == "this is slow here"


def test_changed_argument_is_refused() -> None:
    options = recipe("Renaming", args={"weight_decay": 0.1})
    with pytest.raises(OptbenchError, match=r"found weight_decay=0\.2; expected weight_decay=0\.1"):
        build(options)


def test_changed_rate_is_refused() -> None:
    with pytest.raises(OptbenchError, match=r"found lr=0\.1 for unet; expected lr=0\.01"):
        build(recipe("OtherRate"))


def test_another_class_under_the_name_is_refused() -> None:
    with pytest.raises(OptbenchError, match=r"found the class SGD; expected the class .*\.Alias"):
        build(recipe("Alias"))


def test_argument_that_is_not_kept_is_reported() -> None:
    described = build(recipe("Forgetful", args={"colour": "blue"})).described()
    assert described["arguments_not_found"] == ["colour"]


def test_argument_kept_in_a_namespace_is_found() -> None:
    options = recipe("bitsandbytes.optim.AdamW8bit", args={"min_8bit_size": 1024})
    described = build(options).described()
    assert described["arguments"] == {"min_8bit_size": 1024}
    assert described["arguments_not_found"] == []


def test_unknown_argument_lists_the_known_ones() -> None:
    (problem,) = check_arguments(recipe(args={"momentun": 0.9}))
    assert "'momentun'" in problem.found
    assert "momentum" in problem.expected
    assert problem.where.startswith("optimizer.args.momentun")


def test_problems_are_raised_together() -> None:
    options = recipe(lr=-1.0, args={"a": 1, "b": 2})
    with pytest.raises(ConfigError) as caught:
        build(options, lr_scheduler=replace(CONSTANT, warmup_steps=3))
    assert len(caught.value.problems) == 5  # two rates, two arguments, one schedule


def test_argument_the_class_rejects_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="Invalid beta parameter at index 0: 2"):
        build(recipe("torch.optim.AdamW", args={"betas": [2.0, 0.9]}))


def test_missing_class_and_missing_package() -> None:
    with pytest.raises(ConfigError, match=r"no AdanW in that module"):
        build(recipe("torch.optim.AdanW"))
    with pytest.raises(MissingPackageError, match="pip install no_such_package"):
        build(recipe("no_such_package.Sgd"))
    with pytest.raises(MissingPackageError, match="torch.optim.no_such_module.Sgd"):
        build(recipe("torch.optim.no_such_module.Sgd"))


def test_function_is_no_class() -> None:
    with pytest.raises(ConfigError, match="no torch.optim.Optimizer"):
        build(recipe("not_a_class"))


def test_weights_trait_must_fit_the_class() -> None:
    live = recipe("schedulefree.AdamWScheduleFree", replace(AVERAGED, weights="live"))
    with pytest.raises(ConfigError, match=r"with train\(\) and eval\(\)(.|\n)*weights: averaged"):
        build(live)
    with pytest.raises(ConfigError, match=r"without train\(\) and eval\(\)(.|\n)*weights: live"):
        build(recipe(traits=replace(PLAIN, weights="averaged")))


@pytest.mark.parametrize(("rule", "key"), [("d*lr", "'d'"), ("scheduled_lr", "'warmup_steps'")])
def test_rate_trait_must_fit_the_class(rule: Any, key: str) -> None:
    with pytest.raises(OptbenchError, match=f"no {key} in the group unet"):
        build(recipe(traits=replace(PLAIN, effective_lr=rule)))


def test_empty_groups_are_refused() -> None:
    empty = replace(toy_task.ToyTask().groups()[0], parameters=())
    with pytest.raises(ConfigError, match="no parameters in unet"):
        build(recipe(), [empty])
    with pytest.raises(ConfigError, match="no parameters"):
        build(recipe(), ())


def test_zero_rate_is_refused_with_the_switch() -> None:
    with pytest.raises(ConfigError, match=r"network\.train_text_encoder=false"):
        build(recipe(text_encoder_lr=0.0))
    with pytest.raises(ConfigError, match="above 0"):
        build(recipe(), lr_mult=0.0)


def test_unequal_rates_are_refused_for_one_rate_classes() -> None:
    options = recipe("dadaptation.DAdaptLion", ADAPTIVE, text_encoder_lr=0.5)
    with pytest.raises(ConfigError, match=r"1 for unet, 0\.5 for text_encoder"):
        build(options)
    assert build(options, toy_task.ToyTask().groups()[:1]).rates()[0] == {"unet": 1.0}


def test_dadaptlion_with_equal_rates_runs_and_moves_by_its_effective_rate() -> None:
    options = recipe("dadaptation.DAdaptLion", ADAPTIVE, args={"weight_decay": 0.0})
    task = toy_task.ToyTask()
    built = build(options, task.groups(), lr_scheduler=COSINE, total_steps=30)
    for step_index in range(30):
        lr, d, effective = built.rates()
        before = task.weights()["unet"][1].double()
        toy_task.train(task, built, step_index, step_index + 1)
        moved = (task.weights()["unet"][1].double() - before).abs().max().item()
        assert effective["unet"] == effective["text_encoder"] == d["unet"] * lr["unet"]
        assert moved == pytest.approx(effective["unet"], rel=1e-3)
    assert d["unet"] > 1e-6


def test_effective_rate_of_prodigy_includes_its_bias_correction() -> None:
    options = recipe("prodigyopt.Prodigy", ADAPTIVE, args={"use_bias_correction": True})
    task = toy_task.ToyTask()
    built = build(options, task.groups())
    assert built.rates()[2]["unet"] == pytest.approx(1e-6 * 0.001**0.5 / 0.1)
    toy_task.train(task, built, 0, 3)
    _, d, effective = built.rates()
    factor = (1 - 0.999**4) ** 0.5 / (1 - 0.9**4)
    assert effective["unet"] == pytest.approx(d["unet"] * factor)


def test_effective_rate_of_schedule_free_is_the_one_it_then_uses() -> None:
    options = recipe("schedulefree.AdamWScheduleFree", AVERAGED, args={"warmup_steps": 4})
    task = toy_task.ToyTask()
    built = build(options, task.groups())
    announced = []
    for step_index in range(6):
        announced.append(built.rates()[2]["unet"])
        toy_task.train(task, built, step_index, step_index + 1)
        assert built.optimizer.param_groups[0]["scheduled_lr"] == pytest.approx(announced[-1])
    assert announced == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01])


def test_effective_rate_waits_for_the_first_gradient_norm() -> None:
    traits = replace(ADAPTIVE, effective_lr="d*lr/g0_norm", warmup="refused")
    task = toy_task.ToyTask()
    built = build(recipe("dadaptation.DAdaptSGD", traits), task.groups())
    assert built.rates()[2] == {}
    toy_task.train(task, built, 0, 1)
    _, d, effective = built.rates()
    assert set(effective) == {"unet", "text_encoder"}
    assert effective["unet"] == effective["text_encoder"] != d["unet"]


def test_schedule_moves_with_every_step_and_keeps_rates_in_proportion() -> None:
    task = toy_task.ToyTask()
    options = recipe(lr=0.5, text_encoder_lr=0.25)
    linear = toy_task.schedule("linear", 2)
    built = build(options, task.groups(), lr_scheduler=linear, total_steps=6)
    seen = []
    for step_index in range(6):
        lr = built.rates()[0]
        assert lr["text_encoder"] == pytest.approx(lr["unet"] / 2)
        seen.append(lr["unet"])
        toy_task.train(task, built, step_index, step_index + 1)
    assert seen == pytest.approx([0.0, 0.25, 0.5, 0.375, 0.25, 0.125])


def test_loss_is_given_to_classes_that_want_it() -> None:
    asked: list[float] = []

    def loss() -> float:
        asked.append(1.5)
        return 1.5

    task = toy_task.ToyTask()
    options = recipe("torch.optim.LBFGS", replace(PLAIN, stepping="closure"), args={"max_iter": 1})
    built = build(options, task.groups()[:1])
    before = task.weights()["unet"]
    task.backward(0)
    built.step(loss)
    assert asked
    assert not torch.equal(before[1], task.weights()["unet"][1])


def test_loss_is_not_asked_for_by_plain_classes() -> None:
    def loss() -> float:
        raise AssertionError("plain stepping needs no loss")

    task = toy_task.ToyTask()
    built = build(recipe(), task.groups())
    task.backward(0)
    built.step(loss)
    built.zero_grad()
    assert all(parameter.grad is None for parameter in built.parameters())


def averaged(num_steps: int = 5) -> tuple[toy_task.ToyTask, BuiltOptimizer]:
    options = recipe("schedulefree.AdamWScheduleFree", AVERAGED)
    task = toy_task.ToyTask()
    built = build(options, task.groups())
    toy_task.train(task, built, 0, num_steps)
    return task, built


def test_averaged_weights_are_shown_and_restored_bitwise() -> None:
    task, built = averaged()
    before = task.weights()["unet"][0]
    with built.evaluation_weights():
        assert not torch.equal(before, task.weights()["unet"][0])
    assert torch.equal(before, task.weights()["unet"][0])


def test_evaluating_does_not_change_training() -> None:
    task, built = averaged(10)
    disturbed, other = averaged(5)
    with other.evaluation_weights():
        pass
    toy_task.train(disturbed, other, 5, 10)
    assert torch.equal(task.weights()["unet"][1], disturbed.weights()["unet"][1])


def test_averaged_weights_are_restored_after_an_exception() -> None:
    task, built = averaged()
    before = task.weights()["unet"][0]

    def interrupted() -> None:
        with built.evaluation_weights():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert torch.equal(before, task.weights()["unet"][0])
    toy_task.train(task, built, 5, 6)


@pytest.mark.parametrize(
    "call",
    [
        lambda built: built.step(lambda: 0.0),
        lambda built: built.state_dict(),
        lambda built: built.evaluation_weights().__enter__(),
    ],
)
def test_training_inside_evaluation_is_refused(call: Callable[[BuiltOptimizer], object]) -> None:
    _, built = averaged()
    with built.evaluation_weights(), pytest.raises(RuntimeError, match="inside"):
        call(built)


def test_live_weights_are_left_alone() -> None:
    task = toy_task.ToyTask()
    built = build(recipe(), task.groups())
    with built.evaluation_weights():
        assert torch.equal(task.weights()["unet"][0], toy_task.ToyTask().weights()["unet"][0])


def saved(built: BuiltOptimizer) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(built.state_dict(), file)
    file.seek(0)
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def test_state_of_other_settings_is_refused() -> None:
    state = saved(build(recipe(args={"momentum": 0.9})))
    with pytest.raises(DamagedFileError, match=re.escape('"momentum": 0.9')):
        build(recipe(args={"momentum": 0.8})).load_state_dict(state)
    with pytest.raises(DamagedFileError, match="total_steps"):
        build(recipe(args={"momentum": 0.9}), total_steps=21).load_state_dict(state)


def test_loading_shares_nothing_with_the_state() -> None:
    task = toy_task.ToyTask()
    built = build(recipe(args={"momentum": 0.9}), task.groups())
    toy_task.train(task, built, 0, 2)
    state = saved(built)
    kept = {
        index: slot["momentum_buffer"].clone()
        for index, slot in state["optimizer"]["state"].items()
    }
    again = build(recipe(args={"momentum": 0.9}), task.groups())
    again.load_state_dict(state)
    toy_task.train(task, again, 2, 4)
    for index, buffer in kept.items():
        assert torch.equal(state["optimizer"]["state"][index]["momentum_buffer"], buffer)


CAME = recipe("came_pytorch.CAME", replace(PLAIN, exact_load=True), lr=3e-5)
LION = recipe("dadaptation.DAdaptLion", ADAPTIVE)
ADAM = recipe("torch.optim.AdamW")


@pytest.mark.parametrize(
    ("check", "options", "trait", "lie", "words"),
    [
        ("group_rates", LION, "group_rates", "free", "unequal rates raise"),
        ("group_rates", ADAM, "group_rates", "equal", "obeys a rate per group"),
        ("resume", CAME, "exact_load", False, "dtypes"),
        ("traits", ADAM, "uses_global_rng", True, "draws seen: False"),
        (
            "traits",
            recipe("Drawing", replace(PLAIN, uses_global_rng=True)),
            "uses_global_rng",
            False,
            "draws seen: True",
        ),
        (
            "traits",
            recipe("NeedsLoss", replace(PLAIN, stepping="closure")),
            "stepping",
            "plain",
            "without a closure",
        ),
        ("accepted", ADAM, "lr_role", "automatic", "relative_step"),
        ("traits", recipe(lr=0.01), "clip", "own", "one huge gradient moves"),
        (
            "rates",
            recipe("schedulefree.AdamWScheduleFree", AVERAGED, args={"warmup_steps": 4}),
            "effective_lr",
            "lr",
            "announced",
        ),
        (
            "traits",
            recipe("Stubborn", replace(PLAIN, schedule="constant")),
            "schedule",
            "external",
            "a tenth of the rate moves 1 as far",
        ),
    ],
)
def test_conformance_finds_a_trait_that_lies(
    check: str, options: OptimizerOptions, trait: str, lie: Any, words: str
) -> None:
    assert conformance.RECIPE_CHECKS[check](options) == []
    lying = replace(options, traits=replace(options.traits, **{trait: lie}))
    assert any(words in sentence for sentence in conformance.RECIPE_CHECKS[check](lying))


def test_conformance_finds_a_rate_too_high() -> None:
    assert conformance.check_improves(recipe(lr=1e3)) != []


def test_conformance_finds_an_argument_without_effect() -> None:
    options = recipe("Forgetful", args={"colour": "blue"})
    assert conformance.check_read_back(options) == ["argument colour cannot be read back"]
