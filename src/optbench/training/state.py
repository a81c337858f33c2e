"""What a killed run goes on from: everything after its last whole epoch, in one file.

The epoch before it is kept beside it while the run trains, so that a damaged file costs one epoch.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from optbench.contracts import Network, StepOptimizer
from optbench.errors import LaterSchemaError
from optbench.storage.files import damaged, link_or_copy, write_pieces
from optbench.storage.rundir import SCHEMA, RunDir, of_later_optbench

if TYPE_CHECKING:
    from accelerate import Accelerator


import random
from typing import TYPE_CHECKING

import numpy as np

from optbench.errors import DamagedFileError, OptbenchError
from optbench.storage.files import set_aside
from optbench.training.loop import Begun

if TYPE_CHECKING:
    from accelerate import Accelerator

_LAST, _PREVIOUS = "last.pt", "previous.pt"
_NUM_DIGEST_BYTES = 32
_PARTS = {"epoch", "step", "row", "network", "optimizer", "scaler"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far a run has come, in whole epochs."""

    epoch: int  # the last whole one; 0: none
    step: int
    row: dict[str, Any] | None = None  # that epoch's record, before its pictures


@dataclass(frozen=True, slots=True)
class State:
    """A whole state file, read and found to be what was written."""

    content: dict[str, Any]

    @property
    def progressed(self) -> Progressed:
        """How far the run had come."""
        content = self.content
        return Progressed(epoch=content["epoch"], step=content["step"], row=content["row"])

    def put_back(
        self, network: Network, optimizer: StepOptimizer, accelerator: Accelerator
    ) -> None:
        """Go on exactly from here.

        Raises:
            DamagedFileError: If it is the state of another recipe; then nothing has been changed.
        """
        optimizer.load_state_dict(self.content["optimizer"])
        network.load_state_dict(self.content["network"])
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(self.content["scaler"])


def write_state(
    run: RunDir,
    progressed: Progressed,
    network: Network,
    optimizer: StepOptimizer,
    accelerator: Accelerator,
) -> None:
    """Keep the training point after an epoch; it takes the last one's place in one move.

    No generator is kept: every draw is keyed by its epoch and place.
    """
    scaler = accelerator.scaler
    buffer = io.BytesIO()
    content = {
        "schema": SCHEMA,
        "epoch": progressed.epoch,
        "step": progressed.step,
        "row": progressed.row,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    torch.save(content, buffer)
    last = run.state_dir / _LAST
    if last.is_file():
        # A second name for the last state: no bytes are copied, and the write below, which puts a
        # new file under the first name, leaves this one alone.
        link_or_copy(last, run.state_dir / _PREVIOUS)
    blob = buffer.getbuffer()
    write_pieces(last, [hashlib.sha256(blob).digest(), blob])


def state_files(run: RunDir) -> list[Path]:
    """Return the state files that are there, the latest first."""
    return [path for name in (_LAST, _PREVIOUS) if (path := run.state_dir / name).is_file()]


def read_state(path: Path) -> State:
    """Return the state in a file.

    Raises:
        DamagedFileError: If it is not bit for bit what was written.
        LaterSchemaError: If a later optbench wrote it.
    """
    data = path.read_bytes()
    digest, blob = data[:_NUM_DIGEST_BYTES], memoryview(data)[_NUM_DIGEST_BYTES:]
    # torch.load notices neither a wrong bit in a weight nor every cut-off file.
    if hashlib.sha256(blob).digest() != digest:
        found = f"{len(data)} bytes that are not what was written"
        raise damaged(path, found, "the state this run goes on from")
    try:
        content = torch.load(io.BytesIO(blob), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        # The digest is right, so somebody made this file: a folder from elsewhere is not trusted.
        raise damaged(path, "a pickle that holds more than tensors", "a state") from error
    if not isinstance(content, dict) or not content.keys() >= _PARTS:
        raise damaged(path, "a file without a state's parts", ", ".join(sorted(_PARTS)))
    schema = content.get("schema", SCHEMA)  # schema 1 said nothing of it at first
    if schema > SCHEMA:
        raise LaterSchemaError(of_later_optbench(path, schema))
    return State(content)


def forget_previous(run: RunDir) -> None:
    """Remove the state before the last: a run that is done needs no second one."""
    (run.state_dir / _PREVIOUS).unlink(missing_ok=True)


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
