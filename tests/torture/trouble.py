"""Poisoned runs among healthy ones, and workers that race for the same commands."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import textwrap
from pathlib import Path

from optbench.storage import rundir
from tests.torture.commands import (
    Figures,
    Workplace,
    every_kind,
    results_of,
    run,
    run_dirs,
    undisturbed,
)

_POISONS = """
import sys
import torch

class Raises(torch.optim.SGD):
    def step(self, closure=None):
        raise ValueError("poison: an exception amid training")

class Exits(torch.optim.SGD):
    def step(self, closure=None):
        sys.exit(3)

class Starves(torch.optim.SGD):
    def step(self, closure=None):
        raise MemoryError("poison: no memory left")

class StarvesGpu(torch.optim.SGD):
    def step(self, closure=None):
        raise torch.OutOfMemoryError("poison: CUDA out of memory")

class Spoils(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for one in group["params"]:
                one.data.fill_(float("nan"))

class Needs(torch.optim.SGD):
    def __init__(self, *args, **kwargs):
        import no_such_package_at_all
"""
_EXPECTED = {
    "Raises": "failed",
    "Exits": "failed",
    "Starves": "out_of_memory",
    "StarvesGpu": "out_of_memory",
    "Spoils": "diverged",
    "Needs": "skipped",
}
_RECIPE = """
name: {name}
_target_: torture_poisons.{target}
package: torture_poisons
paper: ""
note: ""
lr: 0.001
unet_lr: null
text_encoder_lr: ${{optimizer.lr}}
args: {{}}
group_args: {{}}
refused_args: {{}}
traits: {{stepping: plain, weights: live, schedule: external, warmup: allowed, clip: external,
  lr_role: manual, group_rates: free, effective_lr: lr, uses_global_rng: false, exact_load: false}}
"""


def poison_campaign(workplace: Workplace) -> Figures:
    """Make a sweep of healthy and poisoned runs; the healthy ones must not notice."""
    modules, folder = workplace.root / "modules", workplace.root / "recipes" / "optimizer"
    modules.mkdir()
    folder.mkdir(parents=True)
    (modules / "torture_poisons.py").write_text(textwrap.dedent(_POISONS))
    for target in _EXPECTED:
        text = _RECIPE.format(name=target.lower(), target=target)
        (folder / f"{target.lower()}.yaml").write_text(text)
    sys.path.insert(0, str(modules))
    healthy, mixed = workplace.root / "healthy", workplace.root / "mixed"
    config_dir = f"--config-dir={folder.parent}"
    run(healthy, [workplace.training(healthy, config_dir, "optimizer=adamw,lion")])
    names = ",".join(["adamw", *(target.lower() for target in _EXPECTED), "lion"])
    ended = run(mixed, [workplace.training(mixed, config_dir, f"optimizer={names}")])
    sys.path.remove(str(modules))
    results = results_of(mixed)
    expected = {key: value for key, value in results_of(healthy).items() if "/report/" not in key}
    if not expected:
        return Figures(name="poisoned runs", num_tried=0, what="none", losses=(ended.output,))
    losses = [key for key, value in expected.items() if results.get(key) != value]
    for target, status in _EXPECTED.items():
        records = [
            rundir.read_status(path)
            # Not every one comes as far as writing its config.
            for path in (mixed / "runs" / "torture").glob(f"{target.lower()}-*")
        ]
        if [record.status for record in records] != [status] or not records[0].reason:
            losses.append(f"{target}: {records} instead of {status}")
        if f"torture_poisons.{target}" not in ended.output:
            losses.append(f"{target}: not named before it was imported")
    if ended.code != 1:
        losses.append(f"exit {ended.code} instead of 1: {ended.output[-2000:]}")
    what = "exception, exit, no memory (host, GPU), NaN, missing package; each a status with its "
    what += "reason, the healthy runs beside them bit-identical"
    return Figures(name="poisoned runs", num_tried=len(_EXPECTED), what=what, losses=tuple(losses))


def race_campaign(
    workplace: Workplace, *, lora: Path, num_races: int, num_workers: int = 2
) -> Figures:
    """Give the same commands several times at once: everything is made once, to the same bits."""
    place = workplace.root / "race"
    whole = undisturbed(place, every_kind(workplace, place, lora=lora))
    losses: list[str] = []
    num_runs = num_made = 0
    for number in range(num_races):
        workers = []
        for _ in range(num_workers):
            pid = os.fork()
            if pid == 0:
                code = 1
                with contextlib.suppress(BaseException):
                    complaints = list(run(place, whole.commands).complaints())
                    print("".join(complaints), end="", flush=True)
                    code = bool(complaints)
                os._exit(code)
            workers.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in workers]
        num_runs += len(run_dirs(place))
        num_made += sum(
            len(list(run_dir.path.glob("claims/0*.json"))) for run_dir in run_dirs(place)
        )
        # Whoever moved on from a run did so before it was done: the last word is this one.
        new = whole.again() + (["a worker complained"] if any(codes) else [])
        losses += [f"race {number}: {loss}" for loss in new]
        shutil.rmtree(place)
        print(f"  {number + 1} races, {new[:3]}", flush=True)
    what = (
        f"{num_workers} times train, render, resize, regularize at once: {num_runs} runs, locked "
    )
    what += f"{num_made} times in all; each ended bit-identical"
    return Figures(name="races", num_tried=num_races, what=what, losses=tuple(losses))
