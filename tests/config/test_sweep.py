"""A sweep that is a list of settings: its runs, what it combines with, and what it refuses."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optbench.cli.resize.plan import plan_resizes
from optbench.config import sweep
from optbench.config.build import config_yaml
from optbench.config.compose import SweepPlan, compose_runs, flags_first
from optbench.errors import ConfigError, Problem
from optbench.launch import guard
from optbench.storage import files, rundir
from optbench.training.made_as import made_as
from optbench.training.plan import RunPlan

pytestmark = pytest.mark.usefixtures("fake_assets")
LIST = """# @package _global_
hydra:
  mode: MULTIRUN
train:
  max_grad_norm: 0.0
settings:
  plain: ""
  lion: optimizer=lion train.gradient_accumulation=4
  small: >-
    network.dim=4
    "prompts.prompts.a.text='one, two'"
"""


@pytest.fixture
def own(tmp_path: Path) -> Any:
    """Return a function that writes a sweep of one's own, and gives the arguments for it."""

    def write(text: str = LIST) -> list[str]:
        folder = tmp_path / "own" / "sweep"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mine.yaml").write_text(text)
        return ["--config-dir", str(folder.parent), "sweep=mine"]

    return write


def compose(arguments: list[str]) -> SweepPlan:
    return compose_runs(flags_first(arguments))


def problems_of(*arguments: str) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        compose([*arguments])
    return caught.value.problems


def looks(asked: SweepPlan) -> list[tuple[str, int, int, int]]:
    return [
        (
            run.config.optimizer.name,
            run.config.network.dim,
            run.config.train.gradient_accumulation,
            run.config.seed,
        )
        for run in asked.runs
    ]


def test_every_entry_is_one_run_on_top_of_the_rest_of_the_file(own: Any) -> None:
    asked = compose(own())
    assert looks(asked) == [
        ("adamw", 16, 1, 1234),
        ("lion", 16, 4, 1234),
        ("adamw", 4, 1, 1234),
    ]
    assert asked.runs[2].config.prompts.prompts[0].text == "one, two"
    assert all(run.config.train.max_grad_norm == 0 for run in asked.runs)
    assert asked.sweep_dir == Path("runs/mine")
    assert asked.is_complete
    assert asked.is_listed


def test_the_command_line_is_for_all_and_sweeps_multiply_the_list(own: Any) -> None:
    asked = compose([*own(), "-m", "seed=1,2", "train.epochs=3"])
    assert [one[0::3] for one in looks(asked)] == [
        ("adamw", 1),
        ("adamw", 2),
        ("lion", 1),
        ("lion", 2),
        ("adamw", 1),
        ("adamw", 2),
    ]
    assert {run.config.train.epochs for run in asked.runs} == {3}


def test_an_entry_may_sweep_itself(own: Any) -> None:
    asked = compose([*own(), "+settings.more='network.dim=32,64'"])
    assert [one[1] for one in looks(asked)] == [16, 16, 4, 32, 64]


def test_entries_come_and_go_as_any_key_of_hydras(own: Any) -> None:
    asked = compose([*own(), "~settings.plain", "settings.small='network.dim=2'"])
    assert [one[:2] for one in looks(asked)] == [("lion", 16), ("adamw", 2)]
    alone = compose(["-m", "+settings.a='network.dim=2'", "+settings.b='optimizer=lion'"])
    assert [one[:2] for one in looks(alone)] == [("adamw", 2), ("lion", 16)]
    assert alone.sweep_dir == Path("runs/settings")


@pytest.mark.parametrize(
    "extra", [["train.gradient_accumulation=2"], ["-m", "optimizer=adamw,came"]]
)
def test_a_key_that_an_entry_gives_too_is_refused_with_the_entry(own: Any, extra: Any) -> None:
    (problem,) = problems_of(*own(), *extra)
    assert problem.where == "settings.lion"
    assert extra[-1].partition("=")[0] in problem.found
    assert "~settings.lion" in problem.fix


def test_a_key_of_the_files_own_product_is_refused_in_the_list(own: Any) -> None:
    text = LIST.replace(
        "mode: MULTIRUN", "mode: MULTIRUN\n  sweeper:\n    params:\n      seed: 1,2"
    )
    assert len(compose(own(text)).runs) == 6
    (problem,) = problems_of(*own(text), "+settings.extra='seed=3'")
    assert problem.where == "settings.extra"


