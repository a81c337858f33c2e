"""Measure an optimizer's state and its updates, cheaply enough for every run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from optbench.records import StateSize

# How far an update moves the weights is measured in the first step and then in every tenth.
RATIO_EVERY = 10
_8_BIT = (torch.uint8, torch.int8)


def state_size(optimizer: torch.optim.Optimizer) -> StateSize:
    """Return what an optimizer keeps besides the weights: bytes, and the share in 8 bits.

    The share is counted in weights: those whose state holds at least one 8-bit tensor as large as
    they are. Classes with 8-bit states leave small tensors in 32 bits, and a LoRA has many.
    """
    num_bytes = num_weights = num_8bit = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = list(_tensors(optimizer.state.get(parameter, {})))
            num_bytes += sum(tensor.numel() * tensor.element_size() for tensor in state)
            num_weights += parameter.numel()
            if any(
                tensor.dtype in _8_BIT and tensor.numel() >= parameter.numel() for tensor in state
            ):
                num_8bit += parameter.numel()
    return StateSize(num_bytes=num_bytes, share_8bit=num_8bit / max(1, num_weights))


@contextlib.contextmanager
def update_ratios(optimizer: torch.optim.Optimizer, *, enabled: bool) -> Iterator[dict[str, float]]:
    """Return a context for one update, and a mapping that holds ||change|| / ||weights|| after it.

    One number per group, over all its tensors together; empty where not enabled. The weights
    are those that gradients are taken at, also of classes that average them.
    """
    ratios: dict[str, float] = {}
    if not enabled:
        yield ratios
        return
    groups: list[dict[str, Any]] = optimizer.param_groups
    before = [[weights.detach().clone() for weights in group["params"]] for group in groups]
    yield ratios
    with torch.no_grad():
        for group, old_weights in zip(groups, before, strict=True):
            changes = [new - old for new, old in zip(group["params"], old_weights, strict=True)]
            ratios[group["name"]] = _norm(changes) / max(_norm(old_weights), torch.finfo().tiny)


def _norm(tensors: Sequence[Tensor]) -> float:
    """Return the Euclidean norm of all numbers in some tensors."""
    # Stacked first, so that an accelerator is waited for once and not once per tensor.
    return float(torch.stack([tensor.float().norm() for tensor in tensors]).norm())


def _tensors(state: Any) -> Iterable[Tensor]:
    """Yield every tensor in an optimizer's nested state."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
