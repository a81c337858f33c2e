"""Poisoned runs among healthy ones, a disk that fills up, and workers that race for one sweep."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

from optbench import rundir
from tests.torture.sweeps import (
    SWEEP,
    Figures,
    Workplace,
    command,
    differences,
    results_of,
    run_dirs,
    sweep_dir,
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
    "Needs": "failed",
}
_RECIPE = """
name: {name}
_target_: torture_poisons.{target}
package: torture_poisons
paper: null
note: null
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
    base = ("-m", "network.dim=2", "render=off", f"--config-dir={folder.parent}")
    command(workplace.arguments(healthy, *base, "optimizer=adamw,lion"))
    names = ",".join(["adamw", *(target.lower() for target in _EXPECTED), "lion"])
    ended = command(workplace.arguments(mixed, *base, f"optimizer={names}"))
    sys.path.remove(str(modules))
    found = results_of(mixed)
    losses = [key for key, value in results_of(healthy).items() if found.get(key) != value]
    for target, expected in _EXPECTED.items():
        statuses = [
            rundir.read_status(run.path)
            for run in run_dirs(mixed)
            if run.name.startswith(f"{target.lower()}-")
        ]
        if [one.status for one in statuses] != [expected] or not statuses[0].reason:
            losses.append(f"{target}: {statuses} instead of {expected}")
        if f"torture_poisons.{target}" not in ended.output:
            losses.append(f"{target}: not named before it was imported")
    if ended.code != 1:
        losses.append(f"exit {ended.code} instead of 1: {ended.output[-2000:]}")
    what = "exception, exit, no memory (host, GPU), NaN, missing package; each a status with its "
    what += "reason, the healthy runs beside them bit-identical"
    return Figures(name="poisoned runs", num_tried=len(_EXPECTED), what=what, losses=tuple(losses))


def disk_campaign(workplace: Workplace, *, num_kib: tuple[int, ...]) -> Figures:
    """Let a sweep fill a small file system, make that larger, and give the command again."""
    whole_place = workplace.root / "disk-whole"
    command(workplace.arguments(whole_place, *SWEEP))
    whole = results_of(whole_place)
    losses: list[str] = []
    num_full = 0
    for size in num_kib:
        place = workplace.root / f"disk-{size}"
        place.mkdir()
        with _mounted(place, size) as is_mounted:
            if not is_mounted:
                what = "skipped: mounting a file system needs to be root"
                return Figures(name="full disk", num_tried=0, what=what, losses=())
            arguments = workplace.arguments(place, *SWEEP)
            ended = command(arguments)
            num_full += "No space left" in ended.output
            losses += [f"{size} KiB: {one}" for one in _wrong_of_full(place, ended.code, whole)]
            if "Traceback" in ended.output:
                losses.append(f"{size} KiB: a traceback: {ended.output[-1500:]}")
            _remount(place, 512 * 1024)
            ended = command(arguments)
            if ended.code != 0:
                losses.append(f"{size} KiB, then room: exit {ended.code}: {ended.output[-800:]}")
            losses += [f"{size} KiB, then room: {one}" for one in differences(place, whole)]
        print(f"  file system of {size} KiB, {len(losses)} losses")
    what = f"file systems of {min(num_kib)} to {max(num_kib)} KiB, {num_full} of them filled up; "
    what += "with room again the same command ended bit-identical"
    return Figures(name="full disk", num_tried=len(num_kib), what=what, losses=tuple(losses))


def _wrong_of_full(place: Path, code: int | None, whole: dict[str, object]) -> Iterator[str]:
    """Yield what a full disk must not do: half a file under its name, a run called done."""
    for key, value in results_of(place).items():
        if key.endswith((".safetensors", ".png")) and whole.get(key) != value:
            yield f"{key} is not whole"
        if key.endswith("/status") and value == "done" and code == 0:
            runs = {one.partition("/")[0] for one in whole}
            if len(run_dirs(place)) < len(runs):
                yield "exit 0 with runs missing"


@contextlib.contextmanager
def _mounted(place: Path, num_kib: int) -> Iterator[bool]:
    options = f"size={num_kib}k"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(place)], check=False)


def _remount(place: Path, num_kib: int) -> None:
    options = f"remount,size={num_kib}k"
    subprocess.run(["mount", "-o", options, str(place)], check=True)


def race_campaign(workplace: Workplace, *, num_races: int, num_workers: int = 2) -> Figures:
    """Start the same sweep several times at once: every run is made once, and to the same bits."""
    whole_place = workplace.root / "race-whole"
    command(workplace.arguments(whole_place, *SWEEP))
    whole = results_of(whole_place)
    losses: list[str] = []
    for number in range(num_races):
        place = workplace.root / f"race-{number}"
        arguments = workplace.arguments(place, *SWEEP)
        workers = []
        for _ in range(num_workers):
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    command(arguments)
                os._exit(0)
            workers.append(pid)
        for pid in workers:
            os.waitpid(pid, 0)
        # Whoever moved on from a run did so before it was done: the last word is this one.
        ended = command(arguments)
        found = differences(place, whole)
        if ended.code != 0:
            found.append(f"exit {ended.code}: {ended.output[-800:]}")
        losses += [f"race {number}: {one}" for one in found]
        if not found:
            shutil.rmtree(sweep_dir(place))
        print(f"  {number + 1} races, {len(losses)} losses")
    what = f"{num_workers} workers on one sweep; no run made twice or to other bits"
    return Figures(name="races", num_tried=num_races, what=what, losses=tuple(losses))
