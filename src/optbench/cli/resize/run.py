"""Resize into a run folder: files, what every layer lost, images, losses, provenance."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml

from optbench.cli.resize.evaluate import (
    LIKENESS_FILE,
    ResizeEvaluator,
    has_images,
    is_evaluated,
)
from optbench.cli.resize.plan import ORIGINAL, ResizePlan
from optbench.config.build import config_tree, tree_yaml
from optbench.errors import DamagedFileError
from optbench.lora.file import LoraFile
from optbench.lora.keys import clip_skip_of
from optbench.lora.resize.merge import merged_modules
from optbench.lora.resize.resize import ResizeSpec, retained_energy, write_resized
from optbench.lora.resize.rules import SizeRule
from optbench.lora.resize.svd_cache import SvdCache
from optbench.models.device import device_kind, set_num_threads
from optbench.models.files.facts import base_fingerprint
from optbench.records import Status
from optbench.render import run_images
from optbench.schema import PIECE_TOKENS, ResizeOptions
from optbench.storage import files, hashing, provenance, rundir
from optbench.storage.files import Row, link_or_copy, write_sealed_text
from optbench.storage.rundir import RunDir, read_config
from optbench.terminal import tell
from optbench.training.made_as import Surroundings, folder_contents, is_current, made_in

_NUM_DIGITS = 6
_EVALUATION_KEYS = (
    *("base", "dataset", "prompts", "render", "validate", "clip_skip"),
    "mixed_precision",
)
Sources = tuple[Path, ...]


def make_resize(
    plan: ResizePlan, evaluator: ResizeEvaluator | None, *, svd_caches: Mapping[Sources, SvdCache]
) -> Status:
    """Write one resized file, or one per epoch of a run, into the plan's folder; evaluate each.

    Without an evaluator there are no images and no losses. Returns "done"; anything else is
    raised, for the caller to write down as the status.
    """
    run, options = RunDir(plan.run_dir), plan.options
    keys = _made_as(plan)
    _begin(run, options, config_yaml(plan))
    spec = ResizeSpec(
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
    for epoch, sources in plan.sources.items():
        started = time.perf_counter()
        svd_cache = svd_caches.get(sources, SvdCache())
        records = write_resized(sources, run.lora_path(epoch), spec, svd_cache=svd_cache)
        retained, smallest = retained_energy(records)
        row: Row = {
            "epoch": epoch or 1,
            "retained_energy": retained,
            "least_retained_energy": smallest,
            "lora_bytes": run.lora_path(epoch).stat().st_size,
            "source_bytes": sum(path.stat().st_size for path in sources),
            "mean_dim": math.fsum(record.new_dim for record in records) / len(records),
            "max_dim": max(record.new_dim for record in records),
            "seconds_resize": time.perf_counter() - started,
        }
        # Under the names that a training's layers have, too.
        layers: list[Row] = []
        for record in records:
            columns = asdict(record)
            columns["singular_values"] = [
                float(f"{value:.{_NUM_DIGITS}g}") for value in record.singular_values
            ]
            layers.append({"epoch": epoch or 1, "layer": columns.pop("module"), **columns})
        files.append_rows(run.layers_path, layers)
        _record_file(run, run.lora_path(epoch), epoch=epoch or 1)
        if evaluator is not None:
            row |= evaluator.evaluate(
                run,
                [(run.lora_path(epoch), 1.0)],
                epoch=epoch or 1,
                clip_skip=_clip_skip(options, sources),
                original=RunDir(plan.original_dir),
            )
        files.append_rows(run.epochs_path, [row])
    last = run.lora_path(max(epoch or 0 for epoch in plan.sources) or None)
    if last != run.lora_path(None):
        link_or_copy(last, run.lora_path(None))
        _record_file(run, run.lora_path(None), epoch=max(epoch or 1 for epoch in plan.sources))
    return _end(run, plan, evaluator, keys, fingerprint=plan.fingerprint)


def make_original(plan: ResizePlan, evaluator: ResizeEvaluator) -> Status:
    """Render and measure the source as a run of its own, which resized files are compared to."""
    run, options = RunDir(plan.original_dir), plan.options
    keys = _made_as(plan)
    _begin(run, options, original_yaml(plan))
    for epoch, sources in plan.sources.items():
        size = sum(path.stat().st_size for path in sources)
        modules = merged_modules([LoraFile(path) for path in sources])
        dims = [module.dim for module in modules.values()]
        row: Row = {
            "epoch": epoch or 1,
            "retained_energy": 1.0,
            "least_retained_energy": 1.0,
            "lora_bytes": size,
            "source_bytes": size,
            "mean_dim": math.fsum(dims) / len(dims),
            "max_dim": max(dims),
        }
        row |= evaluator.evaluate(
            run,
            list(zip(sources, options.weights or (1.0,), strict=True)),
            epoch=epoch or 1,
            clip_skip=_clip_skip(options, sources),
            original=None,
        )
        files.append_rows(run.epochs_path, [row])
    return _end(run, plan, evaluator, keys, fingerprint=plan.original_fingerprint)


def is_done(plan: ResizePlan) -> bool:
    """Return whether every file, image and loss of a resize exists already."""
    run = RunDir(plan.run_dir)
    lora_files = [run.lora_path(epoch) for epoch in (*plan.sources, None)]
    if not all(file.is_file() for file in lora_files):
        return False
    return _is_done(run, plan, config_yaml(plan), fingerprint=plan.fingerprint)


def is_original_due(plan: ResizePlan) -> bool:
    """Return whether the source's own images and losses are wanted and not whole on disk."""
    run, fingerprint = RunDir(plan.original_dir), plan.original_fingerprint
    if _is_done(run, plan, original_yaml(plan), fingerprint=fingerprint):
        return False
    # A file that does not belong to the base model was resized without either.
    resized = rundir.read_status(plan.run_dir)
    return not is_done(plan) or bool(resized.facts.get("is_examined"))


