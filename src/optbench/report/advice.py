"""Put the next steps of a sweep into words, each with the command to type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.next_steps import Reason, next_steps
from optbench.analysis.standings import Standings
from optbench.report.wording import times
from optbench.storage.resources import command_line
from optbench.storage.secrets import hide_in_arguments

_MAX_COMMANDS = 4
_TEXTS: Mapping[Reason, str] = {
    "unfinished": "Finish the sweep (finished runs are skipped):",
    "diverged": "Some runs diverged; try lower rates:",
    "out_of_memory": "Some runs ran out of memory; trade speed for memory:",
    "nothing_to_compare": "Compare it with another optimizer, with enough seeds to rule out luck:",
    "no_held_out_validation": "Measure the validation loss on held-out images (nothing is "
    "retrained):",
    "no_validation": "Measure a validation loss; better still on held-out images "
    "(validate.dir=FOLDER):",
    "few_seeds": "Repeat with more seeds ({seeds} now):",
    "rates_untuned": "Tune the learning rate of every optimizer:",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """One next step in words, and the command for it."""

    text: str
    command: str


def advise(trainings: SweepEvidence, standings: Standings) -> Iterator[Advice]:
    """Yield the next steps, the most useful first."""
    for step in next_steps(trainings.frames, standings):
        if step.reason == "nothing_to_compare":
            command = command_line(
                "", "-m", "optimizer=adamw,lion", "seed=1,2,3", "validate=default"
            )
        else:
            command = command_of(trainings, *step.overrides)
        text = _TEXTS[step.reason].format(seeds=times(standings.num_seeds, "seed"))
        yield Advice(text=text, command=command)


def command_of(trainings: SweepEvidence, *changes: str) -> str:
    """Return the commands that made the sweep, each with the changes, as they can be typed.

    Where runs do not say them, or were made by many, it is one command of what they vary.
    """
    runs = sorted(trainings.runs, key=lambda run: run.number)
    stored = [run.provenance.get("command") for run in runs]
    commands = [tuple(map(str, words)) for words in stored if isinstance(words, list) and words]
    distinct = list(dict.fromkeys(commands))
    if len(commands) < len(stored) or not 1 <= len(distinct) <= _MAX_COMMANDS:
        varied = [f"{name}={','.join(values)}" for name, values in trainings.factors.items()]
        return _with_changes(varied, changes)
    return "\n".join(_with_changes(words, changes) for words in distinct)


def _with_changes(words: Sequence[str], changes: Sequence[str]) -> str:
    changed = {change.partition("=")[0] for change in changes}
    # A program's name may stand first: it was stored as it was typed.
    is_name = bool(words) and "=" not in words[0] and not words[0].startswith("-")
    overrides = [
        word
        for word in words[1 if is_name else 0 :]
        if word.partition("=")[0] not in (*changed, "-m", "--multirun")
        and not word.lstrip("+~").startswith("hydra.")  # what the sweep's own start has added
    ]
    return command_line("", "-m", *hide_in_arguments(overrides), *changes)
