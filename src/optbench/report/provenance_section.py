"""The page's facts about how runs were made: settings, provenance, and each optimizer's recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optbench import analysis
from optbench.analysis.evidence import RunEvidence, SweepEvidence
from optbench.storage.nested import flatten

_RECIPE_KEYS = ("departures", "note", "notes", "paper", "optimizer")  # shown with the recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One name and its value."""

    name: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One optimizer of the sweep, as its file and the built object describe it."""

    name: str
    num_runs: int
    departures: tuple[str, ...]
    note: str
    paper: str
    package: str
    built: tuple[Fact, ...]  # read back from the first run's optimizer


def recipes(sweep: SweepEvidence) -> list[Recipe]:
    """Return every optimizer with all departures that any of its runs noted."""
    by_name: dict[str, list[RunEvidence]] = {}
    for run in sweep.runs:
        name = run.row.get("optimizer")
        if name is not None:
            by_name.setdefault(str(name), []).append(run)
    return [_recipe(name, runs) for name, runs in sorted(by_name.items())]


def shared_facts(runs: Sequence[RunEvidence]) -> list[Fact]:
    """Return the provenance that is the same for all runs that have any."""
    facts_of_runs = [facts for run in runs if (facts := _provenance(run))]
    if not facts_of_runs:
        return []
    return [
        Fact(name=name, value=value)
        for name, value in facts_of_runs[0].items()
        if all(facts.get(name) == value for facts in facts_of_runs)
    ]


def own_facts(run: RunEvidence, shared: Sequence[Fact]) -> list[Fact]:
    """Return the provenance that this run does not share with all others."""
    names = {fact.name for fact in shared}
    return [
        Fact(name=name, value=value)
        for name, value in _provenance(run).items()
        if name not in names
    ]


def setting_facts(run: RunEvidence) -> list[Fact]:
    """Return every setting of a run, spelled like its override."""
    return [
        Fact(name=name, value=analysis.shown(value))
        for name, value in analysis.settings(run.config).items()
    ]


def split_settings(runs: Sequence[RunEvidence]) -> tuple[list[Fact], dict[str, list[Fact]]]:
    """Return the settings that all runs with a known config share, and by name each run's own."""
    by_run = {run.name: setting_facts(run) for run in runs}
    known_settings = [set(facts) for facts in by_run.values() if facts]
    shared = set.intersection(*known_settings) if known_settings else set()
    own_settings = {
        name: [fact for fact in facts if fact not in shared] for name, facts in by_run.items()
    }
    return sorted(shared, key=lambda fact: fact.name), own_settings


def main_settings(sweep: SweepEvidence) -> list[Fact]:
    """Return the settings that all runs share and a reader asks for first."""
    names = (
        "base",
        "dataset",
        "optimizer",
        "network",
        "network.dim",
        "lr_scheduler",
        "train.epochs",
        "train.batch_size",
        "seed",
        "source",
        "method",
        "param",
        "new_dim",
        "save_precision",
    )
    facts = []
    # Where there are trainings, the settings of a resize are not everybody's.
    trainings = [run for run in sweep.runs if run.kind == analysis.TRAINING]
    runs = trainings or [run for run in sweep.runs if run.kind != analysis.ORIGINAL]
    for name in names:
        values = {analysis.shown(run.row.get(name)) for run in runs} - {"null"}
        if len(values) == 1 and name not in sweep.factors:
            value = values.pop()
            if name == "source":  # without its places on disk
                sources = runs[0].config.get("source")
                files = sources if isinstance(sources, list) else []
                value = " + ".join(Path(str(file)).name for file in files)
            facts.append(Fact(name=name, value=value))
    return facts


def _recipe(name: str, runs: Sequence[RunEvidence]) -> Recipe:
    configs = [part for run in runs if isinstance(part := run.config.get("optimizer"), Mapping)]
    config: Mapping[str, Any] = configs[0] if configs else {}
    built = [run.provenance["optimizer"] for run in runs if "optimizer" in run.provenance]
    departures: dict[str, None] = {}
    for run in runs:
        departure = run.provenance.get("departures")
        texts = departure if isinstance(departure, list) else [departure]
        departures |= dict.fromkeys(str(text) for text in texts if text)
    return Recipe(
        name=name,
        num_runs=len(runs),
        departures=tuple(departures),
        note=str(config.get("note") or ""),
        paper=str(config.get("paper") or ""),
        package=str(config.get("package") or ""),
        built=tuple(_facts(built[0])) if built else (),
    )


def _provenance(run: RunEvidence) -> dict[str, str]:
    facts = {key: value for key, value in run.provenance.items() if key not in _RECIPE_KEYS}
    return {fact.name: fact.value for fact in _facts(facts)}


def _facts(tree: Any) -> Iterator[Fact]:
    """Return nested values as lines, keys joined by dots."""
    for name, value in flatten(tree).items() if isinstance(tree, Mapping) else ():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            yield Fact(name=name, value=" ".join(value) or "none")
        elif isinstance(value, list):
            yield Fact(name=name, value=json.dumps(value))
        else:
            yield Fact(name=name, value="none" if value is None else str(value))
