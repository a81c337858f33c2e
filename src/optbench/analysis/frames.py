"""Read run folders into a few tidy pandas frames; damaged files are named and never fatal."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from optbench.analysis.comparisons import (
    MEASURED,
    find_pairs,
    kind_of,
    labels,
    settings_of,
)
from optbench.analysis.effects import with_intervals
from optbench.analysis.outcomes import with_validation
from optbench.analysis.raced import TUNE, race_phases
from optbench.analysis.rates import rate_source
from optbench.analysis.score_files import SCORE_COLUMNS, VOTE_COLUMNS, read_scores
from optbench.errors import DamagedFileError, DatasetError, Problem
from optbench.storage import files, rundir
from optbench.storage.hashing import fingerprint
from optbench.storage.nested import flatten, map_values
from optbench.storage.provenance import (
    identity_facts,
    sessions_of,
    training_sessions,
    without_home,
)
from optbench.storage.rundir import RunDir

if TYPE_CHECKING:
    from optbench.analysis.image_grid import ImageGrid

NUM_WARMUP_STEPS = 3  # allocator and caches settle; they count in seconds_total only
_NAME_DIGITS = 8  # of a run's fingerprint, at the end of its name
_LARGEST = 2.0**62  # a file's integers may have any length, a column's have not
_PHASES = ("seconds_data", "seconds_forward", "seconds_backward", "seconds_optimizer")
_STATE = ("optimizer_state_bytes", "optimizer_state_8bit_share")
_PAUSES = ("seconds_validate", "seconds_render", "seconds_save")
_IMAGE_COLUMNS = ("sweep", "run", "epoch", "prompt", "width", "height", "seed", "path")
_METRIC_COLUMNS = (
    *_IMAGE_COLUMNS[:-1],
    "metric",
    "value",
    "base_value",
    "training_value",
    "metric_key",
)
_MACHINE_COLUMNS = ("sweep", "run", "num_cpus", "has_gpu", "was_busy")
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
    metrics: pd.DataFrame  # one row per image and metric
    pairs: pd.DataFrame  # runs that differ in exactly one setting
    scores: pd.DataFrame  # what people said of images and runs
    votes: pd.DataFrame  # which of two images they preferred
    machines: pd.DataFrame  # one row per run: num_cpus, has_gpu, and whether it was_busy besides
    problems: tuple[str, ...]
    root: Path

    def by_sweep(self) -> dict[str, Frames]:
        """Return the same for every sweep alone, by its name."""
        tables = {
            field.name: frame
            for field in dataclasses.fields(self)
            if isinstance(frame := getattr(self, field.name), pd.DataFrame)
        }
        return {
            str(sweep): dataclasses.replace(
                self,
                **{name: frame[frame["sweep"] == sweep] for name, frame in tables.items()},
            )
            for sweep in self.runs["sweep"].unique()
        }

    def label(self, run: str) -> str:
        """Return a run's name in words, as the report has it: its recipe and what else differs.

        Raises:
            KeyError: If there is no such run.
        """
        return next(label for (_, name), label in labels(self.runs).items() if name == run)

    def by_setting(self) -> dict[str, Frames]:
        """Return the same for every setting alone, by its label: its runs differ in the seed.

        Pairs of runs and votes between them are of no setting alone, and left out.
        """
        from optbench.analysis.over_seeds import setting_labels

        runs_of: dict[str, set[tuple[str, str]]] = {}
        for run, label in setting_labels(self.runs).items():
            runs_of.setdefault(label, set()).add(run)
        return {label: self._of_runs(runs) for label, runs in runs_of.items()}

    def over_seeds(
        self,
        column: str,
        values: pd.DataFrame | None = None,
        *,
        x: str = "step",
        is_smoothed: bool = False,
    ) -> pd.DataFrame:
        """Return a column as mean, lowest and highest over the seeds of each setting, at every x.

        Columns: setting, the x, mean, low, high, num_seeds, is_stopped (a run that ended early, and
        is in no mean). Empty where nothing was recorded.

        Args:
            column: What is averaged, for instance `loss`.
            values: The frame that has it; None: `steps`, or `epochs` where x is the epoch.
            x: The column that it is a curve over.
            is_smoothed: Whether each run's values are smoothed first, as in the report.
        """
        from optbench.analysis.over_seeds import over_seeds

        if values is None:
            values = self.epochs if x == "epoch" else self.steps
        return over_seeds(values, self.runs, column, x=x, is_smoothed=is_smoothed)

    def grid(
        self,
        *,
        rows: Literal["run", "setting", "epoch", "prompt", "seed"] = "setting",
        columns: Literal["run", "setting", "epoch", "prompt", "seed"] = "epoch",
        prompt: str | None = None,
        seed: int | None = None,
        epoch: int | None = None,
        height_px: int = 160,
    ) -> ImageGrid:
        """Return rendered images as one table, which a notebook shows by itself.

        What is neither rows nor columns is fixed: the first prompt and image seed, the last epoch.

        Args:
            rows: What a row is. A setting shows its first run.
            columns: What a column is.
            prompt: Its name.
            seed: An image seed, not a run's.
            epoch: 0 is the base model alone.
            height_px: Of one image.

        Raises:
            DatasetError: If no image fits, or one cannot be read.
        """
        from optbench.analysis.image_grid import image_grid
        from optbench.analysis.over_seeds import setting_labels

        of_settings = setting_labels(self.runs)
        images = self.images
        if rows == "setting" or columns == "setting":
            keys = list(zip(images["sweep"].astype(str), images["run"].astype(str), strict=True))
            images = images.assign(setting=[of_settings.get(key, "") for key in keys])
            images = images[images["setting"] != ""]
        fixed = {"prompt": prompt, "seed": seed, "epoch": epoch}
        for name, value in fixed.items():
            known = sorted(images[name].unique())
            if value is None and name not in (rows, columns) and known:
                value = known[-1] if name == "epoch" else known[0]
            if value is not None:
                images = images[images[name] == value]
        if images.empty:
            raise DatasetError(
                Problem(
                    without_home(str(self.root)),
                    "no image that fits",
                    "rendered images",
                    "look at frames.images: it lists every run, epoch, prompt and image seed",
                )
            )
        names = labels(self.runs)

        def label(axis: str, sweep: str, value: object) -> str:
            if axis == "run":
                return names[sweep, str(value)]
            if axis == "epoch":
                return f"epoch {value}" if value else "base, no LoRA"
            return f"seed {value}" if axis == "seed" else str(value)

        return image_grid(
            images,
            self.root,
            rows=rows,
            columns=columns,
            label=label,
            order=list(of_settings),
            height_px=height_px,
        )

    def _of_runs(self, runs: Collection[tuple[str, str]]) -> Frames:
        def of(frame: pd.DataFrame) -> pd.DataFrame:
            if not {"sweep", "run"} <= set(frame.columns):
                return frame
            keys = zip(frame["sweep"].astype(str), frame["run"].astype(str), strict=True)
            return frame[pd.Series([key in runs for key in keys], index=frame.index, dtype=bool)]

        return dataclasses.replace(
            self,
            runs=of(self.runs),
            epochs=of(self.epochs),
            steps=of(self.steps),
            layers=of(self.layers),
            validation=of(self.validation),
            images=of(self.images),
            metrics=of(self.metrics),
            # Runs of one setting differ in nothing but the seed: there are no pairs.
            pairs=self.pairs.iloc[:0],
            scores=of(self.scores),
            votes=self.votes.iloc[:0],
            machines=of(self.machines),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _RunFolder:
    """One run folder as read."""

    run: RunDir
    row: dict[str, Any]
    epochs: list[files.Row]
    steps: list[files.Row]
    layers: list[files.Row]
    validation: list[files.Row]
    metrics: list[files.Row]
    machine: dict[str, Any]
    problems: list[str]


def load(path: str | Path) -> Frames:
    """Return the frames of one run, of a sweep's folder, or of all sweeps under a folder.

    Raises:
        DatasetError: If there is no such folder, or no run in it.
    """
    root = Path(path)
    run_dirs = [run_dir for sweep in sweep_dirs(root) for run_dir in find_runs(sweep)]
    if not run_dirs and is_run(root):
        run_dirs = [root]
    if not run_dirs:
        raise no_runs(root)
    return load_runs(root, run_dirs)


def load_runs(root: Path, run_dirs: Sequence[Path]) -> Frames:
    """Return the frames of these run folders, which may be none; paths are relative to `root`."""
    folders, copies = _without_copies([_read_run(RunDir(path)) for path in run_dirs])
    validation = _records(folders, "validation")
    phases = {
        sweep_dir: race_phases(sweep_dir) for sweep_dir in {f.run.path.parent for f in folders}
    }
    for folder in folders:
        folder.row["race_phase"] = phases[folder.run.path.parent].get(folder.run.name)
    runs = pd.DataFrame([folder.row for folder in folders])
    runs = runs.assign(**dict.fromkeys(name for name in MEASURED if name not in runs))
    # What was measured comes first, then every setting.
    runs = with_validation(_with_numbers(runs[[*MEASURED, *settings_of(runs)]]), validation)
    epochs = _records(folders, "epochs")
    if "seconds_train" in epochs:
        seconds = epochs["seconds_train"].map(_number).astype(float)
        by_run = seconds.groupby([epochs["sweep"], epochs["run"]], sort=False)
        epochs["seconds_train_cumulative"] = by_run.cumsum()
    image_keys: dict[Path, dict[str, str | None]] = {}
    for folder in folders:
        keys = image_keys.setdefault(folder.run.path.parent, {})
        keys[folder.run.name] = folder.row["image_key"]
    ratings = [read_scores(path, keys) for path, keys in image_keys.items()]
    images = [row for folder in folders for row in image_rows(folder.run, root)]
    machines = [folder.machine for folder in folders]
    return Frames(
        runs=runs,
        epochs=epochs,
        steps=_records(folders, "steps"),
        layers=_records(folders, "layers"),
        validation=validation,
        images=pd.DataFrame(images, columns=list(_IMAGE_COLUMNS)),
        metrics=_records(folders, "metrics", columns=_METRIC_COLUMNS),
        pairs=with_intervals(find_pairs(runs[runs["race_phase"] != TUNE]), runs, validation),
        scores=pd.DataFrame(
            [row for file in ratings for row in file.scores], columns=[*SCORE_COLUMNS]
        ),
        votes=pd.DataFrame(
            [row for file in ratings for row in file.votes], columns=[*VOTE_COLUMNS]
        ),
        machines=pd.DataFrame(machines, columns=list(_MACHINE_COLUMNS)),
        problems=(
            *copies,
            *(without_home(problem) for folder in folders for problem in folder.problems),
            *(problem for file in ratings for problem in file.problems),
        ),
        root=root,
    )


def _without_copies(folders: Sequence[_RunFolder]) -> tuple[list[_RunFolder], list[str]]:
    """Return the folders less those that are copies of others beside them, and a sentence for each.

    A run is counted once, or a backup would pass for another seed and make the noise look small.
    The original is the one whose name ends in the fingerprint's first digits.
    """
    originals: dict[tuple[Path, str], _RunFolder] = {}
    copies: list[_RunFolder] = []

    def is_named_so(folder: _RunFolder) -> bool:
        fingerprint = folder.row["weights_fingerprint"]
        return folder.run.name.endswith(f"-{fingerprint[:_NAME_DIGITS]}")

    for folder in folders:
        fingerprint = folder.row["weights_fingerprint"]
        if fingerprint is None:
            continue
        place = folder.run.path.parent, fingerprint
        original = originals.setdefault(place, folder)
        if original is not folder:
            copies.append(original if is_named_so(folder) else folder)
            originals[place] = folder if is_named_so(folder) else original
    sentences = [
        f"{copy.run.name} is a copy of {original.run.name}, which counts once; move it out of the "
        "folder"
        for copy in copies
        for original in [originals[copy.run.path.parent, copy.row["weights_fingerprint"]]]
    ]
    copied = {id(copy) for copy in copies}
    return [folder for folder in folders if id(folder) not in copied], sentences


def is_run(path: Path) -> bool:
    """Return whether a folder is a run's, finished or not."""
    run = RunDir(path)
    return run.status_path.is_file() or run.config_path.is_file()


