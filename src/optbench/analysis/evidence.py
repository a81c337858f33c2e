"""Read a sweep's folder into plain values: runs with their records, configs and provenance."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from optbench.analysis.comparisons import TRAINING, factors, known_records, labels
from optbench.analysis.frames import Frames, find_runs, load_runs
from optbench.analysis.race import RaceRecord, read_race
from optbench.errors import DamagedFileError
from optbench.schema import Prompt
from optbench.storage import files, rundir
from optbench.storage.nested import section
from optbench.storage.provenance import shown_facts, without_home
from optbench.storage.rundir import RunDir

# A prompt's name becomes part of file names; one that leads elsewhere is never followed.
_PLAIN_NAME = re.compile(r"[^/\\\0]+")
_LONGEST_NAME = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvidence:
    """One run as read from its folder."""

    run: RunDir
    number: int  # from 1, in the order of the folders' names
    label: str
    rank: int | None  # 1: the fewest seconds per step; None: not measured undisturbed
    row: Mapping[str, Any]  # of the runs frame; unknown values are None
    epochs: tuple[Mapping[str, Any], ...]
    steps: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    was_busy: bool  # the machine was: other work ran beside, and its seconds say little

    @property
    def name(self) -> str:
        """The folder's name, unique in its sweep."""
        return self.run.name

    @property
    def kind(self) -> str:
        """A training, a resized LoRA, or an original that resized ones are compared with."""
        return str(self.row.get("kind") or TRAINING)

    @property
    def status(self) -> str:
        """How the run ended or stands, in words."""
        return str(self.row["status"]).replace("_", " ")

    @property
    def reason(self) -> str:
        """Why, or nothing."""
        return str(self.row.get("reason") or "")

    @property
    def base_name(self) -> str:
        """The base model's name as the config gives it."""
        return str(section(self.config, "base").get("name", "base"))

    @property
    def num_epochs_planned(self) -> int:
        """The epochs of the config while the run is unfinished, else those there are."""
        planned = section(self.config, "train").get("epochs")
        num_epochs = int(self.row.get("num_epochs") or 0)
        return planned if isinstance(planned, int) and self.row["status"] != "done" else num_epochs


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvidence:
    """A sweep as read from its folder."""

    path: Path
    frames: Frames
    runs: tuple[RunEvidence, ...]  # fastest step first; those without a measured step last
    factors: Mapping[str, tuple[str, ...]]  # what was varied, and its values
    race: RaceRecord | None = None  # where the sweep is one

    @property
    def rows(self) -> pd.DataFrame:
        """The rows of the runs frame that belong to `runs`."""
        table = self.frames.runs
        return table[table["run"].isin([run.name for run in self.runs])]

    def only(self, *kinds: str) -> SweepEvidence:
        """Return the same sweep as if it had only runs of these kinds."""
        chosen = tuple(run for run in self.runs if run.kind in kinds)
        return dataclasses.replace(self, runs=chosen)


def read_sweep(sweep_dir: Path) -> SweepEvidence:
    """Return a sweep as its folder holds it now; damaged files are named in `frames.problems`."""
    frames = load_runs(sweep_dir, find_runs(sweep_dir))
    problems = list(frames.problems)
    records = known_records(frames.runs)
    names = labels(frames.runs) if records else {}
    busy = dict(zip(frames.machines["run"], frames.machines["was_busy"], strict=True))
    epochs: dict[str, list[dict[str, Any]]] = {}
    for record in known_records(frames.epochs):
        epochs.setdefault(record["run"], []).append(record)
    steps: dict[str, list[dict[str, Any]]] = {}
    for record in known_records(frames.steps):
        steps.setdefault(record["run"], []).append(record)
    is_time_measured = not any(busy.values())
    runs = []
    by_speed = sorted(
        enumerate(records, start=1),
        key=lambda numbered: (
            (seconds := numbered[1].get("seconds_per_step")) is None,
            seconds or 0.0,
            str(numbered[1]["run"]),
        ),
    )
    for place, (number, row) in enumerate(by_speed, start=1):
        run = RunDir(sweep_dir / row["run"])
        config = _read_or_empty(rundir.read_config, run)
        seeds = section(config, "render").get("seeds")
        is_ranked = is_time_measured and row.get("seconds_per_step") is not None
        runs.append(
            RunEvidence(
                run=run,
                number=number,
                label=names[row["sweep"], row["run"]],
                rank=place if is_ranked else None,
                row=row,
                epochs=tuple(epochs.get(row["run"], ())),
                steps=tuple(steps.get(row["run"], ())),
                config=config,
                provenance=shown_facts(_read_or_empty(files.read_json, run.provenance_path)),
                prompts=_prompts(config, run, problems),
                seeds=tuple(seed for seed in seeds if isinstance(seed, int))
                if isinstance(seeds, list)
                else (),
                was_busy=bool(busy.get(row["run"])),
            )
        )
    race = None
    try:
        race = read_race(sweep_dir)
    except DamagedFileError as error:
        problems.append(without_home(str(error)))
    return SweepEvidence(
        path=sweep_dir,
        frames=dataclasses.replace(frames, problems=tuple(problems)),
        runs=tuple(runs),
        factors=factors(frames.runs),
        race=race,
    )


def _read_or_empty(read: Any, place: Any) -> dict[str, Any]:
    """Return a file's content, nothing where it is damaged: the frames' problems name it."""
    try:
        content: dict[str, Any] = read(place)
    except DamagedFileError:
        return {}
    return content


def _prompts(config: Mapping[str, Any], run: RunDir, problems: list[str]) -> tuple[Prompt, ...]:
    """Return the prompts of a config, whether it lists them or keys them by name."""
    entries = section(config, "prompts").get("prompts")
    if isinstance(entries, Mapping):
        entries = [
            {"name": name, **entry} for name, entry in entries.items() if isinstance(entry, Mapping)
        ]
    prompts = []
    for entry in entries if isinstance(entries, list) else []:
        prompt = _prompt(entry)
        if prompt is None:
            problems.append(
                f"{without_home(run.config_path)}: a prompt that cannot be shown: {entry!r:.200}"
            )
        else:
            prompts.append(prompt)
    return tuple(prompts)


def _prompt(entry: Any) -> Prompt | None:
    if not isinstance(entry, Mapping):
        return None
    name, width, height = str(entry.get("name", "")), entry.get("width"), entry.get("height")
    is_plain = _PLAIN_NAME.fullmatch(name) and not name.startswith(".")
    is_sized = all(isinstance(size, int) and 0 < size <= 16384 for size in (width, height))
    if not (is_plain and is_sized) or len(name) > _LONGEST_NAME:
        return None
    return Prompt(
        name=name,
        text=str(entry.get("text", "")),
        negative=str(entry.get("negative", "")),
        width=int(entry["width"]),
        height=int(entry["height"]),
    )
