"""Optuna on equal budgets: what it asks for, what it hears, what is said where it is missing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from optbench.config import launcher
from optbench.config.compose import compose_runs
from optbench.config.search import Interval, SearchEntries, SearchOptions
from optbench.errors import ConfigError, Problem
from optbench.storage import resources

optuna = pytest.importorskip("optuna")
from optbench.launch.optuna import STORAGE_NAME, Search, report, run_searches  # noqa: E402

PLUGINS = {
    "hydra/launcher=optbench_joblib": "optbench[joblib]",
    "hydra/launcher=optbench_local": "optbench[slurm]",
    "hydra/launcher=optbench_slurm": "optbench[slurm]",
    "hydra/launcher=optbench_ray": "optbench[ray]",
    "hydra/sweeper=optbench_optuna": "optbench[optuna]",
}
SEARCHED = "lr_mult=tag(log,interval(0.2,5))"
OPTIONS = SearchOptions(
    trials=9,
    studies=1,
    sampler="tpe",
    startup_trials=4,
    rungs=(1, 2),
    draws=1234,
    target="",
    max_batch_size=None,
    params=None,
)
RATE = {"lr_mult": Interval(low=0.2, high=5, is_log=True, is_whole=False)}
BEST = {"adamw": 0.4, "lion": 1.5, "came": 4.0}


def rate_of(overrides: Sequence[str]) -> float:
    (rate,) = (float(line.partition("=")[2]) for line in overrides if line.startswith("lr_mult="))
    return rate


def epoch_of(overrides: Sequence[str]) -> int:
    (until,) = (line.partition("=")[2] for line in overrides if line.startswith("launch.until"))
    return 6 if until == "null" else int(until)


def loss_of(name: str, rate: float, epoch: int) -> float:
    """Return a loss that falls with the epochs, the least at the recipe's best rate."""
    off = abs(math.log(rate / BEST[name]))
    return -0.03 * epoch / 6 + 0.01 * off + (0.1 if name == "came" else 0.0)


def entries(**changes: Any) -> SearchEntries:
    return SearchEntries(
        options=dataclasses.replace(OPTIONS, **changes),
        combinations={name: (f"optimizer={name}",) for name in BEST},
        space=RATE,
        varied=["optimizer", "lr_mult"],
        seed=1234,
    )


class Runs:
    """Stands for Hydra's launcher: returns losses, and remembers what was launched."""

    def __init__(self, loss: Callable[[Sequence[str]], float | None] | None = None) -> None:
        self.launched: list[list[str]] = []
        self._loss = loss or self._usual

    @staticmethod
    def _usual(overrides: Sequence[str]) -> float:
        name = overrides[0].partition("=")[2]
        return loss_of(name, rate_of(overrides), epoch_of(overrides))

    def __call__(self, batch: list[list[str]], initial_job_idx: int) -> list[Any]:
        assert initial_job_idx == len(self.launched)
        self.launched += batch
        return [SimpleNamespace(return_value=self._loss(overrides)) for overrides in batch]

    def epochs(self, name: str) -> int:
        """Return how many epochs a combination trained: a rung continues the same run."""
        by_run: dict[float, int] = {}
        for overrides in self.launched:
            if overrides[0] == f"optimizer={name}":
                by_run[rate_of(overrides)] = max(
                    by_run.get(rate_of(overrides), 0), epoch_of(overrides)
                )
        return sum(by_run.values())


TASK: Any = SimpleNamespace(queue=None)


def test_every_recipe_gets_as_many_trials_and_finds_its_own_rate(tmp_path: Path) -> None:
    runs = Runs()
    run_searches(entries(trials=15), TASK, runs, tmp_path)
    rates = {
        name: list(
            dict.fromkeys(rate_of(line) for line in runs.launched if line[0] == f"optimizer={name}")
        )
        for name in BEST
    }
    assert len({len(of_name) for of_name in rates.values()}) == 1  # came is worse at every rate
    firsts = {tuple(of_name[:4]) for of_name in rates.values()}
    assert len(firsts) == 1  # the same start for each
    for name, best in BEST.items():
        assert min(abs(math.log(rate / best)) for rate in rates[name]) < 0.2, name
        assert all(0.2 <= rate <= 5 for rate in rates[name])


def test_the_same_command_asks_the_same_again(tmp_path: Path) -> None:
    first, again = Runs(), Runs()
    run_searches(entries(), TASK, first, tmp_path)
    run_searches(entries(), TASK, again, tmp_path)
    assert first.launched == again.launched


