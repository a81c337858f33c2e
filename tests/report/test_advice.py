"""Every advised command runs as it is printed, and is about the sweep that it is printed for."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from PIL import Image

from optbench.analysis.evidence import read_sweep
from optbench.config.build import config_yaml
from optbench.config.compose import SweepPlan, compose_runs, flags_first
from optbench.report.advice import Advice
from optbench.report.charts.styles import run_styles
from optbench.report.findings import make_findings
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.training.plan import RunPlan

pytestmark = pytest.mark.usefixtures("fake_assets")
OTHER_BASE = ["base.v_parameterization=false", "runs_dir=my runs"]


@pytest.fixture(autouse=True)
def _own_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "work"
    folder = place / "my data" / "2_mychar"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (512, 512), (number, 90, 200)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"mychar, {number}")
    monkeypatch.chdir(place)


def words_of(command: str) -> list[str]:
    """Return an advised command's arguments, behind the program's name."""
    words = shlex.split(command)
    return words[words.index("optbench") + 1 if "optbench" in words else 1 :]


def compose(words: list[str]) -> SweepPlan:
    return compose_runs(flags_first(words))


def make(run: RunPlan, gain: float, command: list[str]) -> None:
    """Make a folder as if this run had been trained by this command."""
    folder = RunDir(run.run_dir)
    files.write_atomic(folder.config_path, config_yaml(run.config))
    files.write_json(
        folder.provenance_path,
        {
            "num_cpus": 2,
            "command": ["optbench", *command],
            "changed": list(run.changed_settings),
            "dataset": {"fingerprint": run.dataset.fingerprint},
        },
    )
    row = {"epoch": 1, "step": 2, "mean_loss": 0.2 + gain, "seconds_train": 30.0}
    files.append_rows(folder.epochs_path, [row])
    steps = [{"step": step, "epoch": 1, "seconds_forward": 0.1} for step in (1, 2)]
    files.append_rows(folder.steps_path, steps)
    rundir.write_status(folder.path, "done")


def advised(*commands: list[str]) -> tuple[Path, list[Advice]]:
    number = 0
    for command in commands:
        plan = compose(command)
        for run in plan.runs:
            make(run, 0.001 * (number := number + 1), command)
    sweep = read_sweep(plan.sweep_dir)
    answer = make_findings(sweep, run_styles(sweep)).answer
    assert answer is not None
    return plan.sweep_dir, list(answer.next_steps)


OWN = [
    "dataset=folder",
    "dataset.dir=my data",
    "prompts=folder",
    "prompts.prompts.a.text='mychar, 1girl'",
]
COMMANDS = {
    "main": [["-m", "optimizer=adamw,lion", "network.dim=4,8"]],
    "demo": [["sweep=demo"]],
    "listed seeds": [["-m", "optimizer=adamw,lion", "seed=7,8"]],
    "demo of one seed": [["-m", "sweep=demo", "seeds=1", "seed=5"]],
    "own data": [["-m", "optimizer=adamw,lion", *OWN]],
    "own data, one run": [["optimizer=lion", *OWN]],
    "automatic": [
        [
            "-m",
            "optimizer=adafactor_auto,adamw",
            "lr_scheduler=constant",
            "train.max_grad_norm=0",
        ]
    ],
    "a list": [["sweep=four_optimizers"]],
    "a list with rates": [["sweep=one_factor", "~settings.epochs_40"]],
    "rates by hand": [["-m", "optimizer=adamw,lion", "optimizer.lr=1e-4"]],
    "base and place": [["-m", "optimizer=adamw,lion", *OTHER_BASE]],
    "two commands": [
        ["-m", "optimizer=adamw,lion", "sweep_name=both"],
        ["-m", "optimizer=adafactor_auto", "lr_scheduler=constant", "sweep_name=both"],
    ],
    "six commands": [
        [f"optimizer={name}", "sweep_name=six"]
        for name in ("adamw", "lion", "came", "prodigy", "soap", "adopt")
    ],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_advised_commands_are_accepted_and_reuse_what_is_there(name: str) -> None:
    commands = COMMANDS[name]
    folder, advice = advised(*commands)
    assert advice
    done = {path.name for path in folder.iterdir() if path.is_dir()}
    kept = [word for words in commands for word in words if word in (*OWN, *OTHER_BASE)]
    for step in advice:
        for line in step.command.splitlines():
            plan = compose(words_of(line))
            assert plan.sweep_dir == folder
            assert {*kept} <= {*words_of(line)}, line
            is_only_more = any(word in line for word in ("seed=", "seeds=", "lr_mult=0.3,1,3"))
            if is_only_more and len(commands) == 1:
                assert done & {run.name for run in plan.runs}, line


def test_nothing_is_advised_that_a_recipe_refuses() -> None:
    _, advice = advised(*COMMANDS["automatic"])
    (rates,) = [step for step in advice if "lr_mult" in step.command]
    assert "optimizer=adamw " in rates.command


def test_a_search_is_confirmed_with_seeds_that_chose_nothing() -> None:
    number = 0
    for recipe in ("adamw", "lion"):
        for rate in ("0.56", "3.1"):
            command = [f"optimizer={recipe}", f"lr_mult={rate}", "sweep_name=tuned", "render=off"]
            (run,) = compose(command).runs
            make(run, 0.001 * (number := number + 1), ["sweep=tuned", "train.epochs=6"])
    sweep = read_sweep(run.run_dir.parent)
    answer = make_findings(sweep, run_styles(sweep)).answer
    assert answer is not None
    commands = [step.command for step in answer.next_steps]
    # The seed is never a setting that a sweeper chooses.
    assert not any("sweep=tuned" in command and "seed" in command for command in commands)
    (confirm,) = [command for command in commands if "settings=" in command]
    plan = compose(words_of(confirm))
    assert plan.sweep_dir == Path("runs/tuned-confirmed")
    assert {(r.config.optimizer.name, r.config.lr_mult, r.config.seed) for r in plan.runs} == {
        (recipe, 0.56, seed) for recipe in ("adamw", "lion") for seed in (1, 2, 3)
    }
    assert all(run.config.validate.enabled for run in plan.runs)  # as the sweep's file has it


def test_advice_says_what_it_costs(tmp_path: Path) -> None:
    _, advice = advised(["-m", "optimizer=adamw,lion", "seed=1,2"])
    (seeds,) = [step for step in advice if "render=off" in step.command]
    # 2 settings x 1 more seed, 30 s each.
    assert seeds.text.startswith(
        "Run every setting with 3 seeds, no images: 2 runs, about 60 s. Gaps of "
    )
    assert seeds.text.endswith(" now):")


def test_a_run_that_was_measured_later_is_repeated_by_the_command_that_trained_it() -> None:
    command = ["-m", "optimizer=adamw,lion", "train.epochs=2"]
    plan = compose(command)
    for number, run in enumerate(plan.runs):
        make(run, 0.001 * number, command)
        path = RunDir(run.run_dir).provenance_path
        content = files.read_json(path)
        trained = {"command": content.pop("command"), "from_step": 0, "to_step": 2}
        measured = {"command": ["optbench", "measured=later"], "from_step": 2, "to_step": 2}
        files.write_json(path, {**content, "sessions": [trained, measured]})
    sweep = read_sweep(plan.sweep_dir)
    answer = make_findings(sweep, run_styles(sweep)).answer
    assert answer is not None
    assert answer.next_steps
    assert all("train.epochs=2" in step.command for step in answer.next_steps)
