"""A race's folder as if it had been run: its record, and runs stopped at their rungs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from optbench.analysis.race import (
    Point,
    RaceDesign,
    RaceRecord,
    RaceVerdict,
    Result,
    RunPlace,
    write_race,
)
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from tests.statistics.races import FabricatedRace

BASE_LOSS = 0.14
SECONDS_PER_EPOCH = {"adamw": 30.0, "lion": 28.0, "dadaptlion": 36.0, "prodigy": 41.0}
_NUM_IMAGES = 6


def make_race(
    sweep: Path,
    race: FabricatedRace,
    *,
    most_batches: int | None = None,
    name_of: Mapping[str, str] | None = None,
) -> RaceVerdict | None:
    """Run a race into a folder, whole or so many batches of it; return its verdict when whole.

    Args:
        sweep: The folder.
        race: What the runs reach; its `results` are those made.
        most_batches: None: until it is over.
        name_of: Of arms whose name is no folder's, another.
    """
    verdict = race.run() if most_batches is None else None
    if most_batches is not None:
        race.run_batches(most_batches)
    by_run: dict[tuple[str, Point, int], list[Result]] = {}
    for result in race.results:
        by_run.setdefault((result.arm, result.point, result.seed), []).append(result)
    places = {}
    for (arm, point, seed), results in by_run.items():
        values = "".join(f"-{value}" for value in point.values)
        name = f"{(name_of or {}).get(arm, arm)}-lr_mult{point.rate:g}{values}-seed{seed}"
        places[name] = RunPlace(arm=arm, point=point, seed=seed)
        _make_run(RunDir(sweep / name), race.design, places[name], results)
    overrides = {arm: (f"optimizer={arm}",) for arm in race.design.arms}
    write_race(sweep, RaceRecord(design=race.design, runs=places, overrides=overrides))
    return verdict


def _make_run(run: RunDir, design: RaceDesign, place: RunPlace, results: list[Result]) -> None:
    config = {
        "base": {"name": "tiny"},
        "network": {"name": "lora", "dim": 16, "alpha": 8.0},
        "optimizer": {"name": place.arm, "lr": 1e-4},
        "train": {"epochs": design.length, "batch_size": 1},
        "lr_mult": place.point.rate,
        "seed": place.seed,
        "render": {"seeds": []},
    }
    for axis, value in zip(design.nuisance, place.point.values, strict=True):
        group, _, key = axis.name.partition(".")
        config.setdefault(group, {})[key] = value  # type: ignore[attr-defined]
    files.write_atomic(run.config_path, yaml.safe_dump(config))
    files.write_json(run.provenance_path, {"num_cpus": 2, "changed": ["optimizer", "lr_mult"]})
    failure = next((result for result in results if result.failure), None)
    last = max(result.epoch for result in results) - bool(failure)
    seconds = SECONDS_PER_EPOCH.get(place.arm, 30.0)
    for epoch in range(1, last + 1):
        row = {
            "epoch": epoch,
            "step": 20 * epoch,
            "mean_loss": 0.2 - 0.01 * epoch,
            "seconds_train": seconds,
            "load_average": 1.0,
            "peak_memory_bytes": 2**30,
        }
        files.append_rows(run.epochs_path, [row])
    for result in results:
        if not result.failure:
            files.append_rows(run.validation_path, _validation(result))
    run.lora_dir.mkdir(parents=True, exist_ok=True)
    if failure:
        rundir.write_status(run.path, failure.failure or "failed", "the loss was not finite")
    elif last < design.length:
        rundir.write_status(run.path, "stopped", f"stopped at epoch {last} of {design.length}")
    else:
        rundir.write_status(run.path, "done")


def _validation(result: Result) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for split, mean in (("held_out", -(result.gain or 0.0)), ("others", result.forgetting or 0.0)):
        for number in range(_NUM_IMAGES):
            # Images differ, and do so alike for all runs.
            offset = 0.002 * (number - (_NUM_IMAGES - 1) / 2)
            rows.append(
                {
                    "epoch": result.epoch,
                    "image": f"image-{number}",
                    "split": split,
                    "timestep": 500,
                    "loss": BASE_LOSS + offset + mean + offset / 10,
                    "base_loss": BASE_LOSS + offset,
                }
            )
    return rows
