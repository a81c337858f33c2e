"""What a person types and sees: messages, exit codes, the report's path at the end."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from optbench.cli import train as cli
from optbench.config.build import config_yaml
from optbench.config.compose import SweepPlan
from optbench.config.messages import print_problems
from optbench.errors import DamagedFileError, Problem
from optbench.launch import guard
from optbench.records import Status
from optbench.storage import resources, rundir

pytestmark = pytest.mark.usefixtures("fake_assets")


@pytest.fixture
def outcome(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Stand in for training and report: runs end as told, the report is only a path."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    told = types.SimpleNamespace(status={}, stop=False, reports=[], broken=False)

    def fake_launch(arguments: list[str], asked: SweepPlan) -> None:
        if told.stop:
            raise KeyboardInterrupt
        for run in asked.runs:
            status: Status = told.status.get(run.config.network.dim, "done")
            rundir.write_atomic(run.run_dir / "config.yaml", config_yaml(run.config))
            rundir.write_status(run.run_dir, status, "" if status == "done" else "a reason")

    def build_report(sweep_dir: Path) -> Path:
        told.reports.append(sweep_dir)
        if told.broken:
            raise DamagedFileError(Problem("steps", "f", "e", "x"))
        return sweep_dir / "report" / "index.html"

    module: Any = types.ModuleType("optbench.report")
    module.build_report = build_report
    monkeypatch.setitem(sys.modules, "optbench.report", module)
    monkeypatch.setattr(guard, "launch", fake_launch)
    return told


def test_all_done_is_0_and_ends_in_the_reports_path(
    outcome: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["-m", "network.dim=1,2"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == str(Path("runs/network.dim/report/index.html"))
    assert outcome.reports == [Path("runs/network.dim")]


@pytest.mark.usefixtures("outcome")
@pytest.mark.parametrize(
    "arguments",
    [
        ["network.dim=1,2", "-m", "lr_mult=0.5,1"],
        ["network.dim=1,2", "lr_mult=0.5,1", "--multirun"],
        ["~sweep", "-m", "network.dim=1,2", "lr_mult=0.5,1"],
    ],
)
def test_the_flag_of_a_sweep_may_stand_anywhere(arguments: list[str]) -> None:
    assert cli.main(arguments) == 0
    assert len(list(Path("runs/network.dim,lr_mult").iterdir())) == 4


def test_one_not_done_is_1_and_named_with_its_reason(
    outcome: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome.status = {2: "diverged"}
    assert cli.main(["-m", "network.dim=1,2,3"]) == 1
    captured = capsys.readouterr()
    assert "1 of 3 runs are not done" in captured.err
    assert "adamw-dim2-" in captured.err
    assert "diverged: a reason" in captured.err
    assert captured.out.splitlines()[-1].endswith("index.html")


def test_bad_input_is_2_and_leaves_nothing(
    outcome: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["optimizer=adamww", "network.dim=0", "colour=[red]"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "3 problems; nothing was run or written." in captured.err
    for said in ("did you mean optimizer=adamw", "network.dim", "colour"):
        assert said in captured.err
    assert "Traceback" not in captured.err
    assert list(Path().iterdir()) == []
    assert outcome.reports == []


def test_ctrl_c_is_130_with_what_is_left_and_the_command_that_goes_on(
    outcome: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome.stop = True
    assert cli.main(["-m", "network.dim=1,2"]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "Stopped by Ctrl-C."
    assert lines[1:3] == ["2 of 2 runs are not done:", "  pending: not begun"]
    assert lines[-1] == "  python -m optbench -m network.dim=1,2"


def test_a_report_that_cannot_be_built_is_a_message(
    outcome: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome.broken = True
    assert cli.main(["network.dim=1"]) == 1
    assert "steps" in capsys.readouterr().err


def test_brackets_in_a_message_are_text_and_no_markup(
    capsys: pytest.CaptureFixture[str],
) -> None:
    problem = Problem("[w]", "[red]x[/]", "[a,b]", "[f]")
    print_problems([problem], Console(soft_wrap=True))
    out = capsys.readouterr().out
    assert all(part in out for part in ("[red]x[/]", "[a,b]", "[w]", "[f]"))


def test_help_lists_groups_keys_and_sweeps(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in resources.sweep_names():
        assert name in out
    for said in ("optimizer:", "dadaptlion", "lr_mult: 1.0", "sweep=NAME"):
        assert said in out


def test_the_config_of_a_run_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--cfg", "job", "--resolve", "network.dim=64"]) == 0
    assert "alpha: 32.0" in capsys.readouterr().out


def test_the_module_leaves_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from optbench import __main__

    monkeypatch.setattr(__main__, "run_command_line", lambda: 7)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 7
