"""Find runs that later ones have replaced: equal settings, but the files behind them were changed.

A setting names a folder of images, a base model's file or an optimizer class; what counts is what
was in it. Whoever improves captions and repeats the command has the runs of before beside the new
ones: these saw something else, and are compared with nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd

from optbench.analysis.comparisons import is_missing, settings_of, shown

Content = Literal["images", "base", "optimizer"]
# Of each content: the column of its hash, and the settings that name it.
_COLUMNS: Mapping[Content, tuple[str, re.Pattern[str]]] = {
    # Images that are held out of a data set are not trained on.
    "images": (
        "data_fingerprint",
        re.compile(r"dataset(\.(?!num_workers$).*)?|validate\.(enabled|holdout|dir)"),
    ),
    "base": ("base_fingerprint", re.compile(r"base(\..*)?")),
    "optimizer": ("optimizer_source", re.compile(r"optimizer")),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Superseded:
    """A run that was trained on what its settings named before, and name no longer."""

    sweep: str
    run: str
    content: Content
    place: str  # the folder, file or recipe whose content was changed
    newer_run: str  # one of those trained on what is there now


def superseded(runs: pd.DataFrame) -> list[Superseded]:
    """Return the runs that saw other content than the newest run whose settings name the same.

    Newest is by `started`; a run that does not say what it saw, or when, is superseded by none.
    """
    stale: dict[tuple[str, str], Superseded] = {}
    if "started" not in runs:
        return []
    records = [{str(key): value for key, value in row.items()} for row in runs.to_dict("records")]
    for content, (column, pattern) in _COLUMNS.items():
        if column not in runs:
            continue
        names = [name for name in settings_of(runs) if pattern.fullmatch(name)]
        by_name: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in records:
            if not is_missing(row[column]) and not is_missing(row["started"]):
                key = (str(row["sweep"]), *(shown(row[name]) for name in names))
                by_name.setdefault(key, []).append(row)
        for alike in by_name.values():
            newest = max(alike, key=lambda row: str(row["started"]))
            for row in alike:
                if row[column] != newest[column]:
                    stale.setdefault(
                        (str(row["sweep"]), str(row["run"])),
                        Superseded(
                            sweep=str(row["sweep"]),
                            run=str(row["run"]),
                            content=content,
                            place=_place(content, row),
                            newer_run=str(newest["run"]),
                        ),
                    )
    return list(stale.values())


def _place(content: Content, row: Mapping[str, Any]) -> str:
    names = {
        "images": ("dataset.dir", "dataset"),
        "base": ("base.path", "base"),
        "optimizer": ("optimizer",),
    }[content]
    return next((str(row[name]) for name in names if not is_missing(row.get(name))), "")
