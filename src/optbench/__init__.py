"""optbench: which optimizer and settings should I train my LoRA with, and how sure is that?

`optbench --help` lists what can be run. `optbench.load("runs/...")` reads what was run as pandas
frames, and `optbench.analysis` draws conclusions from them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optbench import analysis as analysis
    from optbench.analysis import Frames

__all__ = ["analysis", "load"]


def load(folder: str | Path) -> Frames:
    """Return the tables of a run, a sweep's folder, or all sweeps under a folder, as pandas frames.

    Raises:
        DatasetError: If there is no such folder, or no run in it.
    """
    # Imported here, because pandas takes half a second that the command line does not need.
    from optbench.analysis import load as read

    return read(Path(folder))


def __getattr__(name: str) -> Any:
    if name == "analysis":  # on first use, for the same reason
        return import_module("optbench.analysis")
    raise AttributeError(f"module 'optbench' has no attribute {name!r}")
