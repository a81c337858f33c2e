"""Random SIGKILLs, at moments of processor time and at file operations, until all is done."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.torture import faults
from tests.torture.commands import Figures, Workplace, every_kind, run, undisturbed
from tests.torture.faults import Fault

_MOST_KILLS_PER_PLACE = 12
_SHARE = 0.3  # of its cost a command may live before it is killed


def kill_campaign(workplace: Workplace, *, lora: Path, num_kills: int, seed: int = 1) -> Figures:
    """Kill every kind of command over and over, and compare with what nothing disturbed."""
    draw = random.Random(seed)
    losses: list[str] = []
    num_done = {"moments": 0, "file operations": 0}
    num_places = 0
    place = workplace.root / "killed"
    whole = undisturbed(place, every_kind(workplace, place, lora=lora))
    while sum(num_done.values()) < num_kills:
        num_places += 1
        for _ in range(_MOST_KILLS_PER_PLACE):
            if draw.random() < 0.4 or not faults.is_loaded():
                limit = draw.uniform(0.05, _SHARE) * whole.ended.cpu_seconds
                ended, kind = run(place, whole.commands, cpu_seconds=limit), "moments"
            else:
                at = draw.randint(1, int(_SHARE * whole.ended.num_operations) + 1)
                fault = Fault(action="kill", at=at)
                ended, kind = run(place, whole.commands, fault=fault), "file operations"
            losses += [f"place {num_places}: {loss}" for loss in ended.complaints()]
            if ended.code is not None:
                break
            num_done[kind] += 1
        new = whole.again()
        losses += [f"place {num_places}: {loss}" for loss in new]
        print(f"  {sum(num_done.values())} kills, {num_places} places, {new[:5]}", flush=True)
        shutil.rmtree(place)
    what = f"{num_done['moments']} at random moments, {num_done['file operations']} at file "
    what += f"operations, of train, render, resize, regularize in {num_places} places; each ended "
    what += "bit-identical, with no partial file left"
    return Figures(
        name="SIGKILL", num_tried=sum(num_done.values()), what=what, losses=tuple(losses)
    )
