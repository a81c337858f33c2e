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

from optbench.storage import rundir
from tests.torture.sweeps import (
    SWEEP,
    Ended,
    Figures,
    Made,
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
    base = ("-m", "network.dim=2", "render=off", f"--config-dir={folder.parent}")
    command(workplace.arguments(healthy, *base, "optimizer=adamw,lion"))
    names = ",".join(["adamw", *(target.lower() for target in _EXPECTED), "lion"])
    ended = command(workplace.arguments(mixed, *base, f"optimizer={names}"))
    sys.path.remove(str(modules))
    found = results_of(mixed)
    if not results_of(healthy):
        return Figures(name="poisoned runs", num_tried=0, what="none", losses=(ended.output,))
    losses = [key for key, value in results_of(healthy).items() if found.get(key) != value]
    for target, expected in _EXPECTED.items():
        statuses = [
            rundir.read_status(path)
            # Not every one comes as far as writing its config.
            for path in sweep_dir(mixed).glob(f"{target.lower()}-*")
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
    made = Made(workplace, "disk", *SWEEP)
    _, whole = made.whole()
    losses: list[str] = []
    num_full = 0
    for size in num_kib:
        made.place.mkdir()
        with _mounted(made.place, size) as is_mounted:
            if not is_mounted:
                what = "skipped: mounting a file system needs to be root"
                return Figures(name="full disk", num_tried=0, what=what, losses=())
            ended = made.run()
            num_full += "No space left" in ended.output
            losses += [f"{size} KiB: {one}" for one in _wrong_of_full(made, ended, whole)]
            _remount(made.place, 512 * 1024)
            ended = made.run()
            if ended.code != 0:
                losses.append(f"{size} KiB, then room: exit {ended.code}: {ended.output[-800:]}")
            found = differences(made.place, whole)
            losses += [f"{size} KiB, then room: {one}" for one in found]
        made.place.rmdir()
        print(f"  file system of {size} KiB, {len(losses)} losses", flush=True)
    what = f"file systems of {min(num_kib)} to {max(num_kib)} KiB, {num_full} of them filled up; "
    what += "with room again the same command ended bit-identical"
    return Figures(name="full disk", num_tried=len(num_kib), what=what, losses=tuple(losses))


def _wrong_of_full(made: Made, ended: Ended, whole: dict[str, object]) -> Iterator[str]:
    """Yield what a full disk must not do: half a file under its name, a run that is called done."""
    for key, value in results_of(made.place).items():
        if key.endswith((".safetensors", ".png")) and whole.get(key) != value:
            yield f"{key} is not whole"
    if ended.code == 0 and differences(made.place, whole):
        yield "exit 0 with something missing"
    if ended.code not in (0, 1):
        yield f"exit {ended.code}: {ended.output[-1500:]}"


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
    made = Made(workplace, "race", *SWEEP)
    _, whole = made.whole()
    losses: list[str] = []
    num_runs = num_made = 0
    for number in range(num_races):
        workers = []
        for _ in range(num_workers):
            pid = os.fork()
            if pid == 0:
                with contextlib.suppress(BaseException):
                    made.run()
                os._exit(0)
            workers.append(pid)
        for pid in workers:
            os.waitpid(pid, 0)
        num_runs += len(run_dirs(made.place))
        num_made += sum(len(list(run.path.glob("claims/0*.json"))) for run in run_dirs(made.place))
        # Whoever moved on from a run did so before it was done: the last word is this one.
        ended = made.run()
        found = differences(made.place, whole)
        if ended.code != 0:
            found.append(f"exit {ended.code}: {ended.output[-800:]}")
        losses += [f"race {number}: {one}" for one in found]
        shutil.rmtree(made.place)
        print(f"  {number + 1} races, {found}", flush=True)
    what = f"{num_workers} workers on one sweep of 2 runs: {num_runs} runs, claimed {num_made} "
    what += "times in all; each ended bit-identical"
    return Figures(name="races", num_tried=num_races, what=what, losses=tuple(losses))
