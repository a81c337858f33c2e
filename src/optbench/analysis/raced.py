"""What runs of a race are for: to tune, with one seed, or as evidence, with fresh ones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from optbench.errors import DamagedFileError
from optbench.storage import files

RACE_NAME = "race.json"  # in a sweep's folder: `optbench.analysis.race.read_race` has all of it
TUNE = "tune"

RacePhase = Literal["tune", "confirm"]


def race_phases(sweep_dir: Path) -> dict[str, RacePhase]:
    """Return the phase of every run of a race, by its name; nothing where there is no race.

    What cannot be read says nothing here: reading the race itself names the fault.
    """
    try:
        content = files.read_json(sweep_dir / RACE_NAME)
        tuning_seed = content["design"]["tuning_seed"]
        return {
            str(run): "tune" if place["seed"] == tuning_seed else "confirm"
            for run, place in content["runs"].items()
        }
    except (DamagedFileError, OSError, KeyError, TypeError, AttributeError):
        return {}