def find_runs(sweep_dir: Path) -> list[Path]:
    """Return the run folders directly inside a sweep's folder, by name.

    Raises:
        DatasetError: If one is a symbolic link, by which the report would write somewhere else.
    """
    run_dirs = _run_dirs(sweep_dir)
    if links := [path for path in run_dirs if path.is_symlink()]:
        raise DatasetError(*map(rundir.linked_run, links))
    return run_dirs


def _run_dirs(sweep_dir: Path) -> list[Path]:
    if not sweep_dir.is_dir():
        return []
    return sorted(path for path in sweep_dir.iterdir() if path.is_dir() and is_run(path))


def sweep_dirs(root: Path) -> list[Path]:
    """Return the folder itself if it holds runs, else those folders in it that do."""
    if _run_dirs(root):
        return [root]
    if not root.is_dir() or is_run(root):
        return []
    return sorted(path for path in root.iterdir() if path.is_dir() and _run_dirs(path))


def runs_in(folder: Path) -> list[Path]:
    """Return the folder itself if it is a run's, else the runs of its sweeps.

    Raises:
        DatasetError: If there are none.
    """
    if is_run(folder):
        return [folder]
    runs = [run_dir for sweep_dir in sweep_dirs(folder) for run_dir in find_runs(sweep_dir)]
    if not runs:
        raise no_runs(folder)
    return runs


