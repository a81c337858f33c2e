"""Search settings with Optuna: ask, train until a rung, report, prune or go on, tell.

Every combination of what is listed has studies of its own and as many trials as every other. A
study is seeded and what came out is read from the runs, so a command that was killed asks the same
again and finds its runs: the file for Optuna's own tools is written, and never read.
"""

from __future__ import annotations

import math
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import MedianPruner, NopPruner
from optuna.samplers import BaseSampler, QMCSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from optbench.config.search import Interval, SearchEntries, SearchOptions
from optbench.launch.objective import objective
from optbench.terminal import tell

if TYPE_CHECKING:
    from optbench.launch.guard import RunTask

STORAGE_NAME = "optuna.log"
Launch = Callable[..., Sequence[Any]]  # Hydra's launcher: batches of overrides, the first's number


class Search:
    """One study: asks for one run at a time, and hears what came out."""

    def __init__(
        self, name: str, *, space: Mapping[str, Interval], options: SearchOptions, number: int
    ) -> None:
        """Begin study `number` of a combination; equal arguments propose equal values."""
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else a line per study
        self.name = name
        self.number = number
        self.epochs = 0  # trained in all its trials
        self.is_waiting = False  # for a run that another worker has, or that somebody stopped
        self._space = space
        self._options = options
        startup = options.startup_trials
        pruner = MedianPruner(n_startup_trials=startup) if options.rungs else NopPruner()
        sampler = _sampler(options, options.draws + number)
        self.study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner)
        self._rungs: list[int | None] = []
        self._trial: Trial | None = None
        self._values: tuple[str, ...] = ()
        self._ask()

    @property
    def due(self) -> tuple[str, ...] | None:
        """What the next run is made with: the proposed values, and until which epoch it is trained.

        None after the last trial, or while a run of it is another worker's.
        """
        if self._trial is None or self.is_waiting:
            return None
        until = self._rungs[0]
        return (*self._values, f"launch.until_epoch={'null' if until is None else until}")

    @property
    def best(self) -> tuple[float, tuple[str, ...]] | None:
        """The lowest loss of a trial that was trained to its end, and its values."""
        done = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        finite = [trial for trial in done if trial.value is not None and math.isfinite(trial.value)]
        if not finite:
            return None
        best = min(finite, key=lambda trial: float(trial.value or 0.0))
        assert best.value is not None
        return best.value, tuple(best.user_attrs["values"])

    @property
    def num_pruned(self) -> int:
        """How many trials were stopped at a rung."""
        return len(self.study.get_trials(deepcopy=False, states=(TrialState.PRUNED,)))

    def hear(self, loss: float) -> None:
        """Take the loss of the run that was due; NaN: it is not there yet."""
        if math.isnan(loss):
            self.is_waiting = True
            return
        assert self._trial is not None
        until = self._rungs.pop(0)
        if until is not None and math.isfinite(loss):
            self._trial.report(loss, until)
            if not self._trial.should_prune():
                return
            self.study.tell(self._trial, state=TrialState.PRUNED)
        else:
            # A run that broke at a rung is told at once: nothing is left to train.
            self.study.tell(self._trial, loss)
        self._ask()

    def _ask(self) -> None:
        self._trial = None
        if len(self.study.trials) == self._options.trials:
            return
        trial = self.study.ask()
        values = []
        for key, interval in self._space.items():
            if interval.is_whole:
                low, high = round(interval.low), round(interval.high)
                value: float = trial.suggest_int(key, low, high, log=interval.is_log)
            else:
                value = trial.suggest_float(key, interval.low, interval.high, log=interval.is_log)
            values.append(f"{key}={interval.typed(value)}")
        trial.set_user_attr("values", values)
        self._trial, self._values = trial, tuple(values)
        self._rungs = [*self._options.rungs, None]


def _sampler(options: SearchOptions, seed: int) -> BaseSampler:
    if options.sampler == "tpe":
        return TPESampler(seed=seed, n_startup_trials=options.startup_trials)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        # Shifted at random, so that studies of one combination see other points.
        return QMCSampler(qmc_type="halton", scramble=True, seed=seed)


