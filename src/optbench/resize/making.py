"""One asked resize -> its folder: the files, what every layer lost, and how it was made."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from optbench import provenance, rundir
from optbench.records import Status
from optbench.resize.asking import AskedResize
from optbench.resize.rules import SizeRule
from optbench.resize.shrinking import ModuleRecord, Result, write_resized
from optbench.rundir import Row, RunDir

LAYERS_FILE = "layers.jsonl"  # one record per layer and epoch
_NUM_DIGITS = 6


def make_resize(asked: AskedResize) -> Status:
    """Write one resized file, or one per epoch of a run, into the asked folder.

    Returns "done"; anything else is raised, for the caller to write down as the status.
    """
    run, options = RunDir(asked.run_dir), asked.options
    rundir.write_status(run.path, "running")
    rundir.clean_partial_files(run.path)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    for path in (run.epochs_path, run.path / LAYERS_FILE):
        path.unlink(missing_ok=True)
    rundir.write_atomic(run.config_path, config_yaml(asked))
    wanted = Result(
        name=run.name,
        rule=SizeRule(
            method=options.method,
            param=options.param,
            dim=options.new_dim,
            conv_dim=options.new_conv_dim,
            compat=options.compat,
        ),
        precision=options.save_precision,
        weights=options.weights,
    )
    for epoch, sources in asked.sources.items():
        started = time.perf_counter()
        target = run.lora_path(epoch)
        records = write_resized(sources, target, wanted)
        seconds = time.perf_counter() - started
        _keep_records(run, epoch, records, sources, seconds=seconds)
    _link(run.lora_path(max(epoch or 0 for epoch in asked.sources) or None), run.lora_path(None))
    rundir.write_json(run.provenance_path, _provenance(asked))
    rundir.write_status(run.path, "done")
    return "done"


def is_made(asked: AskedResize) -> bool:
    """Return whether every file of an asked resize is there already."""
    run = RunDir(asked.run_dir)
    files = [run.lora_path(epoch) for epoch in (*asked.sources, None)]
    return rundir.read_status(run.path).status == "done" and all(one.is_file() for one in files)


def config_yaml(asked: AskedResize) -> str:
    """Return the settings as YAML, spelled like their overrides."""
    settings = asdict(asked.options)
    settings["source"] = list(settings["source"])
    return OmegaConf.to_yaml(OmegaConf.create(settings))


def whole_energy(records: Sequence[ModuleRecord]) -> tuple[float, float]:
    """Return the retained share of the network's energy, and the least of any layer.

    The energy of a network is sum_layers ||scale * up @ down||_F^2.
    """
    kept = total = 0.0
    for one in records:
        energy = (one.alpha / one.new_dim) ** 2 * math.fsum(s**2 for s in one.singular_values)
        total += energy
        kept += energy * one.retained_fro**2
    return kept / total if total > 0 else 1.0, min(one.retained_fro**2 for one in records)


def _keep_records(
    run: RunDir,
    epoch: int | None,
    records: Sequence[ModuleRecord],
    sources: Sequence[Path],
    *,
    seconds: float,
) -> None:
    retained, least = whole_energy(records)
    row: Row = {
        "epoch": epoch or 1,
        "retained_energy": retained,
        "least_retained_energy": least,
        "lora_bytes": run.lora_path(epoch).stat().st_size,
        "source_bytes": sum(path.stat().st_size for path in sources),
        "mean_dim": math.fsum(one.new_dim for one in records) / len(records),
        "max_dim": max(one.new_dim for one in records),
        "seconds_resize": seconds,
    }
    rundir.append_rows(run.path / LAYERS_FILE, [_layer_row(epoch or 1, one) for one in records])
    rundir.append_rows(run.epochs_path, [row])


def _layer_row(epoch: int, record: ModuleRecord) -> Row:
    values = [float(f"{value:.{_NUM_DIGITS}g}") for value in record.singular_values]
    return {"epoch": epoch, **asdict(record), "singular_values": values}


def _link(source: Path, target: Path) -> None:
    """Give a file its second name; on file systems without links, a copy."""
    if source == target:
        return
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        rundir.write_atomic(target, source.read_bytes())


def _provenance(asked: AskedResize) -> dict[str, Any]:
    extra = {
        "sources": {
            str(path): path.stat().st_size for each in asked.sources.values() for path in each
        },
        "num_threads": torch.get_num_threads(),
    }
    return provenance.collect(packages=["torch", "safetensors"], command=sys.argv, extra=extra)