def no_runs(root: Path) -> DatasetError:
    """Return the error for a folder without runs."""
    return DatasetError(
        Problem(
            str(root),
            "a folder without runs" if root.is_dir() else "no such folder",
            "a sweep's folder with runs in it, or a folder of sweeps",
            "give the folder that a training made, for instance runs/single",
        )
    )


def _read_run(run: RunDir) -> _RunFolder:
    problems: list[str] = []
    config: dict[str, Any] = {}
    try:
        config = rundir.read_config(run)
    except DamagedFileError as error:
        problems.append(str(error))
    provenance: dict[str, Any] = {}
    try:
        provenance = files.read_json(run.provenance_path)
    except DamagedFileError as error:
        if run.provenance_path.is_file():
            problems.append(str(error))
    sessions = training_sessions(provenance) or sessions_of(provenance)
    machine = sessions[-1] if sessions else {}
    metrics = _read_records(run.path / rundir.METRICS_NAME, problems)
    epochs = _read_records(run.epochs_path, problems)
    steps = _read_records(run.steps_path, problems)
    status = rundir.read_status(run.path)
    reason = status.reason or ("" if config or not problems else problems[0])
    changed = provenance.get("changed")
    is_list = isinstance(changed, list) and all(isinstance(key, str) for key in changed)
    # What we found out comes last: no key of a file may speak for it.
    row: dict[str, Any] = {
        **settings(config),
        "sweep": run.path.parent.name,
        "run": run.name,
        "kind": kind_of(config),
        "status": status.status,
        "reason": without_home(reason),
        **_measured(run, epochs, steps),
        "changed": " ".join(changed or ()) if is_list else None,
        **identity_facts(provenance),
        "rate_source": rate_source(
            config, changed if isinstance(changed, list) and is_list else ()
        ),
        "validation_key": _stored_key(run.validation_key_path),
        "image_key": _stored_key(run.image_key_path),
        "metric_key": _metric_key(metrics),
        "started": _text(sessions[0].get("time")) if sessions else None,
    }
    load, num_cpus = row["load_average"], machine.get("num_cpus")
    return _RunFolder(
        run=run,
        row=row,
        epochs=epochs,
        steps=steps,
        layers=_read_records(run.layers_path, problems),
        validation=_read_records(run.validation_path, problems),
        metrics=metrics,
        machine={
            "sweep": row["sweep"],
            "run": run.name,
            "num_cpus": num_cpus if isinstance(num_cpus, int) else None,
            "has_gpu": bool(machine.get("gpus")),
            # More wanted to compute than there are cores: its seconds say little. The run itself
            # and its system need a little more than the cores it has.
            "was_busy": bool(load and isinstance(num_cpus, int) and load > num_cpus + 0.5),
        },
        problems=problems,
    )


