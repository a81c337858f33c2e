"""Many run folders -> a few tidy frames. Reads only; what cannot be read is said, never fatal."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from optbench.analysis.comparisons import MEASURED, find_pairs, kind_of
from optbench.analysis.effects import with_intervals
from optbench.analysis.outcomes import with_validation
from optbench.analysis.score_files import SCORE_COLUMNS, VOTE_COLUMNS, Scores, read_scores
from optbench.errors import DamagedFileError, DatasetError, Problem
from optbench.storage import rundir
from optbench.storage.nested import flatten
from optbench.storage.rundir import RunDir
from optbench.storage.rundir import read_config as read_config

NUM_WARMUP_STEPS = 3  # allocator and caches settle; they count in seconds_total only
_LARGEST = 2.0**62  # a file's integers may have any length, a column's have not
_PHASES = ("seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer")
_STATE = ("optimizer_state_bytes", "optimizer_state_8bit_share")
_PAUSES = ("seconds_validate", "seconds_render", "seconds_save")
_IMAGE_COLUMNS = ("sweep", "run", "epoch", "prompt", "width", "height", "seed", "path")
_METRIC_COLUMNS = (*_IMAGE_COLUMNS[:-1], "metric", "value", "base_value", "training_value")
_EPOCH_FOLDER = re.compile(r"epoch-(?P<epoch>\d+)")
_IMAGE_NAME = re.compile(r"(?P<prompt>.+)-(?P<width>\d+)x(?P<height>\d+)-s(?P<seed>\d+)\.png")


@dataclass(frozen=True, slots=True, kw_only=True)
class Frames:
    """Everything known about some runs, as pandas frames, and what could not be read."""

    runs: pd.DataFrame  # one row per run: settings, status, costs, final loss
    epochs: pd.DataFrame
    steps: pd.DataFrame
    layers: pd.DataFrame  # one row per layer and epoch
    validation: pd.DataFrame
    images: pd.DataFrame  # paths relative to `root`
    metrics: pd.DataFrame  # one row per picture and metric
    pairs: pd.DataFrame  # runs that differ in exactly one setting
    scores: pd.DataFrame  # what people said of pictures and runs
    votes: pd.DataFrame  # which of two pictures they preferred
    problems: tuple[str, ...]
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """One run folder as read."""

    run: RunDir
    row: dict[str, Any]
    epochs: list[rundir.Row]
    steps: list[rundir.Row]
    layers: list[rundir.Row]
    validation: list[rundir.Row]
    metrics: list[rundir.Row]
    problems: list[str]


def load(path: str | Path) -> Frames:
    """Return the frames of one run, of a sweep's folder, or of all sweeps under a folder.

    Raises:
        DatasetError: If there is no such folder, or no run in it.
    """
    root = Path(path)
    run_dirs = [found for sweep in sweep_dirs(root) for found in find_runs(sweep)]
    if not run_dirs and is_run(root):
        run_dirs = [root]
    if not run_dirs:
        raise no_runs(root)
    return load_runs(root, run_dirs)


def load_runs(root: Path, run_dirs: Sequence[Path]) -> Frames:
    """Return the frames of these run folders, which may be none; paths are relative to `root`."""
    read = [_read_run(RunDir(path)) for path in run_dirs]
    validation = _records(read, "validation")
    runs = with_validation(_runs_frame(read), validation)
    epochs = _records(read, "epochs")
    if "seconds_train" in epochs:
        seconds = epochs["seconds_train"].map(_number).astype(float)
        by_run = seconds.groupby([epochs["sweep"], epochs["run"]], sort=False)
        epochs["seconds_train_cumulative"] = by_run.cumsum()
    said: list[Scores] = [read_scores(path, names) for path, names in _by_sweep(run_dirs).items()]
    images = [row for one in read for row in image_rows(one.run, root)]
    return Frames(
        runs=runs,
        epochs=epochs,
        steps=_records(read, "steps"),
        layers=_records(read, "layers"),
        validation=validation,
        images=pd.DataFrame(images, columns=list(_IMAGE_COLUMNS)),
        metrics=_records(read, "metrics", columns=_METRIC_COLUMNS),
        pairs=with_intervals(find_pairs(runs), runs, validation),
        scores=pd.DataFrame([row for one in said for row in one.scores], columns=[*SCORE_COLUMNS]),
        votes=pd.DataFrame([row for one in said for row in one.votes], columns=[*VOTE_COLUMNS]),
        problems=tuple(
            problem for group in (read, said) for one in group for problem in one.problems
        ),
        root=root,
    )


def _by_sweep(run_dirs: Sequence[Path]) -> dict[Path, list[str]]:
    found: dict[Path, list[str]] = {}
    for path in run_dirs:
        found.setdefault(path.parent, []).append(path.name)
    return found


def is_run(path: Path) -> bool:
    """Return whether a folder is a run's, finished or not."""
    run = RunDir(path)
    return run.status_path.is_file() or run.config_path.is_file()


