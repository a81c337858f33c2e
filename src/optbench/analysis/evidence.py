"""What a sweep's folder says, as plain values in the order in which the page shows them."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench import analysis
from optbench.analysis import Frames
from optbench.errors import DamagedFileError
from optbench.schema import Prompt
from optbench.storage import rundir
from optbench.storage.nested import section
from optbench.storage.rundir import RunDir

# A prompt's name becomes part of file names; one that leads elsewhere is never followed.
_PLAIN_NAME = re.compile(r"[^/\\\0]+")
_LONGEST_NAME = 100

# Told apart on white and on black, also with the common colour blindnesses (after Tol, Okabe-Ito).
COLOURS = (
    "#2f6fd6",
    "#d9541e",
    "#1e9e6a",
    "#b5489a",
    "#c28a00",
    "#2aa5c4",
    "#7a5cd0",
    "#8a8f2a",
    "#d6336c",
    "#6b7a8f",
    "#a0522d",
)
DASHES = ("", "7 3", "2 3", "10 3 2 3", "14 4", "4 2 1 2 1 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvidence:
    """Everything the page says about one run."""

    run: RunDir
    anchor: str  # run-1, run-2 ...: safe in HTML whatever the run is called
    label: str
    rank: int | None  # 1: the fewest seconds per step; None: not measured undisturbed
    row: Mapping[str, Any]  # of the runs frame; unknown values are None
    epochs: tuple[Mapping[str, Any], ...]
    steps: tuple[Mapping[str, Any], ...]
    config: Mapping[str, Any]
    provenance: Mapping[str, Any]
    prompts: tuple[Prompt, ...]
    seeds: tuple[int, ...]
    colour: str
    dash: str

    @property
    def kind(self) -> str:
        """A training, a resized LoRA, or an original that resized ones are compared with."""
        return str(self.row.get("kind") or analysis.TRAINING)

    @property
    def status(self) -> str:
        """How the run ended or stands, in words."""
        return str(self.row["status"]).replace("_", " ")

    @property
    def reason(self) -> str:
        """Why, or nothing."""
        return str(self.row.get("reason") or "")

    @property
    def was_crowded(self) -> bool:
        """Whether more wanted to compute than the machine has cores: its seconds say little."""
        load, num_cpus = self.row.get("load_average"), self.provenance.get("num_cpus")
        # The run itself and its system need a little more than the cores it has.
        return bool(load and isinstance(num_cpus, int) and load > num_cpus + 0.5)

    @property
    def base_name(self) -> str:
        """The base's name as the config gives it."""
        return str(section(self.config, "base").get("name", "base"))

    @property
    def num_epochs_asked(self) -> int:
        """The epochs the config asks for, or those there are."""
        asked = section(self.config, "train").get("epochs")
        done = int(self.row.get("num_epochs") or 0)
        return asked if isinstance(asked, int) and self.row["status"] != "done" else done


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvidence:
    """Everything the page says about a sweep."""

    path: Path
    frames: Frames
    runs: tuple[RunEvidence, ...]  # fastest step first; those without a measured step last
    factors: Mapping[str, tuple[str, ...]]  # what was varied, and its values
    problems: tuple[str, ...]

    def only(self, *kinds: str) -> SweepEvidence:
        """Return the same sweep as if it had only runs of these kinds."""
        chosen = tuple(run for run in self.runs if run.kind in kinds)
        return dataclasses.replace(self, runs=chosen)


def gather(sweep_dir: Path) -> SweepEvidence:
    """Return what the folder of a sweep says now; damaged files are named, never fatal."""
    frames = analysis.load_runs(sweep_dir, analysis.find_runs(sweep_dir))
    problems = list(frames.problems)
    records = _records(frames.runs)
    names = analysis.differing(_compared(frames.runs)) if records else []
    factors = {name: _values(records, name) for name in names}
    labels = _told_apart(analysis.labels(frames.runs), records) if records else {}
    looks = _looks(records, names)
    epochs, steps = _by_run(frames.epochs), _by_run(frames.steps)
    runs = []
    order = sorted(range(len(records)), key=lambda index: _speed_key(records[index]))
    for place, index in enumerate(order, start=1):
        row = records[index]
        run = RunDir(sweep_dir / row["run"])
        config = _config(run)
        runs.append(
            RunEvidence(
                run=run,
                anchor=f"run-{index + 1}",
                label=labels[row["sweep"], row["run"]],
                rank=place if row.get("seconds_per_step") is not None else None,
                row=row,
                epochs=tuple(epochs.get(row["run"], ())),
                steps=tuple(steps.get(row["run"], ())),
                config=config,
                provenance=_provenance(run, problems),
                prompts=_prompts(config, run, problems),
                seeds=_seeds(config),
                colour=looks[index][0],
                dash=looks[index][1],
            )
        )
    if any(run.was_crowded for run in runs):
        runs = [dataclasses.replace(run, rank=None) for run in runs]
    return SweepEvidence(
        path=sweep_dir, frames=frames, runs=tuple(runs), factors=factors, problems=tuple(problems)
    )


