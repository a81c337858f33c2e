"""`race.json` in a sweep's folder: a race's design, and which run is which of its trainings."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optbench.analysis.race.design import Axis, Point, RaceDesign
from optbench.analysis.raced import RACE_NAME
from optbench.storage import files

_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlace:
    """What a run of a race is a training of."""

    arm: str
    point: Point
    seed: int
    # The only rung that it speaks for, at its own end: a branch of another run that ended its
    # schedule there. None: a whole run, stopped at rungs and continued.
    rung: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RaceRecord:
    """A race as it was planned, and the runs that were begun."""

    design: RaceDesign
    runs: Mapping[str, RunPlace] = field(default_factory=dict)  # by the folder's name
    # By arm: the overrides that make it, as typed, without rate, nuisance values and seed.
    overrides: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    rate_key: str = "lr_mult"  # what the rates multiply, for commands that the page prints

    def place_of(self, run: str) -> RunPlace | None:
        """Return what a run is; None if it is none of the race's."""
        return self.runs.get(run)


def write_race(sweep_dir: Path, record: RaceRecord) -> None:
    """Write `race.json` in one move."""
    design = dataclasses.asdict(record.design)
    content = {
        "schema": _SCHEMA,
        "design": {**design, "epoch_cost": dict(record.design.epoch_cost)},
        "overrides": {arm: list(of_arm) for arm, of_arm in record.overrides.items()},
        "rate_key": record.rate_key,
        "runs": {
            run: {
                "arm": place.arm,
                "rate": place.point.rate,
                "values": list(place.point.values),
                "seed": place.seed,
                "rung": place.rung,
            }
            for run, place in record.runs.items()
        },
    }
    files.write_json(sweep_dir / RACE_NAME, content)


def read_race(sweep_dir: Path) -> RaceRecord | None:
    """Return a sweep's race; None where it is none.

    Raises:
        DamagedFileError: If `race.json` is corrupt, or of a later optbench.
    """
    path = sweep_dir / RACE_NAME
    if not path.is_file():
        return None
    content = files.read_json(path)
    if content.get("schema") != _SCHEMA:
        raise files.damaged(path, f"schema {content.get('schema')!r}", f"schema {_SCHEMA}")
    try:
        return _record(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise files.damaged(path, str(error) or type(error).__name__, "a race's design") from error


def _record(content: Mapping[str, Any]) -> RaceRecord:
    design = dict(content["design"])
    axes = (Axis(str(a["name"]), tuple(map(str, a["values"]))) for a in design.pop("nuisance"))
    least, most = map(int, design.pop("confirm"))
    lists = {key: tuple(design.pop(key)) for key in ("arms", "rates", "rungs", "rateless")}
    fresh = tuple(int(seed) for seed in design.pop("fresh_seeds"))
    fields: dict[str, Any] = {**design, **lists}
    return RaceRecord(
        design=RaceDesign(nuisance=tuple(axes), confirm=(least, most), fresh_seeds=fresh, **fields),
        runs={
            str(run): RunPlace(
                arm=str(place["arm"]),
                point=Point(float(place["rate"]), tuple(map(str, place["values"]))),
                seed=int(place["seed"]),
                rung=None if place["rung"] is None else int(place["rung"]),
            )
            for run, place in content["runs"].items()
        },
        overrides={arm: tuple(map(str, of_arm)) for arm, of_arm in content["overrides"].items()},
        rate_key=str(content["rate_key"]),
    )
