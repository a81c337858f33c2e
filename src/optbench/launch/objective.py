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


def objective(run_dir: Path, until_epoch: int | None = None) -> float:
    """Return a run's loss; inf for one that cannot be finished or is broken, nan for one not yet.

    The loss is the paired validation loss where it was measured - on images held out, plus a
    quarter of that on other subjects where it was; else on those trained on - and else the mean
    training loss of the epoch. Training losses of runs with other batches, dropout or loss
    functions do not compare; validation ones do. Broken is a finished run that adds more than 0.6
    of its gain as loss on others: early on a sound one may have no gain yet.

    Args:
        run_dir: The run's folder.
        until_epoch: Of which epoch, for a run that is stopped there; None: of the last.
    """
    status = rundir.read_status(run_dir).status
    if status in _HOPELESS:
        return math.inf
    if status != "done" and not (status == "stopped" and until_epoch is not None):
        return math.nan
    try:
        rows = files.read_rows(rundir.RunDir(run_dir).epochs_path)
    except DamagedFileError:
        return math.nan
    if until_epoch is not None:
        rows = [row for row in rows if int(row["epoch"]) <= until_epoch]
    last = max(rows, key=lambda row: int(row["epoch"]), default={})
    measured = [last[key] for key in _KEYS if last.get(key) is not None]
    if not measured:
        return math.inf
    # pandas, only where a program tunes
    from optbench.analysis.outcomes import FORGETTING_WEIGHT, SPLITS, is_forgetful

    if last.get(_HELD_OUT) is None:
        return float(measured[0])
    held_out, others = float(last[_HELD_OUT]), last.get(_OTHERS)
    if (
        status == "done"
        and until_epoch is None
        and is_forgetful({SPLITS["held_out"]: held_out, SPLITS["others"]: others})
    ):
        return math.inf
    return held_out + FORGETTING_WEIGHT * (others or 0.0)
