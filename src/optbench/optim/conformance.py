"""Check on a small LoRA-shaped task that a recipe does what it says.

Every check takes a recipe and returns sentences, one per violation; a recipe without any passes.
The test suite and `optbench doctor` run all `RECIPE_CHECKS`, for the shipped recipes and for a
user's own alike.
"""

from __future__ import annotations

import io
import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from optbench.optim import recipes
from optbench.optim.schedules import multiplier
from optbench.optim.stepping import BuiltOptimizer
from optbench.optim.toy_task import (
    NUM_STEPS,
    PARTS,
    ToyTask,
    build,
    distance,
    equal,
    schedule,
    schedule_for,
    train,
)
from optbench.records import Part
from optbench.schema import OptimizerOptions

_NUM_STEPS_IMPROVE = 60
_RAISED_BY_CLASSES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
# A tenth of the rate moves most classes a tenth as far, D-Adaptation up to half: d keeps growing.
_OBEYS = 0.6
# A gradient 10000 times as large moves classes that limit their updates at most 1.5 times as far,
# and SGD thousands of times.
_HUGE = 1e4
_LIMITED = 2.0


def violations_of(name: str, recipe: OptimizerOptions) -> list[str]:
    """Return one check's violations; an exception from the class itself is one, too.

    Raises:
        OptbenchError: If the recipe cannot be built at all.
    """
    try:
        return RECIPE_CHECKS[name](recipe)
    except _RAISED_BY_CLASSES as error:
        return [f"the class raises {type(error).__name__}: {error}"]


def check_accepted(recipe: OptimizerOptions) -> list[str]:
    """Return why the recipe's own rates and traits are refused."""
    problems = recipes.check_recipe(
        recipe,
        lr_scheduler=schedule_for(recipe),
        max_grad_norm=0.0 if recipe.traits.clip == "refused" else 1.0,
        num_parts=len(PARTS),
        lr_mult=1.0,
    )
    return [str(problem) for problem in problems]


def check_read_back(recipe: OptimizerOptions) -> list[str]:
    """Return what the built object does not show: class, arguments, rates."""
    task = ToyTask()
    built = build(recipe, task)
    described = built.described()
    violations = [
        f"argument {name} cannot be read back" for name in described["arguments_not_found"]
    ]
    if described["class"].rpartition(".")[2] != recipe.target.rpartition(".")[2]:
        violations.append(f"built {described['class']}, asked for {recipe.target}")
    for part in PARTS:
        if described["groups"][part]["lr"] != recipes.requested_rate(recipe, part):
            violations.append(f"rate of {part} is {described['groups'][part]['lr']}")
    if list(built.parameters()) != [p for factors in task.factors.values() for p in factors]:
        violations.append("the parameters are not those it was given")
    return violations


def check_group_rates(recipe: OptimizerOptions) -> list[str]:
    """Return whether the class treats unequal rates otherwise than `group_rates` says."""
    rate = recipe.lr
    if rate is None:
        return []  # it has none
    free = replace(recipe, traits=replace(recipe.traits, group_rates="free"))
    try:
        same = _movement(replace(free, unet_lr=None, text_encoder_lr=None))
        tenth = _movement(replace(free, unet_lr=None, text_encoder_lr=rate / 10))
    except RuntimeError as error:
        if recipe.traits.group_rates == "equal":
            return []
        return [f"group_rates: free, but unequal rates raise: {error}"]
    obeyed = tenth["text_encoder"] < 0.5 * same["text_encoder"]
    if recipe.traits.group_rates == "free" and not obeyed:
        return ["group_rates: free, but a tenth of the rate moves a group as far"]
    if recipe.traits.group_rates == "equal" and obeyed:
        return ["group_rates: equal, but the class obeys a rate per group"]
    return []


def check_rates(recipe: OptimizerOptions) -> list[str]:
    """Return where the rates announced before an update are not the requested or the used ones."""
    task = ToyTask()
    total_steps = NUM_STEPS + 1  # one more, because a schedule's last rate may be 0
    built = build(recipe, task, total_steps=total_steps)
    requested = {part: recipes.requested_rate(recipe, part) for part in PARTS}
    violations = []
    for step_index in range(NUM_STEPS):
        lr, _, effective = built.rates()
        factor = multiplier(schedule_for(recipe), step_index, total_steps)
        expected = {part: rate * factor for part, rate in requested.items() if rate is not None}
        if not _close(lr, expected):
            violations.append(f"update {step_index}: lr is {lr}, expected {expected}")
        train(task, built, step_index, step_index + 1)
        for group in built.optimizer.param_groups:
            used = group.get("scheduled_lr")
            if used is not None and not _close({"": used}, {"": effective[group["name"]]}):
                violations.append(f"update {step_index}: {effective} announced, {used} used")
    _, _, effective = built.rates()
    if set(effective) != set(PARTS) or not all(0 < rate < math.inf for rate in effective.values()):
        violations.append(f"no effective rate for each part: {effective}")
    return violations


def check_repeatable(recipe: OptimizerOptions) -> list[str]:
    """Return whether two runs from the same start end differently in any bit."""
    first, second = (_trained(recipe).weights() for _ in range(2))
    return [] if equal(first, second) else ["two equal runs end at different weights"]