def _stored_key(path: Path) -> str | None:
    """Return the key that says what a folder's losses or images were made with, if any does."""
    try:
        key = files.read_json(path).get("key")
    except DamagedFileError:
        return None
    return _text(key)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _metric_key(rows: Sequence[files.Row]) -> str | None:
    """Return a hash of what every number of a run's images was measured with; None for none."""
    keys = {str(row.get("metric")): row.get("metric_key") for row in rows}
    known = {metric: key for metric, key in keys.items() if isinstance(key, str)}
    return fingerprint(known) if known else None


def _read_records(path: Path, problems: list[str]) -> list[files.Row]:
    try:
        return files.read_rows(path)
    except (DamagedFileError, OSError) as error:
        problems.append(str(error))
        return []


def _measured(
    run: RunDir, epochs: Sequence[files.Row], steps: Sequence[files.Row]
) -> dict[str, Any]:
    settled = steps[NUM_WARMUP_STEPS:] or steps
    step_seconds = [sum(known) for row in settled if (known := _numbers(row, _PHASES))]
    update_ratios = [
        sum(known) / len(known)
        for row in settled
        if (known := _numbers(row, [name for name in row if name.startswith("update_ratio/")]))
    ]
    of_epochs = {
        name: [number for row in epochs if (number := _number(row.get(name))) is not None]
        for name in ("seconds_train", *_PAUSES, "peak_memory_bytes", "load_average")
    }
    sums = {name: sum(of_epochs[name]) if of_epochs[name] else None for name in _PAUSES}
    last = epochs[-1] if epochs else {}
    return {
        "num_epochs": len(epochs),
        "num_steps": len(steps),
        "seconds_total": sum(of_epochs["seconds_train"]) if of_epochs["seconds_train"] else None,
        "seconds_per_step": _median(step_seconds),
        **{
            phase: _median(
                [number for row in settled if (number := _number(row.get(phase))) is not None]
            )
            for phase in _PHASES
        },
        **sums,
        "final_loss": _number(last.get("mean_loss")),
        "update_ratio": _median(update_ratios),
        "d_escape_step": _escape_step(steps),
        "load_average": max(of_epochs["load_average"], default=None),
        "peak_memory_bytes": max(of_epochs["peak_memory_bytes"], default=None),
        **{name: _number(last.get(name)) for name in _STATE},
        "lora_bytes": _lora_bytes(run),
    }