def test_what_is_wrong_in_an_entry_is_told_with_its_name_and_all_at_once(own: Any) -> None:
    found = problems_of(
        *own(),
        "train.epochs=0",
        "+settings.typo='optimizr=lion'",
        "+settings.zero='network.dim=0'",
        "+settings.also_zero='network.dim=0 seed=3'",
        "+settings.recipe='optimizer=lionn'",
        '+settings.quote="network.dim=\'4"',
        "+settings.number=4",
        "+settings.grammar='x y'",
        "+settings.place='runs_dir=elsewhere hydra.mode=RUN'",
    )
    where = [problem.where for problem in found]
    assert "train.epochs" in where
    assert "optimizr in settings.typo" in where
    assert "network.dim in settings.zero, settings.also_zero" in where
    assert "optimizer in settings.recipe" in where
    for name in ("quote", "number", "grammar", "place"):
        assert f"settings.{name}" in where
    (recipe,) = (problem for problem in found if "settings.recipe" in problem.where)
    assert "optimizer=lion" in recipe.fix


def test_equal_entries_are_refused(own: Any) -> None:
    (problem,) = problems_of(*own(), "+settings.again='network.dim=4'")
    assert problem.where == "the sweep"


def test_a_list_without_names_is_refused(own: Any) -> None:
    (problem,) = problems_of(*own(LIST.partition("settings:")[0] + "settings: [optimizer=lion]\n"))
    assert problem.where == "settings"
    assert "name" in problem.expected
    (problem,) = problems_of("-m", "settings=3")
    assert problem.where == "settings"


def test_a_list_for_one_run_is_refused(own: Any) -> None:
    (problem,) = problems_of(*own(), "hydra.mode=RUN")
    assert problem.where == "settings"
    assert "-m" in problem.fix


