"""Measure a run's images where numbers are missing or of other files, and store the rows.

A row's `key` is a hash of everything it depends on: the metric and its settings, the image's
bytes, those of the images beside it, and the prompt. Equal keys are not measured again. Its
`metric_key` is a hash of the metric alone: numbers of different ones do not compare.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from optbench.errors import DamagedFileError, call_third_party
from optbench.metrics.build import build_metrics
from optbench.metrics.contract import Metric, Picture
from optbench.metrics.copies import forget_bits
from optbench.metrics.pixels import forget_pixels
from optbench.metrics.run_pictures import RunPictures, find_pictures
from optbench.records import Cell
from optbench.schema import MetricOptions
from optbench.storage import files, hashing, rundir
from optbench.storage.files import Row
from optbench.storage.rundir import RunDir, read_config
from optbench.storage.source_code import source_fingerprint

_KEY_LENGTH = 10
_NUM_DIGITS = 5  # significant ones of a value


@dataclass(slots=True, kw_only=True)
class Tally:
    """What measuring one or more runs came to."""

    num_measured: int = 0  # pictures times metrics
    num_kept: int = 0
    notices: list[str] = field(default_factory=list)
    unwritten: list[str] = field(default_factory=list)  # runs that a disk kept from being measured

    def note(self, text: str) -> None:
        """Keep a sentence, once."""
        if text not in self.notices:
            self.notices.append(text)


@dataclass(frozen=True, slots=True)
class _Work:
    """One run's measuring under way."""

    run: RunDir
    pictures: RunPictures
    hashes: Mapping[Path, str]
    cache_dir: Path | None  # None: the run's is not here
    known: Mapping[tuple[Cell, str], list[Row]]  # by place and key


def measure_run(run: RunDir, metrics: Mapping[str, Metric], tally: Tally) -> None:
    """Bring a run's metrics.jsonl up to its pictures; a metric that fails is noted, no more.

    Rows of metrics that are not asked for now stay as they are. Every row has the value of the
    base's picture at the same place (`base_value`) and the training pictures' own mean
    (`training_value`), where there are such.

    Raises:
        DamagedFileError: If the run's config cannot be read.
    """
    config = read_config(run)
    pictures = find_pictures(run, config)
    if not pictures.cells:
        return
    forget_pixels()
    forget_bits()
    named_cache = Path(str(config.get("cache_dir", "")))
    cache_dir = named_cache if named_cache.is_dir() else None
    image_files = [picture.path for picture in (*pictures.cells.values(), *pictures.training)]
    path = run.path / rundir.METRICS_NAME
    old = _old_rows(path, tally)
    known: dict[tuple[Cell, str], list[Row]] = {}
    for row in old:
        known.setdefault((_cell(row), row["key"]), []).append(row)
    work = _Work(
        run=run,
        pictures=pictures,
        hashes=hashing.file_hashes(image_files, cache_dir=cache_dir),
        cache_dir=cache_dir,
        known=known,
    )
    # Rows of metrics that are not requested now, of images that are still there.
    requested = set(itertools.chain.from_iterable(metric.meanings for metric in metrics.values()))
    rows = [row for row in old if row["metric"] not in requested and _cell(row) in pictures.cells]
    for name, metric in metrics.items():
        measured: list[Row] = []
        if why := call_third_party(partial(_extend, measured, metric, work, tally)):
            tally.note(f"metric {name} gave nothing for {run.name}: {why}")
            measured = [row for row in old if row["metric"] in metric.meanings]
        rows += measured
    rows.sort(key=lambda row: (row["epoch"], *map(str, _spot(row))))
    if rows != old:
        files.write_rows(path, rows)


def metric_identity(metric: Metric, *, cache_dir: Path | None) -> dict[str, Any]:
    """Return what decides a metric's numbers besides the images: its class and settings.

    A file or folder that a setting names counts by its content, wherever it lies, and so does the
    source of a class that comes from no installed package.
    """
    name = f"{type(metric).__module__}.{type(metric).__qualname__}"
    identity: dict[str, Any] = {"class": name}
    for key, value in json.loads(json.dumps(dict(metric.settings), default=str)).items():
        path = Path(value).expanduser() if isinstance(value, str) and value else None
        if path is not None and path.exists():
            below = [path] if path.is_file() else sorted(path.rglob("*"))
            model_files = [file for file in below if file.is_file()]
            value = hashing.files_fingerprint(model_files, cache_dir=cache_dir)
        identity[key] = value
    if (source := source_fingerprint(name)) is not None:
        identity["source"] = source
    return identity


def _extend(rows: list[Row], metric: Metric, work: _Work, tally: Tally) -> None:
    rows += _rows(metric, work, tally)