def check_resume(recipe: OptimizerOptions) -> list[str]:
    """Return where 10 steps, save, load and 10 steps differ from 20, in either precision."""
    violations = []
    for dtype in (torch.float32, torch.bfloat16):
        straight = _trained(recipe, dtype=dtype).weights()
        half = ToyTask(dtype=dtype)
        built = build(recipe, half)
        train(half, built, 0, NUM_STEPS // 2)
        file = io.BytesIO()
        torch.save(built.state_dict(), file)
        file.seek(0)
        resumed = ToyTask(dtype=dtype)
        resumed.restore(half.weights())
        again = build(recipe, resumed)
        again.load_state_dict(torch.load(file, weights_only=True))
        if _state_dtypes(again) != _state_dtypes(built):
            violations.append(f"loading changes the state's dtypes for {dtype} parameters")
        if again.rates() != built.rates():
            violations.append(f"loading changes the rates: {again.rates()} for {built.rates()}")
        train(resumed, again, NUM_STEPS // 2, NUM_STEPS)
        if not equal(straight, resumed.weights()):
            violations.append(f"a resumed run ends at other weights, {dtype} parameters")
    return violations


def check_improves(recipe: OptimizerOptions) -> list[str]:
    """Return whether training leaves the loss where it was, or raises it."""
    task = ToyTask()
    before = task.exact_loss()
    built = build(recipe, task, total_steps=_NUM_STEPS_IMPROVE)
    train(task, built, 0, _NUM_STEPS_IMPROVE)
    with built.evaluation_weights():
        after = task.exact_loss()
    return [] if after < before else [f"the loss goes from {before} to {after}"]


def check_traits(recipe: OptimizerOptions) -> list[str]:
    """Return where the traits are not what is observed."""
    traits = recipe.traits
    task = ToyTask()
    built = build(recipe, task)
    violations = []
    if traits.stepping == "plain" and _needs_closure(recipe):
        violations.append("stepping: plain, but the class cannot step without a closure")
    estimates = "d" in built.optimizer.param_groups[0]
    if traits.lr_role == "multiplier" and not (estimates and built.rates()[1]):
        violations.append("lr_role: multiplier, but no d is found")
    if violations:
        return violations  # such a class may not even step
    states = torch.random.get_rng_state(), random.getstate()
    train(task, built, 0, NUM_STEPS)
    same = torch.equal(states[0], torch.random.get_rng_state()) and states[1] == random.getstate()
    if same == traits.uses_global_rng:
        violations.append(f"uses_global_rng: {traits.uses_global_rng}, draws seen: {not same}")
    before = task.weights()
    with built.evaluation_weights():
        inside = task.weights()
    if not equal(before, task.weights()):
        violations.append("weights are not restored bit for bit after evaluation")
    averaged = built.described()["traits"]["weights"] == "averaged"
    if averaged == equal(before, inside):
        violations.append(f"averaged weights: {averaged}, but evaluation shows otherwise")
    return violations + _check_schedule(recipe) + _check_clip(recipe)


def _check_schedule(recipe: OptimizerOptions) -> list[str]:
    """Return whether a class that says it takes a schedule moves on at the old rate."""
    if recipe.traits.schedule != "external":
        return []
    start, stop = NUM_STEPS // 2, 2 * NUM_STEPS
    distances = []
    for lr_scheduler in (
        schedule("constant"),
        schedule("piecewise", step_rules=f"1:{start},0.1"),
    ):
        task = ToyTask()
        built = build(recipe, task, total_steps=stop, lr_scheduler=lr_scheduler)
        train(task, built, 0, start)
        before = task.weights()
        train(task, built, start, stop)
        distances.append(distance(before, task.weights()))
    share = distances[1] / distances[0]
    if share < _OBEYS:
        return []
    return [f"schedule: external, but a tenth of the rate moves {share:.2g} as far"]


def _check_clip(recipe: OptimizerOptions) -> list[str]:
    """Return whether a class that says it limits its updates follows one huge gradient."""
    if recipe.traits.clip == "external":
        return []
    task = ToyTask()
    built = build(recipe, task, lr_scheduler=schedule("constant"))
    stop = NUM_STEPS // 2
    train(task, built, 0, stop - 1)
    before = task.weights()
    train(task, built, stop - 1, stop)
    usual = distance(before, task.weights())
    before = task.weights()
    loss = task.backward(stop)
    for parameter in built.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(_HUGE)
    built.step(lambda: loss)
    times = distance(before, task.weights()) / usual
    if times < _LIMITED:
        return []
    return [f"clip: {recipe.traits.clip}, but one huge gradient moves {times:.3g} times as far"]


def _needs_closure(recipe: OptimizerOptions) -> bool:
    task = ToyTask()
    built = build(recipe, task)
    task.backward(0)
    try:
        built.optimizer.step()
    except TypeError:
        return True
    return False


def _movement(recipe: OptimizerOptions) -> dict[Part, float]:
    task = ToyTask()
    before = task.weights()
    built = build(recipe, task)
    train(task, built, 0, NUM_STEPS)
    return {
        part: sum((new - old).norm().item() for new, old in zip(now, before[part], strict=True))
        for part, now in task.weights().items()
    }


def _trained(recipe: OptimizerOptions, *, dtype: torch.dtype = torch.float32) -> ToyTask:
    task = ToyTask(dtype=dtype)
    train(task, build(recipe, task), 0, NUM_STEPS)
    return task


def _state_dtypes(built: BuiltOptimizer) -> list[dict[str, torch.dtype]]:
    return [
        {n: v.dtype for n, v in built.optimizer.state[p].items() if isinstance(v, Tensor)}
        for p in built.parameters()
    ]


def _close(rates: Mapping[Any, float], expected: Mapping[Any, float]) -> bool:
    return set(rates) == set(expected) and all(
        math.isclose(rates[name], expected[name], rel_tol=1e-9) for name in expected
    )


RECIPE_CHECKS: dict[str, Callable[[OptimizerOptions], list[str]]] = {
    "accepted": check_accepted,
    "read_back": check_read_back,
    "group_rates": check_group_rates,
    "rates": check_rates,
    "repeatable": check_repeatable,
    "resume": check_resume,
    "improves": check_improves,
    "traits": check_traits,
}
