"""The doctor says what can run here, and finds a recipe that does not do what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli import doctor
from optbench.storage import resources

SGD = (resources.conf_dir() / "optimizer" / "sgdnesterov.yaml").read_text("utf-8")


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    path = folder / "optimizer" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, "utf-8")
    return str(path)


def test_a_good_recipe_of_ones_own_passes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, SGD.replace("name: sgdnesterov", "name: mine"))
    assert doctor.main([path]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mine: importing and running torch.optim.SGD")
    assert resources.command_line("", "--config-dir", str(tmp_path), "optimizer=mine") in printed


def test_a_recipe_may_be_based_on_one_that_ships(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path, "defaults:\n  - lion\n  - _self_\nargs:\n  weight_decay: 0.3\n")
    assert doctor.main([path]) == 0
    assert "runs, tables and reports say lion" in capsys.readouterr().out


def test_a_recipe_that_lies_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, SGD.replace("clip: external", "clip: own"))
    assert doctor.main([path]) == 1
    printed = capsys.readouterr().out
    assert "traits: no" in printed
    assert "one huge gradient moves" in printed
    assert "passes" not in printed


def test_everything_wrong_with_a_file_is_said_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = SGD.replace("lr: ${mul", "rate: ${mul").replace("stepping: plain", "stepping: often")
    assert doctor.main([write(tmp_path, text)]) == 2
    printed = capsys.readouterr().err
    assert "optimizer.rate" in printed
    assert "optimizer.traits.stepping" in printed


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("torch.optim.SGD", "torch.optim.Sgd"), "no Sgd in that module"),
        (("momentum: 0.9", "momentun: 0.9"), "momentun"),
        (("torch.optim.SGD", "no_such_package.SGD"), "pip install torch"),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: tuple[str, str], words: str
) -> None:
    assert doctor.main([write(tmp_path, SGD.replace(*change))]) == 2
    assert words in capsys.readouterr().err


def test_no_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([str(tmp_path / "none.yaml")]) == 2
    assert "copy one of conf/optimizer/" in capsys.readouterr().err


def test_a_class_that_raises_does_not_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Its load_state_dict does: a defect of adv-optm 2.5.16, for which it is not among the recipes.
    text = SGD.replace("torch.optim.SGD", "adv_optm.Lion_adv")
    text = text.replace("  momentum: 0.9\n  nesterov: true\n", "  weight_decay: 0.1\n")
    assert doctor.main([write(tmp_path, text)]) == 1
    assert "the class raises KeyError" in capsys.readouterr().out


def test_without_a_file_every_recipe_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main([]) == 0
    printed = capsys.readouterr().out
    for file in (resources.conf_dir() / "optimizer").glob("*.yaml"):
        assert f" {file.stem} " in printed.replace("\n", " \n ")