def test_what_is_worse_than_the_median_stops_at_a_rung(tmp_path: Path) -> None:
    pruned, whole = Runs(), Runs()
    run_searches(entries(), TASK, pruned, tmp_path)
    run_searches(entries(rungs=()), TASK, whole, tmp_path)
    assert [whole.epochs(name) for name in BEST] == [9 * 6] * 3
    assert all(pruned.epochs(name) < 9 * 6 for name in BEST)
    assert sum(map(pruned.epochs, BEST)) < 0.85 * 3 * 9 * 6
    assert all(epoch_of(line) == 6 for line in whole.launched)


def test_a_broken_run_ends_its_trial_at_once_and_is_never_the_best() -> None:
    search = Search("lion", space=RATE, options=OPTIONS, number=0)
    assert search.due is not None
    assert epoch_of(search.due) == 1
    first = search.due
    search.hear(math.inf)
    assert search.due is not None
    assert rate_of(search.due) != rate_of(first)
    assert search.best is None


def test_a_run_of_another_worker_is_waited_for(tmp_path: Path) -> None:
    runs = Runs(lambda overrides: math.nan if overrides[0] == "optimizer=lion" else -0.01)
    run_searches(entries(), TASK, runs, tmp_path)
    assert sum(line[0] == "optimizer=lion" for line in runs.launched) == 1
    search = Search("lion", space=RATE, options=OPTIONS, number=0)
    search.hear(math.nan)
    (line,) = report(dataclasses.replace(entries(), combinations={"lion": ()}), [search])
    assert "not finished" in line


def test_a_study_has_its_own_seed_and_the_result_is_the_median(tmp_path: Path) -> None:
    runs = Runs()
    search = entries(sampler="quasirandom", trials=5, studies=3, rungs=())
    run_searches(search, TASK, runs, tmp_path)
    of_lion = [line for line in runs.launched if line[0] == "optimizer=lion"]
    by_seed: dict[str, list[float]] = {}
    for line in of_lion:
        by_seed.setdefault(line[-1], []).append(rate_of(line))
    assert {seed: len(rates) for seed, rates in by_seed.items()} == {
        f"seed={1234 + number}": 5 for number in range(3)
    }
    assert len({tuple(rates) for rates in by_seed.values()}) == 3  # each with points of its own
    for rates in by_seed.values():
        assert min(rates) < 1 < max(rates)  # five points reach both halves
    best = sorted(min(loss_of("lion", rate, 6) for rate in rates) for rates in by_seed.values())
    searches = [
        Search("lion", space=RATE, options=search.options, number=number) for number in range(3)
    ]
    for one in searches:
        while one.due is not None:
            one.hear(loss_of("lion", rate_of(one.due), 6))
    (line,) = report(
        dataclasses.replace(search, combinations={"lion": ("optimizer=lion",)}), searches
    )
    assert f"loss {best[1]:.4f}" in line


def test_what_was_found_is_said_with_a_command_for_fresh_seeds() -> None:
    search = Search("lion", space=RATE, options=OPTIONS, number=0)
    while search.due is not None:
        search.hear(loss_of("lion", rate_of(search.due), epoch_of(search.due)))
    found, command = report(
        dataclasses.replace(entries(), combinations={"lion": ("optimizer=lion",)}), [search]
    )
    assert search.best is not None
    assert search.best[1][0] in found
    assert f'lion: "optimizer=lion {search.best[1][0]}"' in command
    assert "seed=1235,1236" in command


def test_runs_side_by_side_are_made_before_they_are_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue: list[Any] = []

    def launch(batch: list[list[str]], initial_job_idx: int) -> list[Any]:
        queue.extend(
            SimpleNamespace(plan=SimpleNamespace(run_dir=line, until_epoch=None)) for line in batch
        )
        return [SimpleNamespace(return_value=None) for _ in batch]

    made: list[Sequence[str]] = []

    def run_queue() -> None:
        made.extend(job.plan.run_dir for job in queue)
        queue.clear()

    def loss(run_dir: Sequence[str], until_epoch: int | None) -> float:
        assert run_dir in made
        return Runs._usual(run_dir)

    monkeypatch.setattr("optbench.launch.optuna.objective", loss)
    task: Any = SimpleNamespace(queue=queue, run_queue=run_queue)
    run_searches(entries(rungs=()), task, launch, tmp_path)
    assert len(made) == 27


