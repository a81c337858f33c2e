"""Resumable training stages: a loop that keeps what it needs to go on after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn

_SAVE_EVERY_SECONDS = 120.0
_LOG_EVERY_STEPS = 25


class Stateful(Protocol):
    """Anything with a state dict: a model, an optimizer, an average."""

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Go on from `state`."""


class WeightAverage:
    """An exponential moving average of a model's parameters, to sample and ship from."""

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        """Start the average at the parameters' present values."""
        self._live = list(parameters)
        self._mean = [parameter.detach().clone() for parameter in self._live]
        self._decay = decay
        self._num_updates = 0

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live parameters, faster in the beginning."""
        self._num_updates += 1
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        torch._foreach_lerp_(self._mean, [p.detach() for p in self._live], 1 - decay)

    @torch.no_grad()
    def copy_to_live(self) -> None:
        """Put the average into the model; training does not go on after this."""
        for parameter, mean in zip(self._live, self._mean, strict=True):
            parameter.copy_(mean)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and its age."""
        return {"mean": self._mean, "num_updates": self._num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved average."""
        self._mean = [
            saved.to(live.device) for saved, live in zip(state["mean"], self._live, strict=True)
        ]
        self._num_updates = state["num_updates"]


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> torch.autocast:
    """Return the mixed precision of a GPU, bfloat16; on the CPU nothing changes."""
    where = device().type
    return torch.autocast(where, torch.bfloat16, enabled=where != "cpu")


def falling_rate(step_index: int, num_steps: int, *, peak: float) -> float:
    """Return the learning rate: 100 steps of warm-up, half the run flat, then down to 2 %."""
    fraction = step_index / num_steps
    fall = 1.0 if fraction < 0.5 else max(0.02, 1 - (fraction - 0.5) / 0.5)
    return peak * min(1.0, (step_index + 1) / 100) * fall


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of `optimizer` the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def run_stage(
    name: str,
    folder: Path,
    *,
    num_steps: int,
    parts: Mapping[str, Stateful],
    step: Callable[[int], Mapping[str, Tensor]],
) -> None:
    """Run `step(step_index)` up to `num_steps` times, going on from the stage's last checkpoint.

    Every draw inside `step` is keyed by its index, so a killed stage repeats nothing but the steps
    since the checkpoint. Numbers that `step` returns are averaged into `<folder>/<name>.jsonl`.
    """
    path = folder / f"{name}.state"
    first_step = _load(path, parts)
    sums: dict[str, Tensor] = {}
    num_summed = 0  # after a kill the first record covers fewer steps than the others
    saved_at = time.monotonic()
    started_at = saved_at
    with _progress() as progress:
        task = progress.add_task(name, total=num_steps, completed=first_step, numbers="")
        for step_index in range(first_step, num_steps):
            for key, value in step(step_index).items():
                sums[key] = sums.get(key, torch.zeros(())) + value.detach().cpu()
            num_summed += 1
            progress.advance(task)
            if (step_index + 1) % _LOG_EVERY_STEPS == 0:
                means = {key: float(value) / num_summed for key, value in sums.items()}
                sums, num_summed = {}, 0
                numbers = " ".join(f"{key} {value:.4f}" for key, value in means.items())
                progress.update(task, numbers=numbers)
                row = {"step": step_index + 1, "seconds": time.monotonic() - started_at, **means}
                with (folder / f"{name}.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
            if time.monotonic() - saved_at > _SAVE_EVERY_SECONDS:
                _save(path, step_index + 1, parts)
                saved_at = time.monotonic()
    _save(path, max(first_step, num_steps), parts)


def _progress() -> Progress:
    """Return the bar of a stage: position, time left, latest numbers."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )


def _save(path: Path, num_steps_done: int, parts: Mapping[str, Stateful]) -> None:
    """Write the stage's checkpoint so that a kill leaves either the old or the new one."""
    state = {name: part.state_dict() for name, part in parts.items()}
    temporary = path.with_suffix(".tmp")
    torch.save({"num_steps_done": num_steps_done, "parts": state}, temporary)
    temporary.replace(path)


def _load(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Restore the stage's checkpoint, if there is one, and return how many steps it has done."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    num_steps_done: int = state["num_steps_done"]
    return num_steps_done
