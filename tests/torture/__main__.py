"""`make torture`: the long failure campaign on whole commands. Prints a table; exit code 1 on loss.

python -m tests.torture [kills|faults|disk|flips|races|poisons|hostile|inputs|slurm|ray ...]
                        [--kills=60] [--faults=60] [--flips=1] [--races=3] [--examples=2000]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# Before torch is imported, as in the tests: the last bits depend on it.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

from typing import TYPE_CHECKING

from tests.torture import faults

if TYPE_CHECKING:
    from tests.torture.commands import Figures

_DISKS = (256, 1024, 2048, 3072, 4096, 6144, 8192)


def main() -> int:
    """Run the named parts, or all, and return the exit code."""
    faults.preload()
    # Imported in the process that has the library.
    from tests.torture.broken_disks import disk_campaign, fault_campaign
    from tests.torture.commands import Workplace, prepare
    from tests.torture.engines import ray_campaign, slurm_campaign
    from tests.torture.flips import flip_campaign
    from tests.torture.hostile import hostile_campaign
    from tests.torture.inputs import input_campaign
    from tests.torture.kills import kill_campaign
    from tests.torture.trouble import poison_campaign, race_campaign

    kills, flips = _number("--kills=", 60), _number("--flips=", 1)
    num_faults, races = _number("--faults=", 60), _number("--races=", 3)
    parts: dict[str, Callable[[Workplace, Path], list[Figures]]] = {
        "poisons": lambda at, lora: [poison_campaign(at)],
        "disk": lambda at, lora: disk_campaign(at, lora=lora, num_kib=_DISKS),
        "faults": lambda at, lora: [fault_campaign(at, lora=lora, num_faults=num_faults)],
        "flips": lambda at, lora: [flip_campaign(at, lora=lora, num_each=flips)],
        "races": lambda at, lora: [race_campaign(at, lora=lora, num_races=races)],
        "hostile": lambda at, lora: [hostile_campaign(at, lora=lora)],
        "kills": lambda at, lora: [kill_campaign(at, lora=lora, num_kills=kills)],
        "inputs": lambda at, lora: input_campaign(num_examples=_number("--examples=", 2000)),
        "slurm": lambda at, lora: [slurm_campaign()],
        "ray": lambda at, lora: [ray_campaign(at)],
    }
    chosen = [word for word in sys.argv[1:] if word in parts] or list(parts)
    figures: list[Figures] = []
    with tempfile.TemporaryDirectory(prefix="torture-") as folder:
        lora = prepare(Workplace(Path(folder) / "first"))
        for name in chosen:
            started = time.monotonic()
            print(f"{name} ...", flush=True)
            part = Path(folder) / name
            part.mkdir()
            figures += parts[name](Workplace(part), lora)
            _print_table(figures)  # a campaign that is stopped has said what it found
            print(f"  {time.monotonic() - started:.0f} s", flush=True)
            shutil.rmtree(part)
    _print_table(figures)
    losses = [f"{part.name}: {loss}" for part in figures for loss in part.losses]
    print("\n".join(["", f"{len(losses)} losses", *losses[:60]]))
    return 1 if losses else 0


def _print_table(figures: Sequence[Figures]) -> None:
    print("\n| part | tries | losses | what |\n| --- | ---: | ---: | --- |")
    for part in figures:
        print(f"| {part.name} | {part.num_tried} | {len(part.losses)} | {part.what} |", flush=True)


def _number(option: str, default: int) -> int:
    """Return what an option of the command line says; of flips, so many for each kind of file."""
    given = (word.removeprefix(option) for word in sys.argv if word.startswith(option))
    return int(next(given, default))


if __name__ == "__main__":
    sys.exit(main())
