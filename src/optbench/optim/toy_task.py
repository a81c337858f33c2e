"""Train a small LoRA-shaped task, to try recipes on.

Shapes: B samples, I input features, O output features, R dim.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from optbench import rng
from optbench.optim.build import build_optimizer
from optbench.optim.stepping import BuiltOptimizer
from optbench.records import ParameterGroup, Part
from optbench.schema import LrSchedulerOptions, OptimizerOptions

PARTS: tuple[Part, ...] = ("unet", "text_encoder")
NUM_STEPS = 20
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
            change_OI = torch.randn(_OUT, 4, generator=draw) @ torch.randn(4, _IN, generator=draw)
            self._change_OI[part] = change_OI / (4 * _IN) ** 0.5
            self.factors[part] = (nn.Parameter(down_RI.to(dtype)), nn.Parameter(up_OR.to(dtype)))

    def groups(self) -> tuple[ParameterGroup, ...]:
        """Return the parameters as a network returns them."""
        return tuple(
            ParameterGroup(name=part, part=part, lr_weight=1.0, parameters=factors)
            for part, factors in self.factors.items()
        )

    def backward(self, step_index: int) -> float:
        """Return the loss of one batch and leave its gradients in the parameters."""
        loss = torch.zeros((), dtype=torch.float32)
        for part, (down_RI, up_OR) in self.factors.items():
            draw = rng.generator(_SEED, "noise", part, step_index)
            input_BI = torch.randn(_BATCH, _IN, generator=draw).to(self.dtype)
            output_BO = input_BI @ down_RI.T @ up_OR.T
            target_BO = input_BI.float() @ self._change_OI[part].T
            loss = loss + (output_BO.float() - target_BO).square().mean()
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

    def restore(self, weights: Mapping[Part, list[Tensor]]) -> None:
        """Put copied parameters back, bit for bit."""
        with torch.no_grad():
            for part in PARTS:
                for factor, value in zip(self.factors[part], weights[part], strict=True):
                    factor.copy_(value)


def schedule(name: str, warmup_steps: float = 0, **changes: Any) -> LrSchedulerOptions:
    """Return a schedule with the given settings and no others."""
    unused: dict[str, Any] = dict.fromkeys(
        ("power", "min_lr_ratio", "timescale", "decay_steps", "step_rules")
    )
    settings = {"num_cycles": 1, **unused, **changes}
    return LrSchedulerOptions(name=name, warmup_steps=warmup_steps, **settings)


def schedule_for(recipe: OptimizerOptions) -> LrSchedulerOptions:
    """Return the most demanding schedule a recipe's traits allow."""
    if recipe.traits.schedule != "external":
        return schedule("constant")
    warmup = 3 if recipe.traits.warmup == "allowed" else 0
    return schedule("cosine", warmup)


def build(
    recipe: OptimizerOptions,
    task: ToyTask,
    *,
    total_steps: int = NUM_STEPS,
    lr_scheduler: LrSchedulerOptions | None = None,
) -> BuiltOptimizer:
    """Return the recipe built over the task, by default under `schedule_for` its traits."""
    return build_optimizer(
        recipe,
        task.groups(),
        lr_mult=1.0,
        lr_scheduler=schedule_for(recipe) if lr_scheduler is None else lr_scheduler,
        total_steps=total_steps,
    )


def train(task: ToyTask, built: BuiltOptimizer, start: int, stop: int) -> None:
    """Take the steps `start` to `stop` (from 0, exclusive) as the training loop does."""
    for step_index in range(start, stop):
        loss = task.backward(step_index)
        built.step(lambda loss=loss: loss)  # type: ignore[misc]
        built.zero_grad()


def equal(first: Mapping[Part, list[Tensor]], second: Mapping[Part, list[Tensor]]) -> bool:
    """Return whether two sets of weights are equal in every bit."""
    return all(
        torch.equal(left, right)
        for part in PARTS
        for left, right in zip(first[part], second[part], strict=True)
    )


def distance(first: Mapping[Part, list[Tensor]], second: Mapping[Part, list[Tensor]]) -> float:
    """Return the Euclidean distance between two sets of weights."""
    squares = [
        (left.double() - right.double()).square().sum().item()
        for part in PARTS
        for left, right in zip(first[part], second[part], strict=True)
    ]
    return math.sqrt(sum(squares))
