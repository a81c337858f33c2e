"""Disks that fail: errors at single file operations, full, read-only, vanished and slow ones."""

from __future__ import annotations

import contextlib
import errno
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from optbench.storage import rundir
from tests.torture import faults
from tests.torture.commands import (
    Ended,
    Figures,
    Undisturbed,
    Workplace,
    every_kind,
    half_files,
    run,
    run_dirs,
    undisturbed,
)
from tests.torture.faults import Action, Fault

_KINDS = ("train", "render", "resize", "regularize")
_ONCE = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ESTALE)
_FROM = (errno.ENOSPC, errno.EIO, errno.EROFS)


def fault_campaign(workplace: Workplace, *, lora: Path, num_faults: int, seed: int = 3) -> Figures:
    """Let file operations of every kind of command fail, then give the command again."""
    if not faults.is_loaded():
        what = "skipped: needs Linux and a C compiler"
        return Figures(name="file faults", num_tried=0, what=what, losses=())
    draw = random.Random(seed)
    losses: list[str] = []
    wholes = _each_alone(workplace, lora)
    counts = dict.fromkeys(("failed once", "failed from then on", "written by half", "slow"), 0)
    for number in range(num_faults):
        kind = ("train", draw.choice(_KINDS))[number % 2]
        whole = wholes[kind]
        action, error, word = _draw_action(draw, number)
        # Short and slow from the beginning, so that everything is.
        limit = 1 if action in ("short from", "slow") else whole.ended.num_operations
        fault = Fault(action=action, at=draw.randint(1, limit), error=error)
        counts[word] += 1
        ended = run(whole.place, whole.commands, fault=fault)
        new = [*ended.complaints(), *half_files(whole.place, whole.results)]
        new += _others_not_tried(whole.place, ended) if action == "fail once" else []
        if action in ("short from", "slow") and ended.code != 0:
            new.append(f"exit {ended.code}: {ended.output[-800:]}")
        new += [f"again: {loss}" for loss in whole.again()]
        name = f"{kind}, {word} at {fault.at} ({errno.errorcode.get(error, '-')}, {ended.hit})"
        losses += [f"{name}: {loss}" for loss in new]
        shutil.rmtree(whole.place, ignore_errors=True)
        print(f"  {number + 1} faults: {name}: {new[:3]}", flush=True)
    what = ", ".join(f"{count} {word}" for word, count in counts.items())
    what += " (ENOSPC, EIO, EROFS, EACCES, EDQUOT, ESTALE) in train, render, resize, regularize; "
    what += (
        "each in words, no half file, the other runs made, and bit-identical by the same command"
    )
    return Figures(name="file faults", num_tried=num_faults, what=what, losses=tuple(losses))


def _draw_action(draw: random.Random, number: int) -> tuple[Action, int, str]:
    if number % 10 == 8:
        return "short from", 0, "written by half"
    if number % 10 == 9:
        return "slow", 0, "slow"
    if draw.random() < 0.7:
        return "fail once", draw.choice(_ONCE), "failed once"
    return "fail from", draw.choice(_FROM), "failed from then on"


def _each_alone(workplace: Workplace, lora: Path) -> dict[str, Undisturbed]:
    wholes = {}
    for index, kind in enumerate(_KINDS):
        place = workplace.root / kind
        commands = [every_kind(workplace, place, lora=lora)[index]]
        wholes[kind] = undisturbed(place, commands)
    return wholes


def _others_not_tried(place: Path, ended: Ended) -> Iterator[str]:
    """Yield the runs that one run's trouble kept from being made."""
    parts = Path(ended.hit).parts
    if parts[:2] != ("runs", "torture") or len(parts) < 4:
        return
    for other in run_dirs(place):
        status = rundir.read_status(other.path).status
        if other.path.parent.name == "torture" and other.name != parts[2] and status != "done":
            yield f"{other.name} is {status}, by the trouble of {parts[2]}"
    if len(run_dirs(place)) < 1:
        yield "no run was made"


def disk_campaign(workplace: Workplace, *, lora: Path, num_kib: tuple[int, ...]) -> list[Figures]:
    """Let file systems fill up, be read-only or vanish under every command; then repair them."""
    place = workplace.root / "disk"
    whole = undisturbed(place, every_kind(workplace, place, lora=lora))
    full: list[str] = []
    num_full = 0
    place.mkdir()
    for size in num_kib:
        with _mounted(place, size) as is_mounted:
            if not is_mounted:
                what = "skipped: mounting a file system needs to be root"
                return [Figures(name="broken disks", num_tried=0, what=what, losses=())]
            ended = run(place, whole.commands)
            num_full += "No space left" in ended.output
            new = [*ended.complaints(), *half_files(place, whole.results)]
            _remount(place, f"size={512 * 1024}k")
            new += [f"with room: {loss}" for loss in whole.again()]
        full += [f"{size} KiB: {loss}" for loss in new]
        print(f"  file system of {size} KiB: {new[:3]}", flush=True)
    sizes = f"{min(num_kib)} to {max(num_kib)} KiB, {num_full} of them filled up"
    figures = [
        Figures(
            name="full disk",
            num_tried=len(num_kib),
            what=f"file systems of {sizes}; with room again bit-identical by the same commands",
            losses=tuple(full),
        )
    ]
    read_only: list[str] = []
    for share in (0.0, 0.5, 1.0):
        with _mounted(place, 512 * 1024):
            if share == 1:
                run(place, whole.commands)
            elif share:
                at = int(share * whole.ended.num_operations)
                run(place, whole.commands, fault=Fault(action="kill", at=at))
            _remount(place, "ro")
            ended = run(place, whole.commands)
            new = list(ended.complaints())
            if share < 1 and ended.code == 0:
                new.append("exit 0 though nothing can have been written")
            _remount(place, "rw")
            new += [f"writable again: {loss}" for loss in whole.again()]
        read_only += [f"read-only at {share:.0%}: {loss}" for loss in new]
        print(f"  read-only at {share:.0%}: {new[:3]}", flush=True)
    what = "before the first command, in the middle, and after all were done"
    figures.append(Figures(name="read-only disk", num_tried=3, what=what, losses=tuple(read_only)))
    place.rmdir()
    vanished: list[str] = []
    for share in (0.15, 0.4, 0.7):
        limit = share * whole.ended.cpu_seconds
        ended = run(
            place,
            whole.commands,
            cpu_seconds=limit,
            then=lambda: shutil.rmtree(place, ignore_errors=True),
        )
        new = [*ended.complaints(), *(f"again: {loss}" for loss in whole.again())]
        shutil.rmtree(place, ignore_errors=True)
        vanished += [f"removed at {share:.0%}: {loss}" for loss in new]
        print(f"  removed at {share:.0%}: {new[:3]}", flush=True)
    what = "everything removed under running commands; again bit-identical by the same commands"
    figures.append(Figures(name="vanished disk", num_tried=3, what=what, losses=tuple(vanished)))
    return figures


@contextlib.contextmanager
def _mounted(place: Path, num_kib: int) -> Iterator[bool]:
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={num_kib}k", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    try:
        yield done.returncode == 0
    finally:
        if done.returncode == 0:
            subprocess.run(["umount", str(place)], check=False)


def _remount(place: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True)
