"""Many run folders -> a few tidy frames, and what differs between their runs."""

from optbench.results.comparing import (
    GROUPS,
    MEASURED,
    differing,
    find_pairs,
    followers,
    is_missing,
    labels,
    settings_of,
    shown,
)
from optbench.results.reading import (
    Frames,
    find_runs,
    is_run,
    load,
    load_runs,
    no_runs,
    read_config,
    settings,
    sweep_dirs,
)

__all__ = [
    "GROUPS",
    "MEASURED",
    "Frames",
    "differing",
    "find_pairs",
    "find_runs",
    "followers",
    "is_missing",
    "is_run",
    "labels",
    "load",
    "load_runs",
    "no_runs",
    "read_config",
    "settings",
    "settings_of",
    "shown",
    "sweep_dirs",
]
