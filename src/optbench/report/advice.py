"""Put the next steps of a sweep into words, each with the command to type and what it costs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.next_steps import NextStep, Reason, next_steps
from optbench.analysis.rates import RATES
from optbench.analysis.standings import DONE, Setting, Standings
from optbench.report.wording import about, decimal_text, times
from optbench.storage import resources
from optbench.storage.nested import flatten
from optbench.storage.secrets import hide_in_arguments

_MAX_COMMANDS = 4
_EMBEDDED_DATASET = "mirelle"  # has held-out images of its own
_TEXTS: Mapping[Reason, str] = {
    "superseded": "Train {runs} again with what there is now{cost}:",
    "unfinished": "Finish the sweep{cost}; finished runs are skipped:",
    "diverged": "Try lower rates where runs diverged:",
    "out_of_memory": "Trade a third of the speed for memory:",
    "nothing_to_compare": "Compare it with another optimizer, {seeds} each{cost}:",
    "few_seeds": "Run every setting with {seeds}, no images{cost}.",
    "rates_untuned": "Tune each optimizer's learning rate, x0.3, x1 and x3 of its default{cost}:",
    "dim_and_rate": "Tell dim from learning rate with two further arms, a fixed alpha and "
    "rsLoRA{cost}:",
}
_PLAIN_OVERRIDE = re.compile(r"[\w./]+=[\w.,+/-]+")
_OF_WHOLE_SWEEP = re.compile(r"sweep=|settings|sweep_name=|runs_dir=|cache_dir=|launch|hydra")
_PLAIN_VALUE = re.compile(r"[\w.+/-]+")
_KEY_IN_SETTINGS = re.compile(r"""(?:^|[\s"'{:,])\+*([\w./]+)=""")
_SEARCHES = re.compile(r"hydra/sweeper=|hydra\.sweeper\.n_trials=|[\w.]+=(tag\(.*)?interval\(")


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One next step in words, and the command for it."""

    text: str
    command: str


def advise(trainings: SweepEvidence, standings: Standings) -> Iterator[Advice]:
    """Yield the next steps, the most useful first; none whose command would be refused."""
    commands = _typed_commands(trainings)
    is_search = any(_is_search(words) for words in commands)
    for step in next_steps(trainings.frames, standings):
        if is_search and step.reason in ("few_seeds", "rates_untuned", "dim_and_rate"):
            # A sweeper would take the seed for one more setting to choose.
            if step.reason == "few_seeds":
                yield from _confirm_tuned(trainings, standings, commands)
            continue
        lines = [
            _with_changes(words, _with_seeds(words, changes, step), trainings.path.name)
            for changes in step.changes
            for words in commands
        ]
        typed = [line for line in dict.fromkeys(lines) if line is not None]
        if typed and len(typed) == len({*lines}):
            yield Advice(text=_text(step, trainings, standings), command="\n".join(typed))


def _text(step: NextStep, trainings: SweepEvidence, standings: Standings) -> str:
    cost = _cost(step.num_runs, step.seconds)
    if step.reason == "no_held_out_validation":
        has_folder = any(run.row.get("validate.dir") for run in trainings.runs)
        if has_folder or {run.row.get("dataset") for run in trainings.runs} == {_EMBEDDED_DATASET}:
            return "Add a validation loss on held-out images (nothing is trained again):"
        return (
            f"Hold out a sixth of the images and measure the loss there{cost}; or give images of "
            "the same subject with validate.dir=FOLDER, and nothing is trained again:"
        )
    text = _TEXTS[step.reason].format(
        runs=times(step.num_runs or 0, "run"),
        seeds=times(step.num_seeds or 0, "seed"),
        cost=f": {cost}"
        if cost and step.reason in ("few_seeds",)
        else f" ({cost})"
        if cost
        else "",
    )
    if step.reason == "few_seeds":
        if step.smallest_difference is None:
            return f"{text} Two seeds of a setting measure luck, and with it what can be seen:"
        now = standings.smallest_difference()
        before = "" if now is None else f" ({decimal_text(now, 2)} now)"
        seen = decimal_text(step.smallest_difference, 2)
        return f"{text} Gaps of {seen} would then show{before}:"
    return text


def _cost(num_runs: int | None, seconds: float | None) -> str:
    if not num_runs:
        return ""
    return times(num_runs, "run") + ("" if seconds is None else f", {about(seconds)}")


def _typed_commands(trainings: SweepEvidence) -> list[tuple[str, ...]]:
    """Return the overrides and flags of the commands that trained the runs, each once.

    Empty where a run does not say its own, or where they are too many to be repeated.
    """
    commands: dict[tuple[str, ...], None] = {}
    for run in sorted(trainings.runs, key=lambda run: run.number):
        words = run.provenance.get("command")
        if not isinstance(words, list) or not words:
            if run.row["status"] == DONE:
                return []
            continue  # it has only just started
        commands[tuple(_overrides([str(word) for word in words]))] = None
    return list(commands) if len(commands) <= _MAX_COMMANDS else _as_one_list([*commands])


def _as_one_list(commands: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """Return one command whose list has an entry for each of many; nothing where none can be.

    A product of all their values would be other runs, some of them refused.
    """
    shared = [word for word in commands[0] if all(word in words for words in commands)]
    entries = []
    for number, words in enumerate(commands, start=1):
        own = [word for word in words if word not in shared]
        if not all(_PLAIN_OVERRIDE.fullmatch(w) and not _OF_WHOLE_SWEEP.match(w) for w in own):
            return []
        entries.append(f'command_{number}:"{" ".join(own)}"')
    return [(f"settings={{{','.join(entries)}}}", *shared)]


def _overrides(words: Sequence[str]) -> Iterator[str]:
    """Yield a command's overrides and flags: not the program's name, nor what its start added."""
    is_value = False
    for word in words:
        is_flag_of_folder = word in ("--config-dir", "-cd")
        is_override = "=" in word or word.startswith("~")
        is_added = word.lstrip("+~").startswith(("hydra.sweep.", "hydra.mode="))
        if is_value or is_flag_of_folder or (is_override and not is_added):
            yield word
        is_value = is_flag_of_folder


def _with_seeds(words: Sequence[str], changes: Sequence[str], step: NextStep) -> list[str]:
    """Return changes that ask for more seeds in the way that the command does.

    A command that names no seed takes their number: the further ones render no images.
    """
    listed = [change for change in changes if change.startswith("seed=")]
    if not listed:
        return [*changes]
    if _value_of(words, "seed") is None and step.num_seeds:
        kept = [change for change in changes if change not in (*listed, "render=off")]
        return [*kept, f"seeds={step.num_seeds}"]
    return [*changes, *(["seeds=1"] if "seeds" in _sweep_file(words) else [])]


def _with_changes(words: Sequence[str], changes: Sequence[str], folder: str) -> str | None:
    """Return a command with changes, for the sweep's own folder; None where it would be refused."""
    keys = {change.partition("=")[0] for change in changes}
    keys |= {"seeds"} if "seed" in keys else set()  # listed seeds take the place of their number
    if keys & _listed_keys(words):
        return None  # one entry of a list gives the key, so it cannot be given for all
    kept = [word for word in words if word.lstrip("+").partition("=")[0] not in keys]
    sweep = _value_of(words, "sweep")
    has_name = _value_of(words, "sweep_name") is not None or sweep == folder or not changes
    # The folder is named by what is swept: one more key, and everything would be trained anew.
    name = [] if has_name else [f"sweep_name={_quoted(folder)}"]
    return resources.command_line("", "-m", *hide_in_arguments(kept), *changes, *name)


def _quoted(value: str) -> str:
    """Return a value that Hydra reads as one text, and not as a list of values."""
    if _PLAIN_VALUE.fullmatch(value.replace(",", "")):
        return value.replace(",", "\\,")
    return "'" + value.replace("'", "\\'") + "'"


def _value_of(words: Sequence[str], key: str) -> str | None:
    values = [word.partition("=")[2] for word in words if word.partition("=")[0] == key]
    return values[-1] if values else None


def _sweep_file(words: Sequence[str]) -> Mapping[str, Any]:
    """Return the sweep of ours that a command names; nothing for another."""
    name = _value_of(words, "sweep") or ""
    path = resources.resource_root() / "sweep" / f"{name}.yaml"
    if not re.fullmatch(r"\w+", name) or not path.is_file():
        return {}
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content if isinstance(content, Mapping) else {}


def _listed_keys(words: Sequence[str]) -> set[str]:
    """Return the keys that the entries of a list of settings give."""
    listed = _sweep_file(words).get("settings") or {}
    texts = [str(text) for text in listed.values()]
    texts += [w.partition("=")[2] for w in words if re.match(r"\+*settings[.=]", w)]
    return {key for text in texts for key in _KEY_IN_SETTINGS.findall(text)}


def _is_search(words: Sequence[str]) -> bool:
    """Return whether a sweeper chose the settings by the losses of those before."""
    defaults = _sweep_file(words).get("defaults") or []
    of_file = any("hydra/sweeper" in str(entry) for entry in defaults)
    return of_file or any(_SEARCHES.match(word.lstrip("+")) for word in words)


def _confirm_tuned(
    trainings: SweepEvidence, standings: Standings, commands: Sequence[Sequence[str]]
) -> Iterator[Advice]:
    """Yield the command that trains the best of every recipe with seeds that chose nothing."""
    best: dict[str, Setting] = {}
    for setting in standings.ordered:
        best.setdefault(setting.recipe, setting)
    entries = []
    for number, setting in enumerate(best.values(), start=1):
        overrides = [
            f"{name}={value}"
            for name, value in zip(standings.factors, setting.values, strict=True)
            if value != "null"
        ]
        if not all(_PLAIN_VALUE.fullmatch(word.partition("=")[2]) for word in overrides):
            return
        entries.append(f'best_{number}:"{" ".join(overrides)}"')
    seeds = {run.row.get("seed") for run in trainings.runs}
    fresh = [str(seed) for seed in range(1, 10) if seed not in seeds][:3]
    if len(commands) != 1 or not entries:
        return
    (words,) = commands
    swept = {*standings.factors, *RATES, "sweep", "seed", "seeds", "sweep_name", "render"}
    kept = [
        word
        for word in [*_of_file(words), *words]
        if (key := word.lstrip("+").partition("=")[0]) not in swept and not key.startswith("hydra")
    ]
    yield Advice(
        text=f"Confirm the best rate of {times(len(best), 'recipe')} with seeds that chose "
        f"nothing: {_cost(len(best) * len(fresh), _mean_seconds(trainings, len(best) * 3))}. "
        "Of many trials at one seed the lowest loss is partly luck:",
        command=resources.command_line(
            "",
            "-m",
            f"settings={{{','.join(entries)}}}",
            *hide_in_arguments(kept),
            f"seed={','.join(fresh)}",
            "render=off",
            f"sweep_name={_quoted(f'{trainings.path.name}-confirmed')}",
        ),
    )


def _of_file(words: Sequence[str]) -> list[str]:
    """Return what a sweep's file sets beside what it sweeps over, as overrides."""
    content = dict(_sweep_file(words))
    overrides = []
    for entry in content.pop("defaults", None) or []:
        for group, option in entry.items() if isinstance(entry, Mapping) else ():
            overrides.append(f"{str(group).removeprefix('override').strip().lstrip('/')}={option}")
    of_sweep = ("hydra", "settings", "seeds")
    plain = {key: value for key, value in content.items() if key not in of_sweep}
    overrides += [f"{key}={value}" for key, value in flatten(plain).items()]
    return overrides


def _mean_seconds(trainings: SweepEvidence, num_runs: int) -> float | None:
    seconds = [float(s) for run in trainings.runs if (s := run.row.get("seconds_total"))]
    return num_runs * sum(seconds) / len(seconds) if seconds else None