def _escape_step(steps: Sequence[files.Row]) -> int | None:
    """Return the step from which d had reached half of its largest value, in every group.

    Until then a class that estimates its own step size was still looking for it. None for other
    classes, and where d has not even doubled since the first step.
    """
    escapes = []
    names = {name for row in steps for name in row if name.startswith("d/")}
    for name in names:
        values = [(row.get("step"), _number(row.get(name))) for row in steps]
        estimates = [(step, d) for step, d in values if isinstance(step, int) and d is not None]
        largest = max((d for _, d in estimates), default=0.0)
        if not estimates or estimates[0][1] > largest / 2:
            return None
        escapes.append(next(step for step, d in estimates if d >= largest / 2))
    return max(escapes, default=None)


def _numbers(row: files.Row, names: Iterable[str]) -> list[float]:
    return [number for name in names if (number := _number(row.get(name))) is not None]


def _number(value: Any) -> float | None:  # what a column of numbers can hold
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if is_number and abs(value) <= _LARGEST else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _lora_bytes(run: RunDir) -> int | None:
    """Return the size of the run's LoRA file: the finished one, else the last epoch's."""
    finished = run.lora_path(None)
    if finished.is_file():
        return finished.stat().st_size
    saved = [
        path for path in run.lora_dir.glob("*.safetensors") if path.name.startswith(f"{run.name}-")
    ]
    return max(saved).stat().st_size if saved else None


def _records(
    folders: Sequence[_RunFolder], name: str, *, columns: Sequence[str] = ("sweep", "run", "epoch")
) -> pd.DataFrame:
    rows = [
        # Integers beyond 64 bits: nothing here wrote them, and not every pandas takes them.
        place
        | {key: str(value) if _is_huge(value) else value for key, value in row.items()}
        | place
        for folder in folders
        for place in [{"sweep": folder.row["sweep"], "run": folder.run.name}]
        for row in getattr(folder, name)
    ]
    frame = pd.DataFrame(rows, columns=None if rows else list(columns))
    return _with_numbers(frame.assign(**dict.fromkeys(set(columns) - set(frame.columns))))


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and abs(value) >= 2**63


def _with_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with columns that hold nothing but null as numbers that are missing."""
    empty = [column for column in frame.columns if frame[column].isna().all() and len(frame)]
    return frame.astype(dict.fromkeys(empty, float))


def image_rows(run: RunDir, root: Path) -> Iterator[dict[str, Any]]:
    """Yield a row for every image of a run; its path is relative to `root`.

    Symbolic links are left out: what they lead to would be copied into thumbnails and sheets.
    """
    if (run.path / "images").is_symlink():
        return
    for path in sorted(run.path.glob("images/epoch-*/*.png")):
        if path.is_symlink() or path.parent.is_symlink():
            continue
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
_NOT_SETTINGS = ("runs_dir", "cache_dir", "sweep_name", "metric", "tracker", "report")
_TEXT_SETTINGS = ("optimizer.package", "optimizer.paper", "optimizer.note", "prompts.prompts")
_ONLY_SCALES = ("base.lr_scale",)  # what rates are computed from; the rates are there themselves


def settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config's settings by override name; a group's own key holds its option's name."""
    flat: dict[str, Any] = {}
    for key, value in map_values(config, without_home).items():
        if key in _NOT_SETTINGS:
            continue
        if isinstance(value, Mapping):
            rest = dict(value)
            if "name" in rest:
                flat[str(key)] = rest.pop("name")
            flat |= flatten(rest, f"{key}.")
        else:
            flat[str(key)] = value
    return {
        key: json.dumps(value) if isinstance(value, list) else value
        for key, value in flat.items()
        if not key.startswith((*_TEXT_SETTINGS, *_ONLY_SCALES))
    }
