"""TensorBoard scalars of a run, written epoch by epoch."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path


def write_scalars(folder: Path, rows: Iterable[Mapping[str, float | int]]) -> None:
    """Append one event file with every number of every row, placed at the row's `step`."""
    rows = list(rows)
    if not rows:
        return
    from torch.utils.tensorboard import SummaryWriter  # a second to import, once per process

    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for name, value in row.items():
                if name not in ("step", "epoch") and value is not None:
                    writer.add_scalar(name, value, int(row["step"]))


def rewrite_scalars(folder: Path, rows: Iterable[Mapping[str, float | int]]) -> None:
    """Replace all event files by one with these rows: a killed run may have left other ones."""
    shutil.rmtree(folder, ignore_errors=True)
    write_scalars(folder, rows)
