"""What a run would find out is found before: by plan and by a start alike, for all runs at once."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from optbench.config.compose import compose_runs
from optbench.config.run_rules import check_writable
from optbench.errors import ConfigError, Problem

pytestmark = pytest.mark.usefixtures("fake_assets")
# 9 uses of the stand-in's images an epoch, one after the other: 54 steps in 6 epochs.
STEPS = ["train.batch_size=1", "train.epochs=6"]


def problems_of(*arguments: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compose_runs(arguments)
    return caught.value.problems


def pasted(fix: str) -> list[str]:
    """Return the settings that a fix tells to write."""
    match = re.search(r"write (.+?)(?:,? (?:or|for|beside|instead)\b|, the class|$)", fix)
    assert match, fix
    return [word for word in shlex.split(match[1]) if word != "-m"]


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        (["optimizer=prodigy", "optimizer.args.use_bias_correction=no"], "use_bias_correction"),
        (["optimizer=prodigy", "optimizer.args.use_bias_correction=off"], "use_bias_correction"),
        (["optimizer=prodigy", "optimizer.args.use_bias_correction=1"], "use_bias_correction"),
        (["optimizer=prodigy", "optimizer.args.use_bias_correction='no'"], "use_bias_correction"),
        (["optimizer=prodigy", "optimizer.args={use_bias_correction: no}"], "use_bias_correction"),
        (["optimizer.args.weight_decay='0.1'"], "optimizer.args.weight_decay"),
        (["optimizer.args.weight_decay=010"], "optimizer.args.weight_decay"),
        (["optimizer.args.weight_decay=true"], "optimizer.args.weight_decay"),
        (["optimizer.args.weight_decay=nan"], "optimizer.args.weight_decay"),
        (["optimizer.args.weight_decay=[0.1]"], "optimizer.args.weight_decay"),
        (["optimizer.args.weight_decay=-1"], "optimizer.args.weight_decay"),
        (["optimizer.args.betas=[0.9]"], "optimizer.args.betas"),
        (["optimizer.args.betas=0.9"], "optimizer.args.betas"),
        (["optimizer.args.betas=[0.9,yes]"], "optimizer.args.betas"),
        (["optimizer.args.betas=[0.9,2.0]"], "optimizer.args.betas"),
        (["+optimizer.args.amsgrad=no"], "optimizer.args.amsgrad"),
        (["+optimizer.args.eps=1_e-8"], "optimizer.args.eps"),
        (["optimizer=[lion,adamw]"], "optimizer"),
        (["network=[lora,locon]"], "network"),
        (["train.device=cuda:7"], "train.device"),
        (["train.mixed_precision=fp16", "train.device=cpu"], "train.mixed_precision"),
        (["train.max_steps=1000"], "train.max_steps"),
        (["lr_scheduler.warmup_steps=54"], "lr_scheduler.warmup_steps"),
        (["lr_scheduler=cosine_with_restarts", "lr_scheduler.num_cycles=54"], "num_cycles"),
        (["lr_scheduler=warmup_stable_decay", "lr_scheduler.decay_steps=55"], "decay_steps"),
        (["lr_scheduler=piecewise", "lr_scheduler.step_rules='1:60,0.1'"], "step_rules"),
        (
            ["optimizer=adamwschedulefree", "lr_scheduler=constant"]
            + ["optimizer.args.warmup_steps=54"],
            "optimizer.args.warmup_steps",
        ),
    ],
)
def test_each_is_one_problem_and_its_fix_can_be_pasted(wrong: list[str], where: str) -> None:
    (problem,) = problems_of(*STEPS, *wrong)
    assert where in problem.where.partition(" ")[0]
    key = problem.where.partition(" ")[0]
    replaced = re.compile(rf"\+?({key}=|{key.rpartition('.')[0]}=\{{)")
    rest = [line for line in wrong if not replaced.match(line)]
    prefix = "+" if any(line.startswith(f"+{key}") for line in wrong) else ""
    fixed = [prefix + word if word.startswith(f"{key}=") else word for word in pasted(problem.fix)]
    if key == "train.max_steps":
        rest = wrong
    flags = ["-m"] if any("," in word and key in ("optimizer", "network") for word in fixed) else []
    has_epochs = any(word.startswith("train.epochs=") for word in fixed)
    own_epochs = STEPS[:1] if has_epochs else STEPS
    compose_runs([*flags, *own_epochs, *rest, *fixed])


@pytest.mark.parametrize(
    "right",
    [
        ["optimizer=prodigy", "optimizer.args.use_bias_correction=false"],
        ["optimizer.args.weight_decay=0"],
        ["optimizer.args.fused=null"],
        ["+optimizer.args.eps=1e-9"],
        ["optimizer=dadaptadam", "optimizer.args.growth_rate=1.02"],
        ["optimizer=dadaptadam", "optimizer.args.growth_rate=inf"],
        ["train.max_steps=54"],
        ["lr_scheduler=cosine_with_restarts", "lr_scheduler.num_cycles=20"],
        ["train.mixed_precision=bf16", "train.device=cpu"],
        ["+tracker.args.mlflow.tag='yes'", "tracker.log_with=[]"],
    ],
)
def test_what_is_right_is_let_through(right: list[str]) -> None:
    if right[0].startswith("+tracker"):
        (problem,) = problems_of(*STEPS, *right)
        assert "tracker.args.mlflow" in problem.where  # without effect, and no wrong kind
    else:
        compose_runs([*STEPS, *right])


def test_a_strangers_recipe_is_typed_by_its_own_values(tmp_path: Path) -> None:
    from optbench.storage import resources

    own = tmp_path / "own" / "optimizer"
    own.mkdir(parents=True)
    text = (resources.conf_dir() / "optimizer" / "adamw.yaml").read_text()
    text = text.replace("name: adamw", "name: mine").replace("torch.optim.AdamW", "theirs.Fast")
    (own / "mine.yaml").write_text(text)
    problems = problems_of(
        "--config-dir", str(own.parent), "optimizer=mine", "optimizer.args.fused=no"
    )
    assert "optimizer.args.fused" in [problem.where for problem in problems]


def test_a_problem_of_forty_runs_is_told_once() -> None:
    (problem,) = problems_of("-m", "seed=range(1,6)", "optimizer.args.betas=[0.9]")
    assert problem.where == "optimizer.args.betas"


@pytest.fixture
def held_out(tmp_path: Path, fake_assets: Path) -> Path:
    folder = tmp_path / "held-out"
    (folder / "1_girl").mkdir(parents=True)
    from PIL import Image

    Image.new("RGB", (512, 768), (1, 2, 3)).save(folder / "1_girl" / "new.png")
    (folder / "1_girl" / "new.txt").write_text("mirelle, 1girl")
    return folder


def validating(folder: Path) -> list[str]:
    return ["validate=default", f"validate.dir={folder}", *STEPS]


def test_held_out_images_of_their_own_are_let_through(held_out: Path) -> None:
    compose_runs(validating(held_out))
    flat = held_out / "1_girl"
    compose_runs(validating(flat))  # how often each is used says nothing here


def test_held_out_images_are_none_that_are_trained_on(held_out: Path, fake_assets: Path) -> None:
    data = fake_assets / "mirelle"
    found = [
        problems_of(*validating(data)),
        problems_of(*validating(data / "3_girl")),
        problems_of(*validating(fake_assets)),
    ]
    assert [problem.where for (problem,) in found] == ["validate.dir"] * 3
    assert "as dataset.dir" in found[0][0].found
    assert "inside dataset.dir" in found[1][0].found
    assert "in which dataset.dir" in found[2][0].found
    shutil.copy(data / "3_girl" / "1.png", held_out / "1_girl" / "another name.png")
    (problem,) = problems_of(*validating(held_out))
    assert "1 image that is trained on" in problem.found
    assert "another name.png" in problem.found


def test_an_empty_folder_of_held_out_images_is_said_in_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (problem,) = problems_of(*validating(tmp_path / "empty"))
    assert str(tmp_path / "empty") in problem.where
    assert "dataset.dir" not in str(problem)


def test_a_folder_that_cannot_be_written_to_is_told_before(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (problem,) = problems_of(f"runs_dir={tmp_path / 'file' / 'runs'}")
    assert problem.where == "runs_dir"
    (problem,) = check_writable("runs_dir", tmp_path / ("a" * 300))
    assert "too long" in problem.found
    assert check_writable("runs_dir", tmp_path / "new" / "deeper") == []
    assert not (tmp_path / "new").exists()
