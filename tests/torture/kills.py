"""Random SIGKILLs, at moments of processor time and at file operations, until a sweep is done."""

from __future__ import annotations

import random
import shutil

from tests.torture.sweeps import (
    PICTURES,
    SWEEP,
    Figures,
    Workplace,
    command,
    differences,
    results_of,
)

_MOST_KILLS_PER_SWEEP = 12
_SHARE_OF_SWEEP = 0.45  # a command may live at most so long before it is killed


def kill_campaign(workplace: Workplace, *, num_kills: int, seed: int = 1) -> Figures:
    """Make sweeps that are killed over and over, and compare each with the undisturbed one."""
    draw = random.Random(seed)
    losses: list[str] = []
    num_done = {"moment": 0, "file operation": 0}
    num_sweeps = 0
    wholes = {}
    for name, sweep in (("plain", SWEEP), ("pictures", PICTURES)):
        place = workplace.root / f"whole-{name}"
        ended = command(workplace.arguments(place, *sweep))
        if ended.code != 0:
            return Figures(
                name="kills", num_tried=0, what="no sweep", losses=(ended.output[-2000:],)
            )
        wholes[name] = (sweep, ended, results_of(place))
    while sum(num_done.values()) < num_kills:
        name = "pictures" if num_sweeps % 4 == 3 else "plain"
        sweep, whole, results = wholes[name]
        place = workplace.root / f"killed-{num_sweeps}"
        arguments = workplace.arguments(place, *sweep)
        num_sweeps += 1
        for _ in range(_MOST_KILLS_PER_SWEEP):
            if draw.random() < 0.5:
                limit = draw.uniform(0.02, _SHARE_OF_SWEEP) * whole.cpu_seconds
                ended, kind = command(arguments, cpu_seconds=limit), "moment"
            else:
                operation = draw.randint(1, int(_SHARE_OF_SWEEP * whole.num_operations) + 1)
                ended, kind = command(arguments, operations=operation), "file operation"
            if ended.code is not None:
                break
            num_done[kind] += 1
        ended = command(arguments)
        found = differences(place, results)
        if ended.code != 0:
            found.append(f"exit {ended.code}: {ended.output[-500:]}")
        losses += [f"sweep {num_sweeps}: {one}" for one in found]
        print(f"  {sum(num_done.values())} kills, {num_sweeps} sweeps, {len(losses)} losses")
        if not found:
            shutil.rmtree(place)
    what = f"{num_done['moment']} at random moments, {num_done['file operation']} at file "
    what += f"operations, over {num_sweeps} sweeps of 2 to 4 runs; each ended bit-identical"
    return Figures(
        name="SIGKILL", num_tried=sum(num_done.values()), what=what, losses=tuple(losses)
    )
