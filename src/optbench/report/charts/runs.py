"""What charts need to know of every run: its label, where its epochs end, whether it stopped."""

from __future__ import annotations

import math
from typing import Any

from optbench.analysis.curves import epoch_ends
from optbench.analysis.evidence import SweepEvidence

_GOING = ("done", "running", "pending")


def run_facts(sweep: SweepEvidence) -> dict[str, dict[str, Any]]:
    """Return by a run's name its label, the ends of its epochs, and why its curves end early.

    `ends` are triples of step, epoch and seconds of training, (0, 0, 0) first; seconds are None
    where unknown. `ended` is empty for a run that came to its end or still runs.
    """
    return {
        run.name: {
            "label": run.label,
            "ends": [
                [step, epoch, None if math.isnan(seconds) else round(seconds, 3)]
                for step, epoch, seconds in epoch_ends(run.steps, run.epochs)
            ],
            "ended": "" if str(run.row["status"]) in _GOING else run.status,
        }
        for run in sweep.runs
    }
