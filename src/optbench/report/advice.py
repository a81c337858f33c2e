"""What would make a sweep's answer surer, with the command to type."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optbench.analysis.evidence import SweepEvidence
from optbench.analysis.standings import BROKEN, DONE, RATES, Standings
from optbench.report.wording import times

_ENOUGH_SEEDS = 3
_MAX_COMMANDS = 4
_EMBEDDED = "mirelle"  # the data set with held-out pictures of its own: validate=held_out
_MANY_SEEDS = 6  # fewer pairs than six can never have a sign test below 5 %


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """What would make the answer surer, and what to type."""

    text: str
    command: str


def surer(trainings: SweepEvidence, standings: Standings) -> Iterator[Advice]:
    """Yield what to type next, the most useful first."""
    statuses = Counter(str(run.row["status"]) for run in trainings.runs)
    if any(status not in (DONE, *BROKEN) for status in statuses):
        yield Advice(
            text="Finish the sweep; what is done is not done again:", command=command_of(trainings)
        )
    takes_rates = _take_rates(trainings)
    if statuses["diverged"] and takes_rates:
        yield Advice(
            text="Some runs diverged; try lower rates:",
            command=command_of(trainings, "lr_mult=0.1,0.3,1"),
        )
    if statuses["out_of_memory"]:
        yield Advice(
            text="Some ran out of memory; trade time for it:",
            command=command_of(trainings, "train.gradient_checkpointing=true"),
        )
    if len(standings.settings) == 1:
        yield Advice(
            text="Compare it with something, with seeds enough to tell luck:",
            command="python -m optbench -m optimizer=adamw,lion seed=1,2,3 validate=default",
        )
    if standings.finished:
        yield from _validation(trainings, standings)
    wanted = _more_seeds(trainings, standings)
    if wanted:
        yield Advice(
            text=f"Repeat with more seeds ({times(standings.num_seeds, 'seed')} now):",
            command=command_of(trainings, f"seed={','.join(map(str, wanted))}"),
        )
    is_tuned = any(name in trainings.factors for name in RATES)
    if standings.finished and takes_rates and not is_tuned:
        yield Advice(
            text="Give every optimizer the rate that suits it:",
            command=command_of(trainings, "lr_mult=0.3,1,3"),
        )


def _take_rates(trainings: SweepEvidence) -> bool:
    """Return whether lr_mult is no mistake: a class that finds its own rates would ignore it."""
    roles = {run.row.get("optimizer.traits.lr_role") for run in trainings.runs}
    return "automatic" not in roles


def _validation(trainings: SweepEvidence, standings: Standings) -> Iterator[Advice]:
    """Yield how to measure on pictures that no run has seen; nothing is trained again."""
    if {run.row.get("dataset") for run in trainings.runs} == {_EMBEDDED}:
        if standings.measure != "validation_held_out":
            yield Advice(
                text="Measure a validation loss on pictures kept out of training; "
                "nothing is trained again:",
                command=command_of(trainings, "validate=held_out"),
            )
    elif standings.measure == "final_loss":
        yield Advice(
            text="Measure a validation loss; better still with pictures kept out of training "
            "(validate.dir=FOLDER):",
            command=command_of(trainings, "validate=default"),
        )


def _more_seeds(trainings: SweepEvidence, standings: Standings) -> list[int]:
    """Return the seeds to ask for next: those there are first, so that their runs are not lost."""
    is_settled = standings.is_ranked and len(standings.best) == 1
    if len(standings.finished) < 2 or (is_settled and standings.num_seeds >= _ENOUGH_SEEDS):
        return []
    known = {run.row.get("seed") for run in trainings.runs}
    seeds = sorted(one for one in known if isinstance(one, int))
    aim = _ENOUGH_SEEDS if standings.num_seeds < _ENOUGH_SEEDS else _MANY_SEEDS
    fresh = (one for one in range(1, 100) if one not in seeds)
    while len(seeds) < aim:
        seeds.append(next(fresh))
    return seeds if len(seeds) > standings.num_seeds else []


def command_of(trainings: SweepEvidence, *changes: str) -> str:
    """Return the commands that made the sweep, each with the changes, as they can be typed.

    Where runs do not say them, or were made by many, it is one command of what they vary.
    """
    runs = sorted(trainings.runs, key=lambda run: int(run.anchor.partition("-")[2]))
    said = [run.provenance.get("command") for run in runs]
    commands = [tuple(map(str, one)) for one in said if isinstance(one, list) and one]
    distinct = list(dict.fromkeys(commands))
    if len(commands) < len(said) or not 1 <= len(distinct) <= _MAX_COMMANDS:
        varied = [f"{name}={','.join(values)}" for name, values in trainings.factors.items()]
        return _typed(varied, changes)
    return "\n".join(_typed(_arguments(words), changes) for words in distinct)


def _arguments(words: Sequence[str]) -> list[str]:
    """Return a command without the program's name, which stands first where it was typed."""
    is_name = "=" not in words[0] and not words[0].startswith("-")
    return list(words[1:] if is_name else words)


def _typed(words: Sequence[str], changes: Sequence[str]) -> str:
    asked = {change.partition("=")[0] for change in changes}
    kept = [
        word
        for word in words
        if word.partition("=")[0] not in (*asked, "-m", "--multirun")
        and not word.startswith("hydra.")  # what the sweep's own start has added
    ]
    return shlex.join(["python", "-m", "optbench", "-m", *kept, *changes])
