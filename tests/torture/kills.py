"""Random SIGKILLs, at moments of processor time and at file operations, until a sweep is done."""

from __future__ import annotations

import random
import shutil

from tests.torture.sweeps import PICTURES, SWEEP, Figures, Made, Workplace, command, differences

_MOST_KILLS_PER_SWEEP = 30
_SHARE_OF_SWEEP = 0.22  # a command may live at most so long before it is killed
_WHOLE_COMMAND_EVERY = 4  # sweeps: then the last word is the command line's, with its report


def kill_campaign(workplace: Workplace, *, num_kills: int, seed: int = 1) -> Figures:
    """Make sweeps that are killed over and over, and compare each with the undisturbed one."""
    draw = random.Random(seed)
    losses: list[str] = []
    num_done = {"moment": 0, "file operation": 0}
    num_sweeps = 0
    made = [Made(workplace, "plain", *SWEEP), Made(workplace, "pictures", *PICTURES)]
    wholes = [one.whole() for one in made]
    while sum(num_done.values()) < num_kills:
        which = int(num_sweeps % 4 == 3)
        sweep, (whole, results) = made[which], wholes[which]
        num_sweeps += 1
        for _ in range(_MOST_KILLS_PER_SWEEP):
            if draw.random() < 0.5:
                limit = draw.uniform(0.02, _SHARE_OF_SWEEP) * whole.cpu_seconds
                ended, kind = sweep.run(cpu_seconds=limit), "moment"
            else:
                operation = draw.randint(1, int(_SHARE_OF_SWEEP * whole.num_operations) + 1)
                ended, kind = sweep.run(operations=operation), "file operation"
            if ended.code is not None:
                break
            num_done[kind] += 1
        is_command = num_sweeps % _WHOLE_COMMAND_EVERY == 2
        ended = command(sweep.arguments) if is_command else sweep.run()
        found = differences(sweep.place, results)
        if ended.code != 0:
            found.append(f"exit {ended.code}: {ended.output[-800:]}")
        losses += [f"sweep {num_sweeps}: {one}" for one in found]
        print(f"  {sum(num_done.values())} kills, {num_sweeps} sweeps, {found}", flush=True)
        shutil.rmtree(sweep.place)
    what = f"{num_done['moment']} at random moments, {num_done['file operation']} at file "
    what += f"operations, over {num_sweeps} sweeps of 2 runs; each ended bit-identical"
    return Figures(
        name="SIGKILL", num_tried=sum(num_done.values()), what=what, losses=tuple(losses)
    )
