"""Optuna on equal budgets, and what is said where a plugin is missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from optbench.config import launcher
from optbench.config.compose import compose_runs
from optbench.errors import ConfigError
from optbench.storage import resources

PLUGINS = {
    "hydra/launcher=optbench_joblib": "optbench[joblib]",
    "hydra/launcher=optbench_local": "optbench[slurm]",
    "hydra/launcher=optbench_slurm": "optbench[slurm]",
    "hydra/launcher=optbench_ray": "optbench[ray]",
    "hydra/sweeper=optbench_optuna": "optbench[optuna]",
}


@pytest.mark.usefixtures("fake_assets")
@pytest.mark.parametrize("override", PLUGINS)
def test_a_missing_plugin_is_told_with_what_installs_it(
    override: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        compose_runs(["-m", override, f"runs_dir={tmp_path}"])
    (problem,) = caught.value.problems
    assert PLUGINS[override] in problem.fix
    monkeypatch.setattr(launcher, "find_spec", lambda name: object())
    asked = compose_runs(["-m", override, f"runs_dir={tmp_path}"])
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


@pytest.mark.usefixtures("fake_assets")
def test_a_sweep_that_a_plugin_expands_is_named_after_what_it_varies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "find_spec", lambda name: object())
    command = ["-m", "hydra/sweeper=optbench_optuna", "lr_mult=interval(0.1,10)"]
    asked = compose_runs([*command, f"runs_dir={tmp_path}"])
    assert asked.sweep_dir == tmp_path / "lr_mult"


def test_the_ready_files_have_the_keys_their_plugins_take() -> None:
    """Checked against the plugins where they are installed; else against a second writing."""
    files = sorted((resources.conf_dir() / "hydra").glob("*/*.yaml"))
    assert len(files) == len(PLUGINS)
    for file in files:
        text = file.read_text()
        tree = OmegaConf.load(file)
        assert str(tree._target_).startswith("hydra_plugins.hydra_")
        assert "optbench[" in text.splitlines()[0] + text.splitlines()[1]


def test_every_recipe_gets_the_same_number_of_trials_and_a_study_of_its_own() -> None:
    optuna = pytest.importorskip("optuna")
    from optbench.launch.optuna import EqualBudgets

    best = {"a": 0.1, "b": 10.0, "c": 1.0}

    def tune() -> list[tuple[str, float]]:
        sampler = EqualBudgets(over="optimizer", seed=1, num_startup_trials=4)
        study = optuna.create_study(sampler=sampler)
        tried = []
        for _ in range(45):
            trial = study.ask()
            name = trial.suggest_categorical("optimizer", list(best))
            rate = trial.suggest_float("lr_mult", 0.01, 100, log=True)
            tried.append((name, rate))
            # "a" is better than all others whatever its rate: a single study would stay with it.
            loss = abs(__import__("math").log10(rate / best[name])) + (0 if name == "a" else 10)
            study.tell(trial, loss)
        return tried

    tried = tune()
    assert [name for name, _ in tried] == ["a", "b", "c"] * 15
    for name, rate in best.items():
        closest = min(abs(one / rate - 1) for which, one in tried if which == name)
        assert closest < 0.5, name
    firsts = [{rate for name, rate in tried[:12] if name == which} for which in best]
    assert firsts[0] == firsts[1] == firsts[2]  # the same random start for each
    assert tune() == tried  # the same command finds its runs
