"""The one number a run is judged by when a program chooses the next settings: lower is better."""

from __future__ import annotations

import math
from pathlib import Path

from optbench.errors import DamagedFileError
from optbench.storage import files, rundir

# Held-out images come first: what counts is how well it generalizes.
_HELD_OUT, _OTHERS = "validation_loss/held_out", "validation_loss/others"
_KEYS = (_HELD_OUT, "validation_loss/training", "mean_loss")
_HOPELESS = ("diverged", "failed", "out_of_memory", "skipped")


def objective(run_dir: Path) -> float:
    """Return a finished run's loss; inf for one that cannot be finished, nan for one not yet.

    The loss is the paired validation loss of the last epoch where it was measured - on images
    held out, plus a quarter of that on other subjects where it was; else on those trained on - and
    else the mean training loss of that epoch. Training
    losses of runs with other batches, dropout or loss functions do not compare; validation ones do.
    """
    status = rundir.read_status(run_dir).status
    if status in _HOPELESS:
        return math.inf
    if status != "done":
        return math.nan
    try:
        rows = files.read_rows(rundir.RunDir(run_dir).epochs_path)
    except DamagedFileError:
        return math.nan
    last = max(rows, key=lambda row: int(row["epoch"]), default={})
    measured = [last[key] for key in _KEYS if last.get(key) is not None]
    if not measured:
        return math.inf
    from optbench.analysis.outcomes import FORGETTING_WEIGHT  # pandas, only where a program tunes

    is_held_out = last.get(_HELD_OUT) is not None
    forgetting = FORGETTING_WEIGHT * (last.get(_OTHERS) or 0.0) if is_held_out else 0.0
    return float(measured[0]) + forgetting
