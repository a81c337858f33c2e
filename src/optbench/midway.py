"""What a run goes on from that was asked to stop inside an epoch: to the same bits as never asked.

It lies beside the state of the last whole epoch and is worth nothing without it: lost or damaged,
the epoch is trained again from its beginning.
"""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from optbench.contracts import Network, StepOptimizer
from optbench.errors import DamagedFileError, OptbenchError
from optbench.files import set_aside, write_pieces
from optbench.resume import Progressed, read_state
from optbench.rundir import SCHEMA, RunDir
from optbench.train import Begun

if TYPE_CHECKING:
    from accelerate import Accelerator

_FILE_NAME = "midway.pt"


@dataclass(frozen=True, slots=True, kw_only=True)
class Midway:
    """Where inside an epoch a run stands."""

    step: int  # taken in all
    rows: list[dict[str, float | int]]  # of this epoch's steps; on disk only with the whole epoch
    begun: Begun


def write_midway(
    run: RunDir,
    rows: list[dict[str, float | int]],
    network: Network,
    optimizer: StepOptimizer,
    accelerator: Accelerator,
) -> None:
    """Keep the training point after a step, with the global generators libraries draw from."""
    scaler = accelerator.scaler
    content = {
        "schema": SCHEMA,
        "epoch": rows[-1]["epoch"],
        "step": rows[-1]["step"],
        "row": {},
        "rows": rows,
        "generators": _generators(),
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    buffer = io.BytesIO()
    torch.save(content, buffer)
    blob = buffer.getbuffer()
    write_pieces(_path(run), [hashlib.sha256(blob).digest(), blob])


def set_aside_damaged_point(run: RunDir) -> list[str]:
    """Rename a point that is not what was written; return a sentence, or nothing."""
    path = _path(run)
    if path.is_file():
        try:
            read_state(path)
        except DamagedFileError as error:
            aside = set_aside(path)
            found = f"{path.name}: {error.problems[0].found}; it is now {aside.name}"
            return [f"{found}, and the steps after the last whole epoch are trained again"]
        except OptbenchError:
            pass  # of a later optbench
    return []


def take_up(
    run: RunDir,
    done: Progressed,
    network: Network,
    optimizer: StepOptimizer,
    accelerator: Accelerator,
) -> Midway | None:
    """Put the point inside the epoch after `done` back, or return None: there is none that fits.

    Call `set_aside_damaged_point` first.
    """
    path = _path(run)
    if not path.is_file():
        return None
    try:
        state = read_state(path)
    except OptbenchError:
        return None  # of a later optbench
    content = state.content
    if content["epoch"] != done.epoch + 1 or content["step"] <= done.step:
        forget_midway(run)  # its epoch has become whole since, or the run has begun anew
        return None
    state.put_back(network, optimizer, accelerator)
    rows: list[dict[str, float | int]] = content["rows"]
    seconds = sum(
        float(value) for row in rows for name, value in row.items() if name.startswith("seconds_")
    )
    begun = Begun(
        losses=tuple(float(row["loss"]) for row in rows),
        seconds=seconds,
        set_generators=lambda: _set_generators(content["generators"]),
    )
    return Midway(step=content["step"], rows=rows, begun=begun)


def forget_midway(run: RunDir) -> None:
    """Remove what the whole epoch has made worthless."""
    _path(run).unlink(missing_ok=True)


def _path(run: RunDir) -> Path:
    return run.state_dir / _FILE_NAME


def _generators() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "random": random.getstate(),
        "numpy": (str(name), [int(key) for key in keys], *rest),
    }


def _set_generators(kept: dict[str, Any]) -> None:
    torch.set_rng_state(kept["torch"])
    if kept["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(kept["cuda"])
    random.setstate(kept["random"])
    name, keys, *rest = kept["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