def _is_done(run: RunDir, plan: ResizePlan, config: str, *, fingerprint: str) -> bool:
    record = rundir.read_status(run.path)
    if record.status != "done" or not run.config_path.is_file():
        return False
    if provenance.belongs_to_another(run.provenance_path, fingerprint):
        return False  # it was copied or renamed; everything in it is made anew
    try:
        stored = read_config(run)
        for path in _records_of(run):
            files.read_rows(path)
    except DamagedFileError:
        return False
    current = yaml.safe_load(config)
    # Older runs have no precision in their settings: it was always float32.
    if any(stored.get(key, "no") != current[key] for key in _EVALUATION_KEYS):
        return False
    if not record.facts.get("is_examined"):
        # Evaluation was off, or the base is not the LoRA's: the same as it would be now.
        return True
    if not is_current(record.facts, _made_as(plan)):
        return False
    return has_images(run, plan.options, [epoch or 1 for epoch in plan.sources])


def _made_as(plan: ResizePlan) -> dict[str, str]:
    """Return by name what losses and images depend on, where they are wanted."""
    options, cache_dir = plan.options, Path(plan.options.cache_dir)
    if not is_evaluated(options):
        return {}
    contents = folder_contents(options.dataset, cache_dir=cache_dir)
    surroundings = Surroundings(
        base=base_fingerprint(options.base, cache_dir=cache_dir),
        data=hashing.fingerprint({"options": asdict(options.dataset), **contents}),
        device=device_kind(options.device),
        precision=options.mixed_precision,
        clip_skip=options.clip_skip,
        max_token_length=PIECE_TOKENS,
    )
    return made_in(
        surroundings,
        validate=options.validate,
        prompts=options.prompts,
        render=options.render,
        cache_dir=cache_dir,
    )


def _begin(run: RunDir, options: ResizeOptions, config: str) -> None:
    rundir.write_status(run.path, "running")
    files.clean_partial_files(run.path)
    for notice in files.set_aside_damaged_images(run.path / "images"):
        tell(notice)
    set_num_threads(options.num_threads)
    # Made anew together: records of two times never lie beside each other.
    for path in _records_of(run):
        path.unlink(missing_ok=True)
    write_sealed_text(run.config_path, config)


def _records_of(run: RunDir) -> tuple[Path, ...]:
    losses = run.validation_path
    return run.epochs_path, run.layers_path, losses, run.files_path, run.path / LIKENESS_FILE


def _record_file(run: RunDir, path: Path, *, epoch: int) -> None:
    """Record what a LoRA file's bytes are, for `optbench verify`, as a training does."""
    row = {"epoch": epoch, "file": path.name, "sha256": hashing.file_sha256(path)}
    files.append_rows(run.files_path, [row])


def _end(
    run: RunDir,
    plan: ResizePlan,
    evaluator: ResizeEvaluator | None,
    keys: Mapping[str, str],
    *,
    fingerprint: str,
) -> Status:
    options = plan.options
    if evaluator is not None and options.render.enabled:
        num_epochs = max(epoch or 1 for epoch in plan.sources)
        run_images.draw_run_sheets(run, options.prompts, options.render, num_epochs=num_epochs)
    facts: dict[str, Any] = {
        "weights_fingerprint": fingerprint,
        "sources": {
            str(path): path.stat().st_size for paths in plan.sources.values() for path in paths
        },
    }
    session: dict[str, Any] = {"num_threads": torch.get_num_threads()}
    if evaluator is not None:
        base = evaluator.base
        facts["base"] = {"name": base.name, "fingerprint": base.fingerprint}
        session["device"] = str(base.device)
    collected = provenance.collect(
        packages=["torch", "safetensors"], command=sys.argv, extra=session
    )
    if damage := provenance.begin_session(run.provenance_path, collected, facts):
        tell(damage)
    is_examined = evaluator is not None
    rundir.write_status(
        run.path, "done", is_examined=is_examined, made_as=dict(keys) if is_examined else {}
    )
    return "done"


def _clip_skip(options: ResizeOptions, sources: Sources) -> int:
    if options.clip_skip is not None:
        return options.clip_skip
    return clip_skip_of(LoraFile(sources[0]).metadata)


def config_yaml(plan: ResizePlan) -> str:
    """Return the settings as YAML, spelled like their overrides."""
    return tree_yaml(config_tree(plan.options))


def original_yaml(plan: ResizePlan) -> str:
    """Return the settings of the original's own run: none of them is about a size."""
    settings = config_tree(plan.options)
    nothing = dict.fromkeys(("param", "new_dim", "new_conv_dim", "save_precision", "compat"))
    return tree_yaml({**settings, **nothing, "method": ORIGINAL})