def find_runs(sweep_dir: Path) -> list[Path]:
    """Return the run folders directly inside a sweep's folder, by name."""
    if not sweep_dir.is_dir():
        return []
    return sorted(path for path in sweep_dir.iterdir() if path.is_dir() and is_run(path))


def sweep_dirs(root: Path) -> list[Path]:
    """Return the folder itself if it holds runs, else those folders in it that do."""
    if find_runs(root):
        return [root]
    if not root.is_dir() or is_run(root):
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and find_runs(path))


def no_runs(root: Path) -> DatasetError:
    """Return the error for a folder without runs."""
    found = "a folder without runs" if root.is_dir() else "no such folder"
    return DatasetError(
        Problem(
            str(root),
            found,
            "a sweep's folder with runs in it, or a folder of sweeps",
            "give the folder that `python -m optbench` made, for instance runs/single",
        )
    )


def _read_run(run: RunDir) -> _Read:
    problems: list[str] = []
    config: dict[str, Any] = {}
    try:
        config = read_config(run)
    except DamagedFileError as error:
        problems.append(str(error))
    epochs = _read_records(run.epochs_path, problems)
    steps = _read_records(run.steps_path, problems)
    status = rundir.read_status(run.path)
    reason = status.reason or ("" if config or not problems else problems[0])
    # What we found out comes last: no key of a file may speak for it.
    row: dict[str, Any] = {
        **settings(config),
        "sweep": run.path.parent.name,
        "run": run.name,
        "kind": kind_of(config),
        "status": status.status,
        "reason": reason,
        **_measured(run, epochs, steps),
    }
    return _Read(
        run=run,
        row=row,
        epochs=epochs,
        steps=steps,
        layers=_read_records(run.layers_path, problems),
        validation=_read_records(run.validation_path, problems),
        metrics=_read_records(run.path / rundir.METRICS_NAME, problems),
        problems=problems,
    )


def _read_records(path: Path, problems: list[str]) -> list[rundir.Row]:
    try:
        return rundir.read_rows(path)
    except (DamagedFileError, OSError) as error:
        problems.append(str(error))
        return []


def _measured(
    run: RunDir, epochs: Sequence[rundir.Row], steps: Sequence[rundir.Row]
) -> dict[str, Any]:
    settled = steps[NUM_WARMUP_STEPS:] or steps
    phases = {phase: _median(row.get(phase) for row in settled) for phase in _PHASES}
    sums = {name: _total(row.get(name) for row in epochs) for name in ("seconds_train", *_PAUSES)}
    peaks = _numbers(row.get("peak_memory_bytes") for row in epochs)
    loads = _numbers(row.get("load_average") for row in epochs)
    return {
        "num_epochs": len(epochs),
        "num_steps": len(steps),
        "seconds_total": sums.pop("seconds_train"),
        "seconds_per_step": _median(_sum_of_phases(row) for row in settled),
        **phases,
        **sums,
        "final_loss": _number(epochs[-1].get("mean_loss")) if epochs else None,
        "update_ratio": _median(_mean_over_groups(row, "update_ratio/") for row in settled),
        "d_escape_step": _escape_step(steps),
        "load_average": max(loads) if loads else None,
        "peak_memory_bytes": max(peaks) if peaks else None,
        **{name: _number(epochs[-1].get(name)) if epochs else None for name in _STATE},
        "lora_bytes": _lora_bytes(run),
        "changed": _changed(run),
    }


def _mean_over_groups(row: rundir.Row, prefix: str) -> float | None:
    """Return the mean of a number that a step has for each group, None where it has none."""
    known = _numbers(value for name, value in row.items() if name.startswith(prefix))
    return sum(known) / len(known) if known else None


def _escape_step(steps: Sequence[rundir.Row]) -> int | None:
    """Return the step from which d had reached half of its largest value, in every group.

    Until then a class that estimates its own step size was still looking for it. None for other
    classes, and where d has not even doubled since the first step.
    """
    found = []
    names = {name for row in steps for name in row if name.startswith("d/")}
    for name in names:
        values = [(row.get("step"), _number(row.get(name))) for row in steps]
        known = [(step, d) for step, d in values if isinstance(step, int) and d is not None]
        largest = max((d for _, d in known), default=0.0)
        if not known or known[0][1] > largest / 2:
            return None
        found.append(next(step for step, d in known if d >= largest / 2))
    return max(found, default=None)


