"""Conformance checks: does a recipe do what it says, on a small LoRA-shaped task?

Every check takes a recipe and returns sentences, one per violation; none means the recipe keeps
its word. `check_conformance` runs them all, for the test suite and for a user's own recipe alike.
Shapes: B pictures, I input features, O output features, R dim.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from optbench import recipes, rng
from optbench.optimizers import build_optimizer
from optbench.options import LrSchedulerOptions, OptimizerOptions
from optbench.records import Part
from optbench.stepping import BuiltOptimizer

PARTS: tuple[Part, ...] = ("unet", "text_encoder")
NUM_STEPS = 20
NUM_STEPS_IMPROVE = 60
_SEED = 1
_BATCH, _IN, _OUT, _DIM = 16, 288, 264, 16  # 4224 and more elements: 8-bit classes use 8 bits


class ToyTask:
    """One LoRA pair per part that must learn a small change of a frozen layer.

    As in a real LoRA the up factor starts at zero, so the down factor's first gradient is zero.
    """

    def __init__(self, *, dtype: torch.dtype = torch.float32) -> None:
        """Draw the frozen layers and the factors; equal on every call."""
        self.dtype = dtype
        self.factors: dict[Part, tuple[nn.Parameter, nn.Parameter]] = {}
        self._change_OI: dict[Part, Tensor] = {}
        for part in PARTS:
            draw = rng.generator(_SEED, "network-init", part)
            down_RI = torch.randn(_DIM, _IN, generator=draw) / _IN**0.5
            up_OR = torch.zeros(_OUT, _DIM)
            wanted = torch.randn(_OUT, 4, generator=draw) @ torch.randn(4, _IN, generator=draw)
            self._change_OI[part] = wanted / (4 * _IN) ** 0.5
            self.factors[part] = (nn.Parameter(down_RI.to(dtype)), nn.Parameter(up_OR.to(dtype)))

    def groups(self) -> dict[Part, tuple[nn.Parameter, nn.Parameter]]:
        """Return the parameters as a network returns them."""
        return dict(self.factors)

    def backward(self, step_index: int) -> float:
        """Return the loss of one batch and leave its gradients in the parameters."""
        loss = torch.zeros((), dtype=torch.float32)
        for part, (down_RI, up_OR) in self.factors.items():
            draw = rng.generator(_SEED, "noise", part, step_index)
            input_BI = torch.randn(_BATCH, _IN, generator=draw).to(self.dtype)
            output_BO = input_BI @ down_RI.T @ up_OR.T
            wanted_BO = input_BI.float() @ self._change_OI[part].T
            loss = loss + (output_BO.float() - wanted_BO).square().mean()
        loss.backward()
        return loss.item()

    def exact_loss(self) -> float:
        """Return the loss over all inputs, in double precision: even tiny progress shows."""
        errors = [
            (up_OR.double() @ down_RI.double() - self._change_OI[part].double()).square().sum()
            for part, (down_RI, up_OR) in self.factors.items()
        ]
        return float(sum(error.item() for error in errors)) / _OUT

    def weights(self) -> dict[Part, list[Tensor]]:
        """Return copies of all parameters."""
        return {part: [factor.detach().clone() for factor in self.factors[part]] for part in PARTS}

    def put(self, weights: Mapping[Part, list[Tensor]]) -> None:
        """Put copied parameters back, bit for bit."""
        with torch.no_grad():
            for part in PARTS:
                for factor, kept in zip(self.factors[part], weights[part], strict=True):
                    factor.copy_(kept)


def schedule_for(recipe: OptimizerOptions) -> LrSchedulerOptions:
    """Return the most demanding schedule a recipe's traits allow."""
    if recipe.traits.schedule != "external":
        return LrSchedulerOptions(name="constant", warmup_steps=0, num_cycles=1)
    warmup = 3 if recipe.traits.warmup == "allowed" else 0
    return LrSchedulerOptions(name="cosine", warmup_steps=warmup, num_cycles=1)


def build(
    recipe: OptimizerOptions, task: ToyTask, *, total_steps: int = NUM_STEPS
) -> BuiltOptimizer:
    """Return the recipe built over the task under `schedule_for` its traits."""
    return build_optimizer(
        recipe,
        task.groups(),
        lr_mult=1.0,
        lr_scheduler=schedule_for(recipe),
        total_steps=total_steps,
    )


def train(task: ToyTask, built: BuiltOptimizer, start: int, stop: int) -> None:
    """Take the steps `start` to `stop` (from 0, exclusive) as the training loop does."""
    for step_index in range(start, stop):
        loss = task.backward(step_index)
        built.step(lambda loss=loss: loss)  # type: ignore[misc]
        built.zero_grad()


def check_conformance(recipe: OptimizerOptions) -> list[str]:
    """Return every way in which a recipe does not do what it says; empty is good."""
    return [sentence for check in RECIPE_CHECKS.values() for sentence in check(recipe)]


