"""What the runs of a command line share is composed once, and equals Hydra's own composition."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from optbench.config.compose import CONFIG_NAME
from optbench.config.composer import Composer, hydra_session
from optbench.config.sweep import expand, sweep_params
from optbench.storage import resources

# But the one whose runs a sweeper plugin makes up.
SWEEPS = [
    name for name, owner in resources.sweep_commands().items() if owner == "" and name != "tuned"
]


def plain_tree(hydra: Composer, lines: list[str]) -> DictConfig:
    tree = hydra.tree(lines, RunMode.RUN)
    with open_dict(tree):
        del tree["hydra"]
    return tree


def assert_as_hydra_composes(hydra: Composer, lines: list[str]) -> None:
    fast, plain = hydra.run_tree(lines), plain_tree(hydra, lines)
    assert OmegaConf.to_container(fast, resolve=False) == OmegaConf.to_container(
        plain, resolve=False
    )
    assert list(fast) == list(plain)
    for key in plain:
        if not OmegaConf.is_missing(plain, key):
            assert OmegaConf.is_struct(fast._get_node(key)) == OmegaConf.is_struct(
                plain._get_node(key)
            )
    assert OmegaConf.is_struct(fast)


def runs_of(hydra: Composer, *arguments: str) -> list[list[str]]:
    master = hydra.tree(list(arguments), RunMode.MULTIRUN)
    lines = [*sweep_params(master, []), *arguments]
    expanded, _ = expand(hydra.hydra.config_loader, master, lines, [])
    return [list(run.overrides) for run in expanded]


@pytest.mark.parametrize("name", SWEEPS)
def test_the_ends_of_every_shipped_sweep(name: str) -> None:
    with hydra_session(None, CONFIG_NAME) as hydra:
        runs = runs_of(hydra, f"sweep={name}")
        assert_as_hydra_composes(hydra, runs[0])
        hydra.run_tree(runs[0])
        assert_as_hydra_composes(hydra, runs[-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", SWEEPS)
def test_all_runs_of_every_shipped_sweep(name: str) -> None:
    with hydra_session(None, CONFIG_NAME) as hydra:
        for run in runs_of(hydra, f"sweep={name}"):
            assert_as_hydra_composes(hydra, run)


@pytest.mark.parametrize(
    "lines",
    [
        ["optimizer=lion", "network.dim=8", "optimizer.lr=1e-4"],
        ["network.dim=8", "optimizer=lion", "optimizer={name: mine}"],
        ["+tracker.args.wandb.mode=offline", "+tracker.args={mlflow: {a: 1}}"],
        ["~optimizer.args.fused", "++optimizer.args.eps=1e-8"],
        ["optimizer.args.betas=[0.5,0.5]", "dataset.class_tokens='a, b'", "seed=${lr_mult}"],
        ["hydra.job.chdir=true", "+hydra.job.env_set.A=1", "seed=3"],
        ["seed=3", "seed=4"],
    ],
)
def test_every_kind_of_override(lines: list[str]) -> None:
    with hydra_session(None, CONFIG_NAME) as hydra:
        assert_as_hydra_composes(hydra, lines)
        hydra.run_tree([*lines, "network.dim=2"])
        assert_as_hydra_composes(hydra, lines)  # the copy of another run changed nothing shared


def test_a_file_of_ones_own_is_read_once_for_all_runs(tmp_path: Path) -> None:
    file = tmp_path / "train" / "mine.yaml"
    file.parent.mkdir()
    text = (resources.conf_dir() / "train" / "default.yaml").read_text()
    file.write_text(text)
    with hydra_session(str(tmp_path), CONFIG_NAME) as hydra:
        hydra.run_tree(["train=mine", "seed=1"])
        file.unlink()
        assert hydra.run_tree(["train=mine", "seed=2"]).seed == 2