def _sum_of_phases(row: rundir.Row) -> float | None:
    known = _numbers(row.get(phase) for phase in _PHASES)
    return sum(known) if known else None


def _numbers(values: Iterable[Any]) -> list[float]:
    return [known for value in values if (known := _number(value)) is not None]


def _number(value: Any) -> float | None:  # what a column of numbers can hold
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) <= _LARGEST else None


def _median(values: Iterable[Any]) -> float | None:
    known = sorted(_numbers(values))
    if not known:
        return None
    middle = len(known) // 2
    return known[middle] if len(known) % 2 else (known[middle - 1] + known[middle]) / 2


def _total(values: Iterable[Any]) -> float | None:
    known = _numbers(values)
    return sum(known) if known else None


def _changed(run: RunDir) -> str | None:
    """Return the settings that the run says are not as they ship, with blanks between them."""
    try:
        said = rundir.read_json(run.provenance_path).get("changed")
    except DamagedFileError:
        return None
    is_list = isinstance(said, list) and all(isinstance(key, str) for key in said)
    return " ".join(said or ()) if is_list else None


def _lora_bytes(run: RunDir) -> int | None:
    """Return the size of the run's LoRA file: the finished one, else the last epoch's."""
    finished = run.lora_path(None)
    if finished.is_file():
        return finished.stat().st_size
    saved = [
        path for path in run.lora_dir.glob("*.safetensors") if path.name.startswith(f"{run.name}-")
    ]
    return max(saved).stat().st_size if saved else None


def _runs_frame(read: Sequence[_Read]) -> pd.DataFrame:
    """Return one row per run: what was measured first, then every setting."""
    frame = pd.DataFrame([one.row for one in read])
    missing = [column for column in MEASURED if column not in frame]
    frame = frame.assign(**dict.fromkeys(missing))
    others = [column for column in frame.columns if column not in MEASURED]
    return _with_numbers(frame[[*MEASURED, *others]])


def _records(
    read: Sequence[_Read], name: str, *, columns: Sequence[str] = ("sweep", "run", "epoch")
) -> pd.DataFrame:
    rows = [
        place | row | place
        for one in read
        for place in [{"sweep": one.row["sweep"], "run": one.run.name}]
        for row in getattr(one, name)
    ]
    frame = pd.DataFrame(rows, columns=None if rows else list(columns))
    return _with_numbers(frame.assign(**dict.fromkeys(set(columns) - set(frame.columns))))


def _with_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with columns that hold nothing but null as numbers that are missing."""
    empty = [column for column in frame.columns if frame[column].isna().all() and len(frame)]
    return frame.astype(dict.fromkeys(empty, float))


def image_rows(run: RunDir, root: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for every picture of a run; its path is relative to `root`."""
    for path in sorted(run.path.glob("images/epoch-*/*.png")):
        folder, name = _EPOCH_FOLDER.fullmatch(path.parent.name), _IMAGE_NAME.fullmatch(path.name)
        if folder is None or name is None:
            continue  # not ours
        yield {
            "sweep": run.path.parent.name,
            "run": run.name,
            "epoch": int(folder["epoch"]),
            "prompt": name["prompt"],
            "width": int(name["width"]),
            "height": int(name["height"]),
            "seed": int(name["seed"]),
            "path": Path(os.path.relpath(path, root)).as_posix(),
        }


# Places on this machine, texts about a recipe, what only names the sweep, and who looks on.
_NOT_SETTINGS = ("runs_dir", "cache_dir", "sweep_name", "metric", "tracker")
_TEXT_SETTINGS = ("optimizer.package", "optimizer.paper", "optimizer.note", "prompts.prompts")


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's settings by override name; a group's own key holds its option's name."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in _NOT_SETTINGS:
            continue
        if isinstance(value, Mapping):
            rest = dict(value)
            if "name" in rest:
                flat[str(key)] = rest.pop("name")
            flat |= flatten(rest, f"{key}.")
        else:
            flat[str(key)] = value
    home = str(Path.home())
    texts = {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in flat.items()
        if not key.startswith(_TEXT_SETTINGS)
    }
    return {
        key: value.replace(home, "~", 1) if isinstance(value, str) else value
        for key, value in texts.items()
    }
