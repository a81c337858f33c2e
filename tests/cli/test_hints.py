"""Names of other trainers on the command line: what they are here, or why they are not needed."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from optbench.cli import main as cli
from optbench.cli.trainers.options import options


def refused(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["plan", *arguments]) == 2
    return " ".join(capsys.readouterr().err.split())


KOHYA = {
    "learning_rate=1e-4": "optimizer.lr=VALUE here; lr_mult=",
    "max_train_epochs=3": "train.epochs=VALUE",
    "train_batch_size=2": "train.batch_size=VALUE",
    "train_data_dir=x": "dataset.dir=VALUE here, with dataset=folder",
    "pretrained_model_name_or_path=x": "base.path=VALUE",
    "network_dim=8": "network.dim=VALUE",
    "optimizer_type=Lion": "kohya's optimizer_type is optimizer=VALUE here",
    "rank=32": "write network.dim=VALUE",
    "network.rank=32": "write network.dim=VALUE",
    "output_dir=x": "kohya's output_dir is not needed here",
    "train.epoch=5": "did you mean train.epochs",
}


def test_every_habit_is_understood_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(list(KOHYA), capsys)
    assert f"{len(KOHYA)} problems" in said
    for words in KOHYA.values():
        assert words in said, words


def test_a_flag_is_a_setting_with_dashes(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(["--optimizer", "adamw", "--learning_rate=1e-4", "--cfg", "job"], capsys)
    assert "usage:" not in said
    assert "2 problems" in said
    assert "settings as key=value, without dashes" in said
    assert "optimizer.lr=VALUE" in said
    assert "write optimizer=adamw;" in said


def test_a_blank_behind_a_comma_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["-m", "optimizer=adamw,", "lion"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "write optimizer=adamw,lion" in said
    assert "mismatched input" not in refused(["-m", "optimizer=adamw,"], capsys)


def test_what_hydra_knows_stays_hydras(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--cfg", "job", "--package", "seed"]) == 0
    capsys.readouterr()


def test_every_option_of_kohya_is_something_here_or_said_not_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A name that is ours too, like `seed`, needs no hint."""
    from optbench.cli.hints import with_hints
    from optbench.config.messages import unknown_key

    problems = [unknown_key(name, ["base", "network"]) for name in options()]
    for name, problem in zip(options(), with_hints(problems), strict=True):
        assert "optbench train --help" not in problem.fix, name
        assert "ours" not in problem.fix
