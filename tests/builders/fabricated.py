"""Sweep folders whose truth is known, without training: what each setting and seed reached."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir

TIMESTEPS = (100, 500, 900)
SECONDS = {"adamw": 0.5, "lion": 0.25}


def make_run(sweep: Path, name: str, gain: float | None = -0.03, **changes: Any) -> RunDir:
    """Make a finished run of two epochs that ends `gain` below the base on every picture.

    `changes`: optimizer, dim, seed, lr_mult, lr_role, dataset, status, splits, num_pictures, load,
    base_loss (added to the base's own), provenance (more of its keys), and further settings by
    override name (`{"network.dropout": 0.1}`).
    """
    asked = {"optimizer": "adamw", "dim": 8, "seed": 1, "lr_mult": 1.0, **changes}
    run = RunDir(sweep / name)
    seconds = SECONDS.get(asked["optimizer"], 1.0)
    config: dict[str, Any] = {
        "base": {"name": asked.get("base", "tiny")},
        "network": {"name": "lora", "dim": asked["dim"], "alpha": asked["dim"] / 2},
        "optimizer": {
            "name": asked["optimizer"],
            "lr": 1e-4,
            "traits": {"lr_role": asked.get("lr_role", "manual")},
        },
        "train": {"epochs": 2, "batch_size": 1},
        "loss": {"type": asked.get("loss", "l2")},
        "lr_mult": asked["lr_mult"],
        "seed": asked["seed"],
        **({"dataset": {"name": asked["dataset"]}} if "dataset" in asked else {}),
    }
    for key, value in asked.items():
        group, _, name = key.partition(".")
        if name:
            config.setdefault(group, {})[name] = value
    files.write_atomic(run.config_path, yaml.safe_dump(config))
    provenance = {
        "num_cpus": 2,
        "command": asked.get("command", ["-m", "optimizer=adamw,lion"]),
        **asked.get("provenance", {}),
    }
    files.write_json(run.provenance_path, provenance)
    num_epochs = 2 if asked.get("status", "done") == "done" else 1
    for epoch in range(1, num_epochs + 1):
        row: dict[str, Any] = {
            "epoch": epoch,
            "step": 5 * epoch,
            "mean_loss": 0.2 + (gain or 0.0) * epoch / 2,
            "seconds_train": 5 * seconds,
            "load_average": asked.get("load", 1.0),
            "peak_memory_bytes": 2**30 + asked["dim"],
        }
        rows = _validation(epoch, gain, asked) if gain is not None else []
        for split in asked.get("splits", ("held_out",)) if rows else ():
            of_split = [one for one in rows if one["split"] == split]
            for key, place in (("", "loss"), ("_base", "base_loss")):
                mean = sum(one[place] for one in of_split) / len(of_split)
                row[f"validation_loss{key}/{split}"] = mean
        files.append_rows(run.epochs_path, [row])
        files.append_rows(run.validation_path, rows)
        steps = [{"step": 5 * (epoch - 1) + i, "epoch": epoch, "loss": 0.2} for i in range(1, 6)]
        files.append_rows(run.steps_path, [{**one, "seconds_forward": seconds} for one in steps])
    run.lora_dir.mkdir()
    run.lora_path(None).write_bytes(b"0" * 1000 * asked["dim"])
    rundir.write_status(run.path, asked.get("status", "done"), asked.get("reason", ""))
    return run


def make_sweep(
    sweep: Path,
    gains: Mapping[tuple[str, int], Sequence[float]],
    **changes: Any,
) -> Path:
    """Make a sweep: of each (optimizer, dim) what its seeds 1, 2, ... gained."""
    for (optimizer, dim), found in gains.items():
        for seed, gain in enumerate(found, start=1):
            name = f"{optimizer}-dim{dim}-seed{seed}"
            make_run(sweep, name, gain, optimizer=optimizer, dim=dim, seed=seed, **changes)
    return sweep


def _validation(epoch: int, gain: float, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    splits = asked.get("splits", ("held_out",))
    pictures = range(asked.get("num_pictures", 4))
    of_split = dict.fromkeys(splits, gain)
    if "forgetting" in asked:
        of_split["others"] = asked["forgetting"]
    return [
        {
            "epoch": epoch,
            "image": f"{split} {picture}",
            "split": split,
            "timestep": timestep,
            "loss": 0.1 + 0.01 * picture + of_split[split] * epoch / 2 + (picture - 1.5) * 0.001,
            "base_loss": 0.1 + 0.01 * picture + asked.get("base_loss", 0.0),
        }
        for split, picture, timestep in itertools.product(splits, pictures, TIMESTEPS)
    ]