def run_searches(
    search: SearchEntries, task: RunTask, launch: Launch, sweep_dir: Path
) -> list[Sequence[Any]]:
    """Launch what every study asks for until none asks for more; return Hydra's jobs.

    Args:
        search: What is searched.
        task: What Hydra does with each run: it returns its loss, or queues it.
        launch: The launcher's.
        sweep_dir: Gets the file for Optuna's own tools.
    """
    searches = [
        Search(name, space=search.space, options=search.options, number=number)
        for name in search.combinations
        for number in range(search.options.studies)
    ]
    jobs: list[Sequence[Any]] = []
    try:
        while active := [one for one in searches if one.due is not None]:
            for some in _batches(active, search.options.max_batch_size):
                runs = [_overrides(search, one) for one in some]
                returned = launch(runs, initial_job_idx=sum(map(len, jobs)))
                jobs.append(returned)
                losses = [job.return_value for job in returned]  # raises what a worker raised
                if task.queue:
                    queued = [job.plan for job in task.queue]
                    task.run_queue()
                    losses = [objective(plan.run_dir, plan.until_epoch) for plan in queued]
                for one, loss in zip(some, losses, strict=True):
                    one.hear(loss)
    finally:
        _store(searches, sweep_dir / STORAGE_NAME)
    for line in report(search, searches):
        tell(line)
    return jobs


def _overrides(search: SearchEntries, one: Search) -> list[str]:
    assert one.due is not None
    seed = [f"seed={search.seed + one.number}"] if search.options.studies > 1 else []
    return [*search.combinations[one.name], *one.due, *seed]


def _batches(searches: Sequence[Search], size: int | None) -> Iterator[Sequence[Search]]:
    size = size or len(searches)
    for start in range(0, len(searches), size):
        yield searches[start : start + size]


def report(search: SearchEntries, searches: Sequence[Search]) -> Iterator[str]:
    """Yield a line for every combination: its best values, and what they were worth."""
    found = {}
    for name in search.combinations:
        of_name = [one for one in searches if one.name == name]
        bests = [best for one in of_name if (best := one.best) is not None]
        pruned = sum(one.num_pruned for one in of_name)
        if any(one.is_waiting for one in of_name):
            yield f"search: {name}: not finished; the same command goes on"
        elif not bests:
            yield f"search: {name}: no trial came to a sound LoRA"
        elif len(of_name) == 1:
            ((loss, values),) = bests
            found[name] = values
            yield (
                f"search: {name}: {' '.join(values)} is the best of {search.options.trials} "
                f"trials, loss {loss:.4f}; {pruned} stopped early"
            )
        else:
            losses = sorted(loss for loss, _ in bests)
            # Without a sound trial a study has no best, and counts as worse than all others.
            losses += [math.inf] * (len(of_name) - len(losses))
            yield (
                f"search: {name}: median of the best of {len(of_name)} studies of "
                f"{search.options.trials} trials, loss {statistics.median(losses):.4f} "
                f"({', '.join(f'{loss:.4f}' for loss in losses)})"
            )
    if found:
        fresh = f"seed={search.seed + 1},{search.seed + 2}"
        entries = ", ".join(
            f'{name.replace(" ", "_")}: "{" ".join((*_varied(search, name), *values))}"'
            for name, values in found.items()
        )
        yield (
            "search: one seed chose these; train them with fresh ones: "
            f"-m {fresh} 'settings={{{entries}}}'"
        )


def _varied(search: SearchEntries, name: str) -> list[str]:
    """Return the overrides that tell a combination from the others."""
    others = [set(lines) for other, lines in search.combinations.items() if other != name]
    return [
        line for line in search.combinations[name] if not all(line in lines for lines in others)
    ] or list(search.combinations[name] if not others else [])


def _store(searches: Sequence[Search], path: Path) -> None:
    """Write all studies for Optuna's own tools, whole or not at all."""
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = JournalStorage(JournalFileBackend(str(beside)))
    for one in searches:
        study = optuna.create_study(
            study_name=f"{one.name} {one.number + 1}", storage=storage, direction="minimize"
        )
        study.add_trials(one.study.get_trials(deepcopy=False))
    beside.replace(path)