def test_a_null_entry_is_not_taken_for_an_empty_one(own: Any) -> None:
    (problem,) = problems_of(*own(), "settings.plain=null")
    assert problem.where == "settings.plain"
    assert '""' in problem.fix


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Stand in for the pipeline: remembers its runs and is done."""
    monkeypatch.chdir(tmp_path)
    module: Any = types.ModuleType("optbench.pipeline")
    module.made = []

    def run_plans(plans: list[RunPlan], session: object) -> dict[str, Exception]:
        (plan,) = plans
        run_dir, config = plan.run_dir, plan.config
        module.made.append((run_dir, plan.run_index, plan.num_runs))
        if config.network.dim in module.broken:
            raise RuntimeError("broken")
        files.write_atomic(run_dir / "config.yaml", config_yaml(config))
        steps = [{"step": step + 1, "epoch": 1} for step in range(plan.total_steps)]
        files.write_rows(run_dir / "steps.jsonl", steps)
        for name in ("epochs", "layers"):
            files.write_rows(run_dir / f"{name}.jsonl", [{"epoch": 1}])
        for path in guard.image_paths(rundir.RunDir(run_dir), config):
            files.write_atomic(path, b"")
        files.write_atomic(run_dir / "validation.jsonl", b"")
        rundir.write_status(run_dir, "done", made_as=made_as(plan))
        return {}

    module.run = run_plans
    module.broken = set()
    monkeypatch.setitem(sys.modules, "optbench.pipeline", module)
    return module


def test_what_is_launched_is_what_was_planned_and_done_only_once(own: Any, pipeline: Any) -> None:
    arguments = [*own(), "-m", "seed=1,2", "hydra.sweeper.max_batch_size=4", "render=off"]
    arguments = flags_first(arguments)
    asked = compose(arguments)
    pipeline.broken = {4}
    guard.launch(arguments, asked)
    planned = [run.run_dir for run in asked.runs]
    assert [run_dir for run_dir, _, _ in pipeline.made] == planned
    assert [(index, number) for _, index, number in pipeline.made] == [(i, 6) for i in range(6)]
    states = [rundir.read_status(run_dir).status for run_dir in planned]
    assert states == ["done"] * 4 + ["failed"] * 2
    pipeline.broken = set()
    guard.launch(arguments, asked)
    assert [run_dir for run_dir, _, _ in pipeline.made[6:]] == planned[4:]
    guard.launch(arguments, asked)
    assert len(pipeline.made) == 8
    assert {path.name for path in Path().iterdir()} - {"assets", "own"} == {"runs"}
    assert (asked.sweep_dir / "multirun.yaml").is_file()


def seeds_of(plan: SweepPlan) -> list[tuple[str, int, bool]]:
    return [(r.config.optimizer.name, r.config.seed, r.config.render.enabled) for r in plan.runs]


def test_further_seeds_follow_the_first_and_render_nothing(own: Any) -> None:
    swept = compose(["-m", "optimizer=adamw,lion", "seeds=3", "render=few", "seed=7"])
    assert seeds_of(swept) == [
        (optimizer, 7 + further, further == 0)
        for further in range(3)
        for optimizer in ("adamw", "lion")
    ]
    # What is there already is kept: the folder is that of the sweep without further seeds.
    without = compose(["-m", "optimizer=adamw,lion", "seed=7"])
    assert swept.sweep_dir == without.sweep_dir
    assert [run.name for run in swept.runs[:2]] == [run.name for run in without.runs]
    listed = compose([*own(), "seeds=2"])
    assert [run.config.seed for run in listed.runs] == [1234] * 3 + [1235] * 3


@pytest.mark.parametrize(
    "arguments", [["seeds=2"], ["-m", "seeds=2"], ["-m", "optimizer=adamw,lion", "seeds=2"]]
)
def test_several_seeds_are_launched_by_one_command(arguments: list[str], pipeline: Any) -> None:
    arguments = flags_first(arguments)
    asked = compose(arguments)
    guard.launch(arguments, asked)
    assert [run_dir for run_dir, _, _ in pipeline.made] == [run.run_dir for run in asked.runs]
    assert len({*pipeline.made}) == len(asked.runs) >= 2
    guard.launch(arguments, asked)
    assert len(pipeline.made) == len(asked.runs)


def test_listed_seeds_take_the_place_of_a_files_number() -> None:
    plan = compose(["sweep=demo", "seed=1,2"])
    assert {(seed, renders) for _, seed, renders in seeds_of(plan)} == {(1, True), (2, True)}


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "seeds=2", "seed=1,2"],
        ["seeds=0"],
        ["seeds=two"],
        ["-m", "seeds=1,2"],
        ["-m", "seeds=2", "hydra/sweeper=basic"],
        ["-m", "settings={a: seeds=2}"],
    ],
)
def test_a_number_of_seeds_that_means_nothing_is_refused(arguments: list[str]) -> None:
    assert any("seeds" in f"{p.where} {p.found}" for p in problems_of(*arguments))


NAMES = st.lists(st.sampled_from("abcdef"), min_size=1, unique=True)
PROBLEMS = st.sampled_from([Problem("w", word, "e", "f") for word in ("x", "y", "z")])


@given(
    noted=NAMES.flatmap(
        lambda names: st.fixed_dictionaries(dict.fromkeys(names, st.lists(PROBLEMS)))
    )
)
def test_every_problem_is_told_once_with_exactly_the_settings_that_have_it(
    noted: dict[str | None, list[Problem]],
) -> None:
    told = sweep.named_by_setting(noted)
    assert len({problem.found for problem in told}) == len(told)
    for problem in told:
        having = [name for name, own in noted.items() if problem.found in {o.found for o in own}]
        named = {part.strip(",") for part in problem.where.split()[2:]}
        if len(having) == len(noted) > 1:
            assert not named
        else:
            assert named == {f"settings.{name}" for name in having}
    assert {problem.found for problem in told} == {
        problem.found for own in noted.values() for problem in own
    }


def test_files_of_the_resize_command_may_be_listed_too(tmp_path: Path) -> None:
    source = tmp_path / "big.safetensors"
    source.write_bytes(b"named, and not read yet")
    given = ["+settings.a='method=sv_ratio param=4'", "+settings.b='new_dim=8'"]
    asked = plan_resizes(["-m", *given, f"source={source}", f"runs_dir={tmp_path}"])
    assert [(run.options.method, run.options.new_dim) for run in asked.runs] == [
        ("sv_ratio", None),
        ("none", 8),
    ]


def test_a_typed_secret_stays_in_no_file(own: Any, pipeline: Any, tmp_path: Path) -> None:
    secret = "S3cretS3cretS3cret"
    arguments = [*own(), "-m", "seed=1", "render=off", f"+hydra.job.env_set.HF_TOKEN={secret}"]
    arguments = flags_first(arguments)
    asked = compose(arguments)
    guard.launch(arguments, asked)
    assert len(pipeline.made) == len(asked.runs)
    text = (asked.sweep_dir / "multirun.yaml").read_text()
    assert "HF_TOKEN" in text
    files_with_it = [path for path in Path("runs").rglob("*") if path.is_file()]
    assert files_with_it
    assert not [path for path in files_with_it if secret.encode() in path.read_bytes()]
