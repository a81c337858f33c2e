"""Run folders as tidy frames, and what they say: the API of notebooks and of the report.

    frames = optbench.load("runs/demo")
    optbench.analysis.compare_settings(frames)  # who leads, what is tied, what is untuned

Conclusions are plain data on those frames, without words, colours or HTML. A sweep may still run.
"""

from optbench.analysis.changes import Change, changes
from optbench.analysis.comparisons import (
    GROUPS,
    MEASURED,
    ORIGINAL,
    RESIZE,
    TRAINING,
    differing,
    factors,
    find_pairs,
    followers,
    has_equal_draws,
    is_missing,
    known_records,
    labels,
    settings_of,
    short,
    shown,
)
from optbench.analysis.effects import effects, noise_floor
from optbench.analysis.frames import (
    Frames,
    find_runs,
    image_rows,
    is_run,
    load,
    load_runs,
    no_runs,
    runs_in,
    settings,
    sweep_dirs,
)
from optbench.analysis.image_metrics import Flag, image_flags, last_metrics, metric_table
from optbench.analysis.next_steps import NextStep, Untested, next_steps, untested
from optbench.analysis.outcomes import (
    BANDS,
    MEASURES,
    SPEED,
    SPLITS,
    Outcome,
    bands,
    last_bands,
    outcomes,
    varied,
)
from optbench.analysis.rates import RankTrap, Rung, Tuning, rank_trap, tunings
from optbench.analysis.ratings import (
    SelfAgreement,
    agreements,
    mean_scores,
    preferences,
    self_agreement,
)
from optbench.analysis.resized import ResizedLoss, resized_losses
from optbench.analysis.standings import (
    FactorStanding,
    Setting,
    Standings,
    compare_settings,
    fastest,
    frontier,
    rank_settings,
)
from optbench.analysis.superseded import Superseded, superseded
from optbench.analysis.targets import Targets, TimeToTarget, time_to_target

__all__ = [
    "BANDS",
    "Change",
    "FactorStanding",
    "Flag",
    "Frames",
    "GROUPS",
    "MEASURED",
    "MEASURES",
    "NextStep",
    "ORIGINAL",
    "Outcome",
    "RESIZE",
    "RankTrap",
    "ResizedLoss",
    "Rung",
    "SPEED",
    "SPLITS",
    "SelfAgreement",
    "Setting",
    "Standings",
    "Superseded",
    "TRAINING",
    "Targets",
    "TimeToTarget",
    "Tuning",
    "Untested",
    "agreements",
    "bands",
    "changes",
    "compare_settings",
    "differing",
    "effects",
    "factors",
    "fastest",
    "find_pairs",
    "find_runs",
    "followers",
    "frontier",
    "has_equal_draws",
    "image_flags",
    "image_rows",
    "is_missing",
    "is_run",
    "known_records",
    "labels",
    "last_bands",
    "last_metrics",
    "load",
    "load_runs",
    "mean_scores",
    "metric_table",
    "next_steps",
    "no_runs",
    "noise_floor",
    "outcomes",
    "preferences",
    "rank_settings",
    "rank_trap",
    "resized_losses",
    "runs_in",
    "self_agreement",
    "settings",
    "settings_of",
    "short",
    "shown",
    "superseded",
    "sweep_dirs",
    "time_to_target",
    "tunings",
    "untested",
    "varied",
]
