"""What a killed run goes on from: everything after its last whole epoch, in one file."""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from optbench.contracts import Network, StepOptimizer
from optbench.errors import DamagedFileError, Problem
from optbench.rundir import RunDir, write_atomic

if TYPE_CHECKING:
    from accelerate import Accelerator

_FILE_NAME = "last.pt"
_NUM_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Progressed:
    """How far a run has come, in whole epochs."""

    epoch: int  # the last whole one; 0: none
    step: int
    row: dict[str, Any] | None = None  # that epoch's record, before its pictures


def write_state(
    run: RunDir,
    progressed: Progressed,
    network: Network,
    optimizer: StepOptimizer,
    accelerator: Accelerator,
) -> None:
    """Keep the training point after an epoch; the one before it is replaced in one move.

    No generator is kept: every draw is keyed by its epoch and place.
    """
    scaler = accelerator.scaler
    buffer = io.BytesIO()
    content = {
        "epoch": progressed.epoch,
        "step": progressed.step,
        "row": progressed.row,
        "network": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
    }
    torch.save(content, buffer)
    blob = buffer.getvalue()
    write_atomic(run.state_dir / _FILE_NAME, hashlib.sha256(blob).digest() + blob)


def read_state(
    run: RunDir, network: Network, optimizer: StepOptimizer, accelerator: Accelerator
) -> Progressed | None:
    """Put the last whole epoch's state back and return how far it is; None: from the beginning.

    Raises:
        DamagedFileError: If the state is not bit for bit what was written.
    """
    path = run.state_dir / _FILE_NAME
    if not path.is_file():
        return None
    data = path.read_bytes()
    digest, blob = data[:_NUM_DIGEST_BYTES], data[_NUM_DIGEST_BYTES:]
    # torch.load notices neither a wrong bit in a weight nor every cut-off file.
    if hashlib.sha256(blob).digest() != digest:
        raise DamagedFileError(
            Problem(
                found=f"{len(data)} bytes that are not what was written",
                expected="the state this run goes on from",
                where=str(path),
                fix="delete this file; the same command then trains the run from its beginning",
            )
        )
    content = torch.load(io.BytesIO(blob), weights_only=True, map_location="cpu")
    # First: it refuses the state of another recipe, and then nothing has been changed.
    optimizer.load_state_dict(content["optimizer"])
    network.load_state_dict(content["network"])
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(content["scaler"])
    return Progressed(epoch=content["epoch"], step=content["step"], row=content["row"])