def _rows(metric: Metric, work: _Work, tally: Tally) -> list[Row]:
    """Return all rows of one metric, measuring what is not known yet."""
    if metric.bases and work.pictures.base not in metric.bases:
        only = f"for {', '.join(f'base={base}' for base in metric.bases)} only"
        tally.note(f"{', '.join(metric.meanings)}: {only}, not for base={work.pictures.base}")
        return []
    identity = metric_identity(metric, cache_dir=work.cache_dir)
    metric_key = hashing.fingerprint(identity)[:_KEY_LENGTH]
    rows: list[Row] = []
    is_new = False
    for cell, picture in work.pictures.cells.items():
        others = work.pictures.beside(cell, metric.reference)
        key = _key(identity, picture, others, work.hashes)
        known = work.known.get((cell, key), ())
        cell_rows = [
            {**row, "metric_key": metric_key} for row in known if row["metric"] in metric.meanings
        ]
        if cell_rows:
            tally.num_kept += 1
        else:
            for name, measured in metric.measure(picture, others).items():
                if math.isfinite(measured.value):
                    row: Row = {
                        "epoch": cell.epoch,
                        "prompt": cell.prompt,
                        "seed": cell.seed,
                        "width": cell.width,
                        "height": cell.height,
                        "metric": name,
                        "value": _rounded(measured.value),
                        "key": key,
                        "metric_key": metric_key,
                    }
                    cell_rows.append(row | ({"detail": measured.detail} if measured.detail else {}))
            tally.num_measured += bool(cell_rows)
            is_new = is_new or bool(cell_rows)
        rows += cell_rows
    if is_new:
        ceilings = _training_values(metric, identity, work)
        floors = {_spot(row): row["value"] for row in rows if row["epoch"] == 0}
        for row in rows:
            row["base_value"] = floors.get(_spot(row))
            row["training_value"] = ceilings.get(row["metric"])
    return rows


def _training_values(
    metric: Metric, identity: Mapping[str, object], work: _Work
) -> Mapping[str, float]:
    """Return what the training pictures themselves have, each against the others: a ceiling."""
    training = work.pictures.training
    if metric.reference in ("base", "previous") or len(training) < 2:
        return {}
    key = _key(identity, training[0], training[1:], work.hashes)
    if key not in _CEILINGS:
        values: dict[str, list[float]] = {}
        for picture in training:
            others = [other for other in training if other is not picture]
            for name, measured in metric.measure(picture, others).items():
                values.setdefault(name, []).append(measured.value)
        _CEILINGS[key] = {name: _rounded(statistics.fmean(all_)) for name, all_ in values.items()}
    return _CEILINGS[key]


_CEILINGS: dict[str, dict[str, float]] = {}  # every run of a sweep has the same ones


def _key(
    identity: Mapping[str, object],
    picture: Picture,
    others: Sequence[Picture],
    hashes: Mapping[Path, str],
) -> str:
    content = {
        "metric": identity,
        "picture": hashes[picture.path],
        "text": picture.text,
        "others": [[hashes[other.path], other.text] for other in others],
    }
    return hashing.fingerprint(content)[:_KEY_LENGTH]


def _rounded(value: float) -> float:
    return float(f"{value:.{_NUM_DIGITS}g}")


def _spot(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("metric", "prompt", "seed", "width", "height"))


def _cell(row: Row) -> Cell:
    return Cell(**{name: row[name] for name in ("prompt", "width", "height", "seed", "epoch")})


def _old_rows(path: Path, tally: Tally) -> list[Row]:
    """Return what was measured before; a damaged file counts as none, it is made again."""
    try:
        rows = files.read_rows(path)
        for row in rows:
            _ = (_cell(row), _spot(row), row["key"], row["value"])
    except (DamagedFileError, KeyError, TypeError) as error:
        tally.note(f"measured anew, for what was there could not be read: {error}")
        return []
    return rows


def _measure_or_note(run_dir: Path, metrics: Mapping[str, Metric], tally: Tally) -> None:
    try:
        measure_run(RunDir(run_dir), metrics, tally)
    except OSError as error:
        tally.unwritten.append(run_dir.name)
        tally.note(f"{run_dir.name}: no numbers of its images: {type(error).__name__}: {error}")


def measure_runs(
    run_dirs: Sequence[Path],
    options: MetricOptions,
    *,
    show: Callable[[str], None] = lambda part: None,
) -> Tally:
    """Bring every run's metrics.jsonl up to its pictures and return what that came to.

    Runs that are being trained right now are left for later. What cannot be measured is a notice.
    `show` is called with what is measured next, for the person who waits.

    Raises:
        ConfigError: If the metrics cannot be built.
    """
    tally = Tally()
    if not options.enabled:
        return tally
    metrics = build_metrics(options)
    for number, run_dir in enumerate(run_dirs, start=1):
        show(f"measuring the images of run {number} of {len(run_dirs)}: {run_dir.name}")
        if rundir.read_status(run_dir).status == "running":
            tally.note(f"{run_dir.name} is being trained; its pictures can be measured afterwards")
            continue
        if not RunDir(run_dir).config_path.is_file():
            tally.note(f"{run_dir.name} has no config.yaml: its images cannot be measured")
            continue
        if why := call_third_party(partial(_measure_or_note, run_dir, metrics, tally)):
            tally.note(f"{run_dir.name}: no numbers of its images: {why}")
    return tally