def test_optunas_own_tools_can_read_what_was_found(tmp_path: Path) -> None:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    for _ in range(2):  # written anew, never added to
        run_searches(entries(), TASK, Runs(), tmp_path)
    assert [file.name for file in tmp_path.iterdir() if "lock" not in file.name] == [STORAGE_NAME]
    storage = JournalStorage(JournalFileBackend(str(tmp_path / STORAGE_NAME)))
    names = optuna.get_all_study_names(storage)
    assert sorted(names) == ["adamw 1", "came 1", "lion 1"]
    study = optuna.load_study(study_name="lion 1", storage=storage)
    assert len(study.trials) == 9
    assert study.best_params["lr_mult"] == pytest.approx(1.5, rel=0.6)


@pytest.mark.usefixtures("fake_assets")
@pytest.mark.parametrize("override", PLUGINS)
def test_a_missing_plugin_is_told_with_what_installs_it(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched = [SEARCHED] if "sweeper" in override else []
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        compose_runs(["-m", override, *searched, f"runs_dir={tmp_path}"])
    (problem,) = caught.value.problems
    assert PLUGINS[override] in problem.fix
    monkeypatch.setattr(launcher, "find_spec", lambda name: object())
    asked = compose_runs(["-m", override, *searched, f"runs_dir={tmp_path}"])
    assert asked.is_local == ("sweeper" in override)
    assert asked.is_complete == ("launcher" in override)


@pytest.mark.usefixtures("fake_assets")
def test_workers_of_ours_beside_a_plugins_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: object())
    with pytest.raises(ConfigError) as caught:
        compose_runs(["-m", "hydra/launcher=optbench_joblib", "launch.workers=2"])
    assert [problem.where for problem in caught.value.problems] == ["launch.workers"]


def problems_of(*arguments: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compose_runs(["-m", "hydra/sweeper=optbench_optuna", *arguments])
    return caught.value.problems


@pytest.mark.usefixtures("fake_assets")
def test_a_search_is_planned_with_an_example_of_every_combination(tmp_path: Path) -> None:
    command = ["-m", "hydra/sweeper=optbench_optuna", "optimizer=adamw,lion", SEARCHED]
    asked = compose_runs([*command, "network.dim=8,16", f"runs_dir={tmp_path}"])
    assert asked.sweep_dir == tmp_path / "optimizer,network.dim,lr_mult"
    assert [run.config.lr_mult for run in asked.runs] == [0.2] * 4
    assert asked.search is not None
    assert list(asked.search.combinations) == ["adamw 8", "adamw 16", "lion 8", "lion 16"]
    assert asked.search.num_runs == 4 * 9


@pytest.mark.usefixtures("fake_assets")
@pytest.mark.parametrize(
    ("arguments", "where", "fix"),
    [
        (["optimizer=adamw,lion"], "hydra/sweeper", "interval(0.2,5)"),
        ([SEARCHED, "seed=1,2"], "seed", "hydra.sweeper.studies=3"),
        ([SEARCHED, "seed=interval(1,9)"], "seed", "hydra.sweeper.studies=3"),
        (["lr_mult=interval(5,0.2)"], "lr_mult", "interval(0.2,5)"),
        ([SEARCHED, "hydra.sweeper.sampler=cma"], "hydra.sweeper.sampler", "tpe"),
        ([SEARCHED, "hydra.sweeper.trials=0"], "hydra.sweeper.trials", "trials=1"),
        ([SEARCHED, "validate=off"], "validate", "validate=off"),
        ([SEARCHED, "optimizer=adafactor_auto,adamw"], "lr_mult", "leave it out"),
    ],
)
def test_a_search_that_cannot_answer_is_refused(arguments: list[str], where: str, fix: str) -> None:
    problems = problems_of(*arguments)
    assert where in [problem.where.partition(" ")[0] for problem in problems]
    assert any(fix in problem.fix for problem in problems)


def test_the_ready_files_have_the_keys_their_plugins_take() -> None:
    """Checked against the plugins where they are installed; else against a second writing."""
    files = sorted((resources.conf_dir() / "hydra" / "launcher").glob("*.yaml"))
    assert len(files) == len(PLUGINS) - 1
    for file in files:
        text = file.read_text()
        tree = OmegaConf.load(file)
        assert str(tree._target_).startswith("hydra_plugins.hydra_")
        assert "optbench[" in text.splitlines()[0] + text.splitlines()[1]
