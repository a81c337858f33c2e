"""optbench: which optimizer and settings should I train my LoRA with, and how sure is that?

`python -m optbench --help` tells what can be run. `optbench.load("runs/...")` reads what was run.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optbench.analysis import Frames

__all__ = ["load"]


def load(folder: str | Path) -> Frames:
    """Return the tables of a sweep's folder, or of all sweeps under a folder, as pandas frames."""
    # Imported here, because pandas takes half a second that the command line does not need.
    from optbench.analysis import load as read

    return read(Path(folder))