def check_accepted(recipe: OptimizerOptions) -> list[str]:
    """Return why the recipe's own rates and traits are refused."""
    problems = recipes.check_recipe(
        recipe,
        lr_scheduler=schedule_for(recipe),
        max_grad_norm=0.0 if recipe.traits.clip == "refused" else 1.0,
        num_parts=len(PARTS),
    )
    return [str(problem) for problem in problems]


def check_read_back(recipe: OptimizerOptions) -> list[str]:
    """Return what the built object does not show: class, arguments, rates."""
    task = ToyTask()
    built = build(recipe, task)
    described = built.described()
    lacking = [f"argument {name} not found back" for name in described["arguments_not_found"]]
    if described["class"].rpartition(".")[2] != recipe.target.rpartition(".")[2]:
        lacking.append(f"built {described['class']}, asked for {recipe.target}")
    for part in PARTS:
        if described["groups"][part]["lr"] != recipes.asked_rate(recipe, part):
            lacking.append(f"rate of {part} is {described['groups'][part]['lr']}")
    if list(built.parameters()) != [p for factors in task.factors.values() for p in factors]:
        lacking.append("the parameters are not those it was given")
    return lacking


def check_group_rates(recipe: OptimizerOptions) -> list[str]:
    """Return whether the class treats unequal rates otherwise than `group_rates` says."""
    free = replace(recipe, traits=replace(recipe.traits, group_rates="free"))
    try:
        equal = _movement(replace(free, unet_lr=None, text_encoder_lr=None))
        tenth = _movement(replace(free, unet_lr=None, text_encoder_lr=free.lr / 10))
    except RuntimeError as error:
        if recipe.traits.group_rates == "equal":
            return []
        return [f"group_rates: free, but unequal rates raise: {error}"]
    obeyed = tenth["text_encoder"] < 0.5 * equal["text_encoder"]
    if recipe.traits.group_rates == "free" and not obeyed:
        return ["group_rates: free, but a tenth of the rate moves a group as far"]
    if recipe.traits.group_rates == "equal" and obeyed:
        return ["group_rates: equal, but the class obeys a rate per group"]
    return []


def check_repeatable(recipe: OptimizerOptions) -> list[str]:
    """Return whether two runs from the same start end differently in any bit."""
    first, second = (_trained(recipe).weights() for _ in range(2))
    return [] if _equal(first, second) else ["two equal runs end at different weights"]


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
        resumed.put(half.weights())
        again = build(recipe, resumed)
        again.load_state_dict(torch.load(file, weights_only=True))
        if _state_dtypes(again) != _state_dtypes(built):
            violations.append(f"loading changes the state's dtypes for {dtype} parameters")
        if again.rates() != built.rates():
            violations.append(f"loading changes the rates: {again.rates()} for {built.rates()}")
        train(resumed, again, NUM_STEPS // 2, NUM_STEPS)
        if not _equal(straight, resumed.weights()):
            violations.append(f"a resumed run ends at other weights, {dtype} parameters")
    return violations


def check_improves(recipe: OptimizerOptions) -> list[str]:
    """Return whether training leaves the loss where it was, or raises it."""
    task = ToyTask()
    before = task.exact_loss()
    built = build(recipe, task, total_steps=NUM_STEPS_IMPROVE)
    train(task, built, 0, NUM_STEPS_IMPROVE)
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
    drawn = torch.random.get_rng_state(), random.getstate()
    train(task, built, 0, NUM_STEPS)
    same = torch.equal(drawn[0], torch.random.get_rng_state()) and drawn[1] == random.getstate()
    if same == traits.uses_global_rng:
        violations.append(f"uses_global_rng: {traits.uses_global_rng}, draws seen: {not same}")
    return violations + _check_evaluation(task, built)


def _check_evaluation(task: ToyTask, built: BuiltOptimizer) -> list[str]:
    before = task.weights()
    with built.evaluation_weights():
        inside = task.weights()
    violations = []
    if not _equal(before, task.weights()):
        violations.append("weights are not restored bit for bit after evaluation")
    averaged = built.described()["traits"]["weights"] == "averaged"
    if averaged == _equal(before, inside):
        violations.append(f"averaged weights: {averaged}, but evaluation shows otherwise")
    return violations


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


def _equal(one: Mapping[Part, list[Tensor]], other: Mapping[Part, list[Tensor]]) -> bool:
    return all(
        torch.equal(left, right)
        for part in PARTS
        for left, right in zip(one[part], other[part], strict=True)
    )


def _state_dtypes(built: BuiltOptimizer) -> list[dict[str, torch.dtype]]:
    return [
        {n: v.dtype for n, v in built.optimizer.state[p].items() if isinstance(v, Tensor)}
        for p in built.parameters()
    ]


RECIPE_CHECKS: dict[str, Callable[[OptimizerOptions], list[str]]] = {
    "accepted": check_accepted,
    "read_back": check_read_back,
    "group_rates": check_group_rates,
    "repeatable": check_repeatable,
    "resume": check_resume,
    "improves": check_improves,
    "traits": check_traits,
}
