"""What runs of a race are for: to tune, with one seed, or as evidence, with fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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


def is_stopped_by_race(row: Mapping[str, Any]) -> bool:
    """Return whether a run of the runs frame was stopped while its rate was tuned.

    It is not unfinished: a race goes on with it or not, whatever a person does.
    """
    return row.get("status") == "stopped" and row.get("race_phase") == TUNE
