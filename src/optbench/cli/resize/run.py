"""One asked resize -> its folder: files, what every layer lost, pictures, losses, provenance."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from optbench.cli.resize.evaluate import (
    LIKENESS_FILE,
    Laboratory,
    has_pictures,
    read_clip_skip,
    read_dims,
    read_layers,
)
from optbench.cli.resize.plan import ORIGINAL, AskedResize
from optbench.config.build import plain_settings
from optbench.errors import DamagedFileError
from optbench.lora.resize.resize import ModuleRecord, Result, write_resized
from optbench.lora.resize.rules import SizeRule
from optbench.lora.resize.svd_cache import Workshop
from optbench.records import Status
from optbench.render import run_images
from optbench.schema import ResizeOptions
from optbench.storage import provenance, rundir
from optbench.storage.files import link_or_copy, write_sealed_text
from optbench.storage.rundir import Row, RunDir, read_config

_NUM_DIGITS = 6
_LOOKS = ("base", "dataset", "prompts", "render", "validate", "clip_skip")
Sources = tuple[Path, ...]


def make_resize(
    asked: AskedResize, laboratory: Laboratory | None, *, workshops: Mapping[Sources, Workshop]
) -> Status:
    """Write one resized file, or one per epoch of a run, into the asked folder, and look at each.

    Without a laboratory there are no pictures and no losses. Returns "done"; anything else is
    raised, for the caller to write down as the status.
    """
    run, options = RunDir(asked.run_dir), asked.options
    _begin(run, options, config_yaml(asked))
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
        workshop = workshops.get(sources, Workshop())
        records = write_resized(sources, run.lora_path(epoch), wanted, workshop=workshop)
        row = _row(run, epoch, records, sources)
        row["seconds_resize"] = time.perf_counter() - started
        layers = [_layer_row(epoch or 1, one) for one in records]
        rundir.append_rows(run.layers_path, layers)
        if laboratory is not None:
            row |= laboratory.examine(
                run,
                read_layers([run.lora_path(epoch)], None),
                epoch=epoch or 1,
                clip_skip=_clip_skip(options, sources),
                original=RunDir(asked.original_dir),
            )
        rundir.append_rows(run.epochs_path, [row])
    link_or_copy(
        run.lora_path(max(epoch or 0 for epoch in asked.sources) or None), run.lora_path(None)
    )
    return _end(run, asked, laboratory)


def make_original(asked: AskedResize, laboratory: Laboratory) -> Status:
    """Give the source a run of its own, with what its resized files are compared to."""
    run, options = RunDir(asked.original_dir), asked.options
    _begin(run, options, original_yaml(asked))
    for epoch, sources in asked.sources.items():
        size = sum(path.stat().st_size for path in sources)
        dims = read_dims(sources)
        row: Row = {
            "epoch": epoch or 1,
            "retained_energy": 1.0,
            "least_retained_energy": 1.0,
            "lora_bytes": size,
            "source_bytes": size,
            "mean_dim": math.fsum(dims) / len(dims),
            "max_dim": max(dims),
        }
        row |= laboratory.examine(
            run,
            read_layers(sources, options.weights),
            epoch=epoch or 1,
            clip_skip=_clip_skip(options, sources),
            original=None,
        )
        rundir.append_rows(run.epochs_path, [row])
    return _end(run, asked, laboratory)


def is_made(asked: AskedResize) -> bool:
    """Return whether every file, picture and loss of an asked resize is there already."""
    run = RunDir(asked.run_dir)
    files = [run.lora_path(epoch) for epoch in (*asked.sources, None)]
    is_there = all(one.is_file() for one in files)
    return is_there and _is_whole(run, asked, config_yaml(asked))


def is_original_made(asked: AskedResize) -> bool:
    """Return whether the source's own pictures and losses are there already."""
    return _is_whole(RunDir(asked.original_dir), asked, original_yaml(asked))