def _told_apart(
    labels: Mapping[tuple[str, str], str], records: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, str], str]:
    """Return the labels, with originals that are trainings of the same sweep named like those."""
    found = dict(labels)
    trained = [row for row in records if row["kind"] == analysis.TRAINING]
    for row in (one for one in records if one["kind"] == analysis.ORIGINAL):
        parts = re.split(r'[/\\"]', str(row.get("source")))
        for other in trained:
            if other["run"] in parts:
                label = labels[other["sweep"], other["run"]]
                found[row["sweep"], row["run"]] = f"{label}, original"
    return found


def _compared(runs: Any) -> Any:
    """Return the runs whose settings are the sweep's question: trainings, where there are any."""
    for kind in (analysis.TRAINING, analysis.RESIZE):
        if len(chosen := runs[runs["kind"] == kind]):
            return chosen
    return runs


def _records(frame: Any) -> list[dict[str, Any]]:
    """Return a frame's rows with None for what is unknown."""
    return [
        {str(key): _known(value) for key, value in record.items()}
        for record in frame.to_dict("records")
    ]


def _known(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return None if type(value).__name__ in ("NAType", "NaTType") else value


def _by_run(frame: Any) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for record in _records(frame):
        found.setdefault(record["run"], []).append(record)
    return found


def _values(records: Sequence[Mapping[str, Any]], name: str) -> tuple[str, ...]:
    """Return a factor's values in rising order, off first, words in the order of the runs."""
    values = {analysis.shown(row.get(name)): row.get(name) for row in records}
    if not any(row.get(name) is None and _has_siblings(row, name) for row in records):
        values.pop("null", None)  # of a run that has no such setting, or whose config is lost
    if all(isinstance(value, (int, float)) for value in values.values() if value is not None):
        return tuple(sorted(values, key=lambda text: _rising(values[text])))
    return tuple(values)


def _rising(value: float | None) -> float:
    return -math.inf if value is None else float(value)


def _has_siblings(row: Mapping[str, Any], name: str) -> bool:
    """Return whether another setting of the same group is known: then this one is switched off."""
    group = f"{name.partition('.')[0]}."
    return any(
        key.startswith(group) and key != name and value is not None for key, value in row.items()
    )


def _looks(records: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return a colour and a dash pattern for every run, all different as long as there are some.

    Where runs differ in two things, the colour shows one of them and the dashes the other.
    """
    if len(names) == 2:
        first, second = (_values(records, name) for name in names)
        if len(first) > len(COLOURS) or len(second) > len(DASHES):
            first, second, names = second, first, names[::-1]
        if len(first) <= len(COLOURS) and len(second) <= len(DASHES):
            return [
                (
                    COLOURS[_index(first, row.get(names[0]))],
                    DASHES[_index(second, row.get(names[1]))],
                )
                for row in records
            ]
    num_colours = len(COLOURS)
    return [
        (COLOURS[index % num_colours], DASHES[index // num_colours % len(DASHES)])
        for index in range(len(records))
    ]


def _index(values: Sequence[str], value: Any) -> int:
    text = analysis.shown(value)
    return values.index(text) if text in values else 0


def _speed_key(row: Mapping[str, Any]) -> tuple[bool, float, str]:
    seconds = row.get("seconds_per_step")
    return seconds is None, seconds or 0.0, str(row["run"])


def _config(run: RunDir) -> dict[str, Any]:
    try:
        return analysis.read_config(run)
    except DamagedFileError:
        return {}  # the frames' problems name it


def _provenance(run: RunDir, problems: list[str]) -> dict[str, Any]:
    if not run.provenance_path.is_file():
        return {}
    try:
        return rundir.read_json(run.provenance_path)
    except DamagedFileError as error:
        problems.append(str(error))
        return {}


def _prompts(config: Mapping[str, Any], run: RunDir, problems: list[str]) -> tuple[Prompt, ...]:
    """Return the prompts a config names, whether it lists them or keys them by name."""
    listed = section(config, "prompts").get("prompts")
    if isinstance(listed, Mapping):
        listed = [
            {"name": name, **entry} for name, entry in listed.items() if isinstance(entry, Mapping)
        ]
    prompts = []
    for entry in listed if isinstance(listed, list) else []:
        prompt = _prompt(entry)
        if prompt is None:
            problems.append(f"{run.config_path}: a prompt that cannot be shown: {entry!r:.200}")
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


def _seeds(config: Mapping[str, Any]) -> tuple[int, ...]:
    seeds = section(config, "render").get("seeds")
    return tuple(seed for seed in seeds if isinstance(seed, int)) if isinstance(seeds, list) else ()
