"""Step a built optimizer as its recipe's traits say, and show its rates and evaluation weights."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from optbench.errors import DamagedFileError, Problem
from optbench.schema import OptimizerOptions

# What a param group must hold for each way of saying where the step size lives.
RATE_KEYS = {
    "d*lr": ("d",),
    "rect*d*lr": ("d", "k", "betas", "use_bias_correction"),
    "d*lr/g0_norm": ("d",),
    "scheduled_lr": ("k", "warmup_steps"),
    "rect*lr": ("k", "betas"),
    "relative": ("relative_step", "eps"),
}


class _Averaging(Protocol):
    def train(self) -> None: ...
    def eval(self) -> None: ...


class _Relative(Protocol):
    def _get_lr(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> float: ...


class BuiltOptimizer:
    """A recipe's optimizer with its schedule; made by `build.build_optimizer` only.

    Fulfils `contracts.StepOptimizer`. `optimizer` is the torch object itself, for those who must
    wrap it (gradient scaling); everything else goes through the methods.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        *,
        options: OptimizerOptions,
        schedule: Callable[[int], float],
        description: dict[str, Any],
    ) -> None:
        """Put the schedule on `optimizer`, whose rates are the requested ones, and switch it on."""
        self.optimizer = optimizer
        self._traits = options.traits
        self._description = description
        self._is_evaluating = False
        # The schedule is built before any state is loaded: building it overwrites the rates.
        # A class that finds its own rate has none that could be multiplied.
        self._schedule = (
            None
            if options.traits.lr_role == "automatic"
            else torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        )
        self._start_training()

    def step(self, loss: Callable[[], float]) -> None:
        """Update the parameters from their gradients, then move the schedule on by one update."""
        if self._is_evaluating:
            raise RuntimeError("step() inside evaluation_weights(): leave the context first")
        if self._traits.stepping == "closure":
            # A tensor, because classes that want the loss call .item() on it.
            self.optimizer.step(lambda: torch.tensor(loss()))  # type: ignore[arg-type,return-value]
        else:
            self.optimizer.step()
        if self._schedule is not None:
            self._schedule.step()

    def zero_grad(self) -> None:
        """Drop all gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def parameters(self) -> Iterable[nn.Parameter]:
        """Return the optimized parameters in the order of the groups."""
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def evaluation_weights(self) -> AbstractContextManager[None]:
        """Return a context with the weights to save and render; restored bit for bit after it."""
        if self._traits.weights == "live":
            return contextlib.nullcontext()
        return self._averaged_weights()

    @contextlib.contextmanager
    def _averaged_weights(self) -> Iterator[None]:
        if self._is_evaluating:
            raise RuntimeError("evaluation_weights() inside evaluation_weights()")
        averaging = cast(_Averaging, self.optimizer)
        # The class goes to the average and back by interpolation, which rounds: evaluating would
        # change training. So the weights themselves are copied and restored.
        originals = [parameter.detach().clone() for parameter in self.parameters()]
        self._is_evaluating = True
        try:
            averaging.eval()
            yield
        finally:
            averaging.train()
            with torch.no_grad():
                for parameter, weights in zip(self.parameters(), originals, strict=True):
                    parameter.copy_(weights)
            self._is_evaluating = False

    def rates(self) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
        """Return lr, d and effective lr of the coming update, each by group name.

        lr is empty for classes that find their own, d for classes that estimate none. A group is
        absent from effective lr as long as the class has not measured what it depends on
        (`d*lr/g0_norm` before the first update).
        """
        lr: dict[str, float] = {}
        d: dict[str, float] = {}
        effective: dict[str, float] = {}
        for group in self.optimizer.param_groups:
            name = group["name"]
            if group["lr"] is not None:
                lr[name] = float(group["lr"])
            if "d*lr" in self._traits.effective_lr:
                d[name] = float(group["d"])
            rate = self._effective_rate(group)
            if rate is not None:
                effective[name] = rate
        return lr, d, effective

    def _effective_rate(self, group: Mapping[str, Any]) -> float | None:
        if self._traits.effective_lr == "relative":
            return self._relative_rate(group)
        lr = float(group["lr"])
        match self._traits.effective_lr:
            case "d*lr":
                return float(group["d"]) * lr * _bias_correction(group)
            case "rect*d*lr":
                rect = _rectification(group, group["k"]) if group["use_bias_correction"] else 1.0
                return float(group["d"]) * lr * rect
            case "rect*lr":
                return lr * _rectification(group, group["k"] + 1)
            case "d*lr/g0_norm":
                # The class writes it to one group only, and which one depends on their order.
                norms = [g["g0_norm"] for g in self.optimizer.param_groups if "g0_norm" in g]
                return float(group["d"]) * lr / float(norms[0]) if norms else None
            case "scheduled_lr":
                # The group's own `scheduled_lr` is that of the update before.
                return lr * min(1.0, (int(group["k"]) + 1) / max(1, int(group["warmup_steps"])))
            case _:
                return lr

    def _relative_rate(self, group: Mapping[str, Any]) -> float:
        """Return the mean over the group's tensors of the rate the class will work out for each."""
        rule = cast(_Relative, self.optimizer)._get_lr
        parameters = group["params"]
        step = self.optimizer.state.get(parameters[0], {}).get("step", 0) + 1
        with torch.no_grad():
            # Stacked first, so that an accelerator is waited for once and not once per tensor.
            squares = torch.stack([tensor.float().square().mean() for tensor in parameters])
        rates = [rule(group, {"step": step, "RMS": rms}) for rms in squares.sqrt().tolist()]
        return sum(rates) / len(rates)

    def described(self) -> dict[str, Any]:
        """Return what was really built, as JSON holds it: class, arguments, rates, schedule."""
        return copy.deepcopy(self._description)

    def state_dict(self) -> dict[str, Any]:
        """Return everything needed to resume bit for bit, loadable with weights_only.

        The tensors are the optimizer's own: write them before the next update. The parameters
        belong to the network; save them outside `evaluation_weights` to resume from them.
        """
        if self._is_evaluating:
            raise RuntimeError("state_dict() inside evaluation_weights(): leave the context first")
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self._schedule is None else self._schedule.state_dict(),
            "built": self._identity(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume exactly where `state` was taken.

        Raises:
            DamagedFileError: If it is the state of another recipe.
        """
        if state.get("built") != self._identity():
            raise DamagedFileError(
                Problem(
                    "the saved optimizer",
                    f"the state of {state.get('built')}",
                    f"the state of {self._identity()}",
                    "resume with the settings it was saved with, or start the run anew",
                )
            )
        state = copy.deepcopy(state)
        self.optimizer.load_state_dict(state["optimizer"])
        if self._traits.exact_load:
            # torch casts floating state to the parameter's dtype (pytorch issue 43706).
            saved = state["optimizer"]
            indices = [index for group in saved["param_groups"] for index in group["params"]]
            for index, parameter in zip(indices, self.parameters(), strict=True):
                loaded = self.optimizer.state[parameter]
                for name, value in saved["state"].get(index, {}).items():
                    if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                        loaded[name] = value.to(loaded[name].device)
        if self._schedule is not None:
            self._schedule.load_state_dict(state["schedule"])
        self._start_training()

    def _start_training(self) -> None:
        if self._traits.weights == "averaged":
            cast(_Averaging, self.optimizer).train()

    def _identity(self) -> str:
        """Return what must be equal for a state to fit: all but versions and printed text."""
        keys = ("class", "arguments", "groups", "schedule")
        return json.dumps({key: self._description[key] for key in keys}, sort_keys=True)


def _bias_correction(group: Mapping[str, Any]) -> float:
    """Return sqrt(1 - b2^k) / (1 - b1^k) of the coming update, or 1 where it is not used."""
    if not group.get("use_bias_correction", False):
        return 1.0
    beta1, beta2 = group["betas"][0], group["betas"][1]
    update = group["k"] + 1
    return float((1 - beta2**update) ** 0.5 / (1 - beta1**update))


def _rectification(group: Mapping[str, Any], update: int) -> float:
    """Return RAdam's factor of update number `update`, from 1; 0 for its first few updates.

    r = sqrt((p - 4) (p - 2) P / ((P - 4) (P - 2) p)), p = P - 2 t b2^t / (1 - b2^t) and
    P = 2 / (1 - b2) - 1 (Liu et al., arXiv:1908.03265, algorithm 2).
    """
    beta2 = group["betas"][-1]
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * update * beta2**update / (1 - beta2**update)
    if length <= 4:
        # An update of RAdam's first few is none, unless the class is told to take it unscaled.
        return float(not group.get("silent_sgd_phase", True))
    ratio = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
    return float(ratio**0.5)
