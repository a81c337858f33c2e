"""`make torture`: the long failure campaign. Prints a table; exit code 1 if anything was lost.

python -m tests.torture [kills|flips|poisons|disk|races|inputs|slurm|ray ...]
                        [--kills=100] [--flips=2]
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Before torch is imported, as in the tests: the last bits depend on it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

from tests.torture.engines import ray_campaign, slurm_campaign
from tests.torture.flips import flip_campaign
from tests.torture.inputs import input_campaign
from tests.torture.kills import kill_campaign
from tests.torture.sweeps import Figures, Workplace, prepare
from tests.torture.trouble import disk_campaign, poison_campaign, race_campaign

_DISKS = (256, 512, 1024, 1536, 2048, 3072, 4096, 6144)


def main() -> int:
    """Run the named parts, or all, and return the exit code."""
    num_kills, num_flips = _number("--kills=", 100), _number("--flips=", 2)
    parts: dict[str, Callable[[Workplace], list[Figures]]] = {
        "poisons": lambda at: [poison_campaign(at)],
        "disk": lambda at: [disk_campaign(at, num_kib=_DISKS)],
        "flips": lambda at: [flip_campaign(at, num_each=num_flips)],
        "races": lambda at: [race_campaign(at, num_races=5)],
        "kills": lambda at: [kill_campaign(at, num_kills=num_kills)],
        "inputs": lambda at: input_campaign(),
        "slurm": lambda at: [slurm_campaign()],
        "ray": lambda at: [ray_campaign(at)],
    }
    asked = [one for one in sys.argv[1:] if one in parts] or list(parts)
    figures: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        prepare(Workplace(Path(folder) / "first"))
        for name in asked:
            started = time.monotonic()
            print(f"{name} ...", flush=True)
            part = Path(folder) / name
            part.mkdir()
            figures += parts[name](Workplace(part))
            print(f"  {time.monotonic() - started:.0f} s", flush=True)
    print("\n| part | tries | losses | what |\n| --- | ---: | ---: | --- |")
    for one in figures:
        print(f"| {one.name} | {one.num_tried} | {len(one.losses)} | {one.what} |")
    losses = [f"{one.name}: {loss}" for one in figures for loss in one.losses]
    print("\n".join(["", f"{len(losses)} losses", *losses[:60]]))
    return 1 if losses else 0


def _number(option: str, default: int) -> int:
    """Return what an option of the command line says; of flips, so many for each kind of file."""
    given = (one.removeprefix(option) for one in sys.argv if one.startswith(option))
    return int(next(given, default))


if __name__ == "__main__":
    sys.exit(main())
