"""Find runs of one sweep that other software or another machine computed: data without words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pandas as pd

from optbench.analysis.comparisons import TRAINING, differing, is_missing, shown

Made = Literal["torch", "optbench", "commit", "package", "device", "gpu", "cpu", "threads"]
_COLUMNS: Mapping[Made, str] = {
    "torch": "torch_version",
    "optbench": "optbench_version",
    "commit": "optbench_commit",
    "device": "device_kind",
    "gpu": "gpu",
    "cpu": "cpu",
    "threads": "threads",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Finished runs were computed by two or more versions or machines."""

    made: Made
    package: str  # whose version it is, where `made` is package
    values: Mapping[str, tuple[str, ...]]  # each version or machine, with its runs
    confounded: tuple[str, ...]  # varied settings each of whose values was computed by one of them


def cautions(runs: pd.DataFrame) -> list[Caution]:
    """Return in what the finished trainings of a sweep were made unlike; unknown is unlike none.

    A commit is named only where the version it belongs to is the same.
    """
    done = runs[(runs["kind"] == TRAINING) & (runs["status"] == "done")]
    if len(done) < 2:
        return []
    factors = {name: [shown(value) for value in done[name]] for name in differing(done)}
    columns: list[tuple[Made, str, list[str | None]]] = [
        (made, "", [None if is_missing(value) else str(value) for value in done[column]])
        for made, column in _COLUMNS.items()
        if column in done
    ]
    columns += [("package", name, values) for name, values in _packages(done).items()]
    result: list[Caution] = []
    for made, package, values in columns:
        by_value: dict[str, list[str]] = {}
        for run, value in zip(done["run"], values, strict=True):
            if value is not None:
                by_value.setdefault(value, []).append(str(run))
        if len(by_value) < 2 or (made == "commit" and any(c.made == "optbench" for c in result)):
            continue
        confounded = []
        for name, levels in factors.items():
            pairs = {(level, value) for level, value in zip(levels, values, strict=True) if value}
            if len(pairs) == len({level for level, _ in pairs}) > 1:
                confounded.append(name)
        result.append(
            Caution(
                made=made,
                package=package,
                values={value: tuple(of_value) for value, of_value in by_value.items()},
                confounded=tuple(confounded),
            )
        )
    return result


def _packages(done: pd.DataFrame) -> dict[str, list[str | None]]:
    """Return by package of an optimizer the version each run had of it, None for other packages."""
    if "optimizer_version" not in done:
        return {}
    versions = ["" if is_missing(v) else str(v) for v in done["optimizer_version"]]
    names = {text.partition(" ")[0] for text in versions if " " in text} - {"torch"}  # has its own
    return {
        name: [
            text.partition(" ")[2] if text.partition(" ")[0] == name else None for text in versions
        ]
        for name in sorted(names)
    }