def _is_whole(run: RunDir, asked: AskedResize, config: str) -> bool:
    record = rundir.read_status(run.path)
    if record.status != "done" or not run.config_path.is_file():
        return False
    try:
        stored = read_config(run)
    except DamagedFileError:
        return False
    wanted = OmegaConf.to_container(OmegaConf.create(config))
    assert isinstance(wanted, dict)
    if any(stored.get(key) != wanted[key] for key in _LOOKS):
        return False
    if not record.facts.get("is_examined"):
        # Nothing was asked for, or the base is not the LoRA's: the same as it would be now.
        return True
    return has_pictures(run, asked.options, [epoch or 1 for epoch in asked.sources])


def _begin(run: RunDir, options: ResizeOptions, config: str) -> None:
    rundir.write_status(run.path, "running")
    rundir.clean_partial_files(run.path)
    if options.num_threads is not None:
        torch.set_num_threads(options.num_threads)
    # Made anew together: records of two times never lie beside each other.
    likeness_path = run.path / LIKENESS_FILE
    for path in (run.epochs_path, run.layers_path, run.validation_path, likeness_path):
        path.unlink(missing_ok=True)
    write_sealed_text(run.config_path, config)


def _end(run: RunDir, asked: AskedResize, laboratory: Laboratory | None) -> Status:
    options = asked.options
    if laboratory is not None and options.render.enabled:
        num_epochs = max(epoch or 1 for epoch in asked.sources)
        run_images.draw_run_sheets(run, options.prompts, options.render, num_epochs=num_epochs)
    rundir.write_json(run.provenance_path, _provenance(asked, laboratory))
    rundir.write_status(run.path, "done", is_examined=laboratory is not None)
    return "done"


def _clip_skip(options: ResizeOptions, sources: Sources) -> int:
    return read_clip_skip(sources[0]) if options.clip_skip is None else options.clip_skip


def config_yaml(asked: AskedResize) -> str:
    """Return the settings as YAML, spelled like their overrides."""
    return OmegaConf.to_yaml(OmegaConf.create(plain_settings(asked.options)))


def original_yaml(asked: AskedResize) -> str:
    """Return the settings of the original's own run: none of them is about a size."""
    settings = plain_settings(asked.options)
    nothing = dict.fromkeys(("param", "new_dim", "new_conv_dim", "save_precision", "compat"))
    return OmegaConf.to_yaml(OmegaConf.create({**settings, **nothing, "method": ORIGINAL}))


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


def _row(run: RunDir, epoch: int | None, records: Sequence[ModuleRecord], sources: Sources) -> Row:
    retained, least = whole_energy(records)
    return {
        "epoch": epoch or 1,
        "retained_energy": retained,
        "least_retained_energy": least,
        "lora_bytes": run.lora_path(epoch).stat().st_size,
        "source_bytes": sum(path.stat().st_size for path in sources),
        "mean_dim": math.fsum(one.new_dim for one in records) / len(records),
        "max_dim": max(one.new_dim for one in records),
    }


def _layer_row(epoch: int, record: ModuleRecord) -> Row:
    """Return a layer's record under the names that trainings' layers have, too."""
    values = [float(f"{value:.{_NUM_DIGITS}g}") for value in record.singular_values]
    row = {"epoch": epoch, "layer": record.module, **asdict(record), "singular_values": values}
    del row["module"]
    return row


def _provenance(asked: AskedResize, laboratory: Laboratory | None) -> dict[str, Any]:
    extra: dict[str, Any] = {
        "sources": {
            str(path): path.stat().st_size for each in asked.sources.values() for path in each
        },
        "num_threads": torch.get_num_threads(),
    }
    if laboratory is not None:
        base = laboratory.base
        extra["base"] = {"name": base.name, "fingerprint": base.fingerprint}
        extra["device"] = str(base.device)
    return provenance.collect(packages=["torch", "safetensors"], command=sys.argv, extra=extra)
