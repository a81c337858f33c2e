"""What a person types and sees: messages, exit codes, the report's path at the end."""

from __future__ import annotations

import re
import subprocess
import sys
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from optbench import schema
from optbench.cli import help as cli_help
from optbench.cli import main as cli
from optbench.cli.commands import COMMANDS
from optbench.config.build import config_yaml
from optbench.config.compose import SweepPlan
from optbench.config.messages import print_problems
from optbench.errors import DamagedFileError, Problem
from optbench.launch import guard
from optbench.records import Status
from optbench.storage import files, resources, rundir

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
            files.write_atomic(run.run_dir / "config.yaml", config_yaml(run.config))
            rundir.write_status(run.run_dir, status, "" if status == "done" else "a reason")

    def build_report(sweep_dir: Path) -> Path:
        told.reports.append(sweep_dir)
        if told.broken:
            raise DamagedFileError(Problem("steps", "f", "e", "x"))
        return sweep_dir / "report" / "index.html"

    monkeypatch.setattr("optbench.report.build_report", build_report)
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
    assert len(list(Path("runs/network.dim,lr_mult").glob("*/config.yaml"))) == 4


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
    # The report of what there is comes all the same, and lists what was to come.
    assert captured.out.splitlines() == ["runs/network.dim/report/index.html"]
    assert outcome.reports == [Path("runs/network.dim")]
    assert len(list(Path("runs/network.dim").glob("*/config.yaml"))) == 2
    lines = captured.err.splitlines()
    stopped = lines.index("Stopped by Ctrl-C.")
    assert "/report/index.html" in lines[0]
    unfinished = lines.index("2 of 2 runs are not done:")
    assert stopped < unfinished
    assert lines[unfinished + 1] == "  pending: not started"
    assert lines[-1] == f"  {resources.program()} -m network.dim=1,2"


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


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
@pytest.mark.usefixtures("outcome")
def test_the_overview_lists_every_command_and_trains_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    for name, info in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(info.line)}$", out, re.MULTILINE)
    assert f"{resources.program()} sweep=demo" in out
    assert list(Path().iterdir()) == []


@pytest.mark.usefixtures("outcome")
@pytest.mark.parametrize(
    ("arguments", "usage"),
    [
        (["plan", "--help"], "plan [-m]"),
        (["--help", "plan"], "plan [-m]"),
        (["network.dim=4", "--help"], "[-m]"),
        (["render", "a.safetensors", "-h"], "render LORA_OR_RUN"),
        (["verify", "--help"], "verify [RUNS_DIR"),
    ],
)
def test_help_may_stand_anywhere(
    arguments: list[str], usage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out.startswith(f"usage: {resources.program()} {usage}")
    assert list(Path().iterdir()) == []


def test_the_help_of_a_command_explains_settings_and_sweeps(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["train", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "network.dim=16 rank of the LoRA" in out
    assert "dadaptlion" in out
    assert "lr_scheduler=rex The rate falls late" in out
    for name, question in cli_help.sweep_questions("").items():
        assert f"{name} {question}" in out
    assert cli.main(["resize", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "source=(must be given) a LoRA file" in out
    assert "resize_ratio how small" in out


def test_a_word_behind_help_selects_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "--help", "warmup"]) == 0
    out = capsys.readouterr().out
    assert "lr_scheduler.warmup_steps" in out
    assert "network.dim" not in out
    assert "usage" not in out


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_of_help_is_wider_than_the_terminal_except_commands_to_copy(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for arguments in ([], *([name, "--help"] for name in COMMANDS)):
        assert cli.main(arguments) == 0
        for line in capsys.readouterr().out.splitlines():
            assert len(line) <= width or resources.program() in line


def test_every_setting_has_an_explanation() -> None:
    for config in ("config", "plot", "regularize", "resize"):
        groups = cli_help.groups_of(config)
        missing = [one.key for group in groups for one in group.settings if not one.words]
        assert not missing, config
        for group in groups:
            if group.name != "optimizer":  # docs/optimizers.md has their table
                assert all(group.options.values()), group.name
    # What only a recipe's author types is explained in the file to start from.
    recipe = resources.conf_dir() / "optimizer" / "adamw.yaml"
    assert all(one.words for one in cli_help.settings_of(recipe, prefix="optimizer."))


def test_every_choice_of_a_setting_stands_in_its_explanation() -> None:
    settings = {one.key: one for group in cli_help.groups_of("config") for one in group.settings}
    settings |= {one.key: one for group in cli_help.groups_of("resize") for one in group.settings}
    checked = 0
    sections = {**typing.get_type_hints(schema.RunConfig), "launch": schema.LaunchOptions}
    for name, options in {**sections, "": schema.ResizeOptions}.items():
        if name == "optimizer" or not hasattr(options, "__annotations__"):
            continue
        for field, kind in typing.get_type_hints(options).items():
            for choice in _choices(kind):
                key = f"{name}.{field}".lstrip(".")
                assert re.search(rf"\b{re.escape(str(choice))}\b", settings[key].words), key
                checked += 1
    assert checked > 20


def _choices(kind: Any) -> tuple[Any, ...]:
    if typing.get_origin(kind) is typing.Literal:
        return typing.get_args(kind)
    return tuple(choice for part in typing.get_args(kind) for choice in _choices(part))


def test_every_named_sweep_asks_a_question() -> None:
    for command in ("", "resize"):
        questions = cli_help.sweep_questions(command)
        assert set(questions) == set(resources.sweep_names(command))
        assert all(question.endswith("?") for question in questions.values())


@pytest.mark.usefixtures("outcome")
@pytest.mark.parametrize(
    ("arguments", "suggestion"),
    [
        (["pln", "network.dim=4"], "plan"),
        (["network.dim=4", "reprot"], "report"),
        (["-m", "trian", "network.dim=4,8"], "train"),
        (["my.safetensors"], "render my.safetensors"),
        (["nonsense"], "--help lists the commands"),
    ],
)
def test_a_misspelt_command_gets_a_suggestion_and_trains_nothing(
    arguments: list[str], suggestion: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert suggestion in captured.err
    assert captured.out == ""
    assert list(Path().iterdir()) == []


def test_a_command_may_stand_behind_flags_and_their_values(
    outcome: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert cli.main(["-m", "plan", "network.dim=1,2"]) == 0
    assert "2 runs: 0 done, 2 to do" in capsys.readouterr().out
    (tmp_path / "plan").mkdir()
    assert cli.main(["--config-dir", str(tmp_path / "plan"), "network.dim=1"]) == 0
    assert cli.main(["train", "network.dim=1"]) == 0
    assert len(outcome.reports) == 2


def test_help_costs_no_torch_no_hydra_and_no_pandas() -> None:
    code = (
        "import sys; from optbench.cli.main import main; main([]); main(['train', '--help']); "
        "sys.exit(bool({'torch', 'hydra', 'pandas', 'rich', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, stdout=subprocess.DEVNULL)
    assert done.returncode == 0


def test_the_config_of_a_run_can_be_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--cfg", "job", "--resolve", "network.dim=64"]) == 0
    assert "alpha: 32.0" in capsys.readouterr().out


def test_the_module_leaves_with_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    from optbench import __main__

    monkeypatch.setattr(__main__, "run_command_line", lambda: 7)
    with pytest.raises(SystemExit) as caught:
        __main__.main()
    assert caught.value.code == 7
