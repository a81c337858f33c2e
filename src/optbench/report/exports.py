"""Write the frames as CSV and Parquet, for spreadsheets and notebooks."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from optbench.analysis import Frames, is_missing, shown
from optbench.storage.files import write_atomic

TABLES = ("runs", "epochs", "steps", "pairs", "images", "layers", "validation")
_OFTEN_EMPTY = ("layers", "validation")
# A spreadsheet takes a cell that begins so for a formula; captions and names are not ours.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def write_tables(
    frames: Frames, folder: Path, more: Mapping[str, pd.DataFrame] | None = None
) -> tuple[str, ...]:
    """Return the names of the files written: every frame that has columns, in both formats.

    Of `more`, by name, those that are not empty. A table that an earlier report had and this one
    has not is removed.
    """
    file_names: list[str] = []
    tables = {name: getattr(frames, name) for name in TABLES}
    for name, frame in {**tables, **(more or {})}.items():
        if frame.empty and (name not in tables or name in _OFTEN_EMPTY):
            for suffix in (".csv", ".parquet"):
                (folder / f"{name}{suffix}").unlink(missing_ok=True)
            continue
        safe = frame.apply(_column) if len(frame.columns) else frame
        buffer = io.BytesIO()
        safe.to_parquet(buffer, index=False)
        write_atomic(folder / f"{name}.parquet", buffer.getvalue())
        # Column names, too: settings and records of a stranger's run become such.
        cells = safe.map(_spreadsheet_safe).rename(columns=_spreadsheet_safe)
        text = cells.to_csv(index=False, lineterminator="\n")
        write_atomic(folder / f"{name}.csv", text)
        file_names += [f"{name}.csv", f"{name}.parquet"]
    return tuple(file_names)


def _column(column: pd.Series[Any]) -> pd.Series[Any]:
    """Return a column of one type, because Parquet has no others."""
    kinds = {type(value) for value in column if not is_missing(value)}
    if len(kinds) <= 1:
        return column
    if kinds <= {int, float}:
        return column.astype(float)
    return column.map(lambda value: None if is_missing(value) else shown(value))


def _spreadsheet_safe(value: Any) -> Any:
    if not isinstance(value, str) or not value.startswith(_FORMULA_STARTS):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value
