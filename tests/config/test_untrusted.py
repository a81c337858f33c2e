"""Files from elsewhere: nothing they name is imported or called before a person has read of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from optbench.cli import train as cli
from optbench.config.compose import compose_recipe, compose_runs
from optbench.config.composer import parse_override
from optbench.config.untrusted import (
    Typed,
    check_config_dir,
    check_overrides,
    check_tree,
    import_notices,
)
from optbench.errors import OptbenchError
from tests.builders.small_training import ADAMW

PLAIN = """
launcher: {_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher}
sweeper: {_target_: hydra._internal.core_plugins.basic_sweeper.BasicSweeper, params: null}
callbacks: {}
job_logging:
  handlers:
    file: {class: logging.FileHandler, filename: '${hydra.runtime.output_dir}/x.log'}
job: {env_set: {}}
runtime: {output_dir: '???'}
"""


def refused(hydra: str = "", recipe: str = "{}", *, typed: Sequence[str] = ()) -> list[str]:
    """Return what is found in a tree whose hydra node is changed."""
    tree = OmegaConf.create({"hydra": OmegaConf.create(PLAIN), "optimizer": {}})
    changed = OmegaConf.merge(
        tree, {"hydra": OmegaConf.create(hydra or "{}"), "optimizer": OmegaConf.create(recipe)}
    )
    assert isinstance(changed, DictConfig)
    problems = check_tree(changed, Typed.of(map(parse_override, typed)))
    return [problem.found.partition(", which looks up")[0] for problem in problems]


def test_what_hydra_brings_along_is_no_stranger() -> None:
    assert refused() == []
    assert refused("sweeper: {_target_: hydra_plugins.optbench_optuna_sweeper.OptunaSweeper}") == []
    assert refused("sweeper: {_target_: hydra_plugins.optbench_race_sweeper.RaceSweeper}") == []


@pytest.mark.parametrize(
    "hydra",
    [
        "callbacks: {x: {_target_: os.system, command: ls}}",
        "launcher: {_target_: subprocess.run}",
        "sweeper: {search: [{_target_: os.system}]}",
        "job_logging: {handlers: {file: {(): os.system}}}",
        "job_logging: {handlers: {file: {class: os.system}}}",
        "hydra_logging: {formatters: {a: {(): os.system}}}",
    ],
)
def test_whatever_would_be_called_is_refused(hydra: str) -> None:
    (found,) = refused(hydra)
    assert found in ("os.system", "subprocess.run")


def test_a_name_that_is_worked_out_elsewhere_is_refused_too() -> None:
    recipe = "{args: {x: {_target_: os.system}}, name: os.system}"
    assert refused("callbacks: ${optimizer.args}", recipe) == [
        "settings taken from elsewhere in the config"
    ]
    assert refused("callbacks: {x: {_target_: '${optimizer.name}'}}", recipe) == ["os.system"]


def test_what_a_person_types_is_asked_for() -> None:
    hydra = "{callbacks: {x: {_target_: mine.Callback}}, job: {env_set: {OMP_NUM_THREADS: 1}}}"
    assert refused(hydra) == ["mine.Callback", "an environment variable"]
    typed = ["+hydra.callbacks.x._target_=mine.Callback", "hydra.job.env_set.OMP_NUM_THREADS=1"]
    assert refused(hydra, typed=typed) == []
    typed = ["hydra.callbacks={x:{_target_:mine.Callback}}", "+hydra.job.env_set.OMP=1"]
    assert refused(hydra, typed=typed) == ["an environment variable"]


@pytest.mark.parametrize(
    "hydra",
    [
        "callbacks: {x: {_target_: hydra.utils.get_class, path: theirs.Fast}}",
        "callbacks: {x: {_target_: hydra_plugins.theirs.Fast}}",
        "hydra_logging: {handlers: {x: {class: logging.config.dictConfig}}}",
    ],
)
def test_hydras_own_functions_that_import_anything_are_refused(hydra: str) -> None:
    assert len(refused(hydra)) == 1


def test_a_log_file_lies_in_the_runs_own_folder() -> None:
    handler = "job_logging: {{handlers: {{file: {{class: logging.FileHandler, filename: '{}'}}}}}}"
    assert refused(handler.format("/home/me/.bashrc")) == ["a file that Hydra would write to"]
    assert refused(handler.format("${hydra.runtime.output_dir}/../x")) == [
        "a file that Hydra would write to"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "cute ${oc.env:HF_TOKEN}",
        "${ oc.env : HF_TOKEN }",
        "hi ${oc.${optimizer.paper}:SECRET_TOKEN}",
        "${${optimizer.paper}:SECRET_TOKEN}",
        "${mul:2,${oc.env:X}}",
        "${oc.create:'a'}",
        "${oc.decode:'x'}",
        "${hydra:runtime.cwd}",
        "${theirs:}",
    ],
)
@pytest.mark.parametrize("group", ["prompts", "metric", "tracker", "base", "validate", "runs_dir"])
def test_no_group_looks_up_anything_outside_of_the_settings(group: str, text: str) -> None:
    tree = OmegaConf.merge(
        {"hydra": OmegaConf.create(PLAIN)}, {group: {"a": [{"text": text}]}, "optimizer": {}}
    )
    assert isinstance(tree, DictConfig)
    (problem,) = check_tree(tree, Typed())
    assert problem.where == f"{group}.a.0.text"
    assert text in problem.fix
    typed = Typed.of([parse_override(f"{group}.a=[{{text: x}}]")])
    assert check_tree(tree, typed) == []


@pytest.mark.parametrize(
    "text",
    ["${mul:2,${base.lr_scale}}", "${optbench_asset:tiny}", "\\${oc.env:X}", "$oc.env:X"],
)
def test_what_stays_within_the_settings_is_let_through(text: str) -> None:
    tree = OmegaConf.create({"prompts": {"text": text}})
    assert check_tree(tree, Typed()) == []


def test_a_sweeps_file_is_no_person_at_the_keyboard() -> None:
    lines = ["optimizer.note=${oc.env:HF_TOKEN}", "+hydra.job.env_set.A=1", "seed=1"]
    parsed = [parse_override(line) for line in lines]
    assert [problem.where for problem in check_overrides(parsed, Typed())] == [
        "optimizer.note",
        "hydra.job.env_set.A",
    ]
    assert check_overrides(parsed, Typed.of(parsed)) == []


def test_a_folder_takes_the_place_of_no_primary_config_and_its_defaults_look_up_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "config.yaml").write_text("hydra: {searchpath: [pkg://theirs]}\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "a.yaml").write_text("defaults: [{/prompts: '${oc.env:HF_TOKEN}'}]\n")
    (tmp_path / "sweep" / "b.yaml").write_text("defaults: [{/prompts: '${dataset}'}]\n")
    (tmp_path / "sweep" / "broken.yaml").write_text("a: [\n\tb")
    problems = check_config_dir(tmp_path, ["config", "plot"])
    assert [problem.found.partition(",")[0] for problem in problems] == [
        "config.yaml",
        "${oc.env:HF_TOKEN}",
    ]


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "x ${oc.env:A,b}", "${oc.decode:a}"])
def test_a_recipe_looks_up_nothing_of_the_machine(text: str) -> None:
    assert refused(recipe=f"{{note: '{text}'}}") == [text]
    assert refused(recipe=f"{{args: {{a: [1, '{text}']}}}}") == [text]
    assert refused(recipe=f"{{note: '{text}'}}", typed=[f"optimizer.note='{text}'"]) == []
    assert refused(recipe="{unet_lr: '${.lr}', lr: 1}") == []


def test_a_folder_of_recipes_cannot_make_hydra_run_something(
    fake_assets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The whole way: a recipe whose first line makes it settings of Hydra's own."""
    folder = tmp_path / "theirs" / "optimizer"
    folder.mkdir(parents=True)
    evil = "# @package _global_\nhydra: {callbacks: {x: {_target_: os.system, command: ls}}}\n"
    (folder / "fast.yaml").write_text(evil)
    for act in (
        lambda: compose_runs([f"--config-dir={folder.parent}", "optimizer=fast"]),
        lambda: compose_recipe(folder / "fast.yaml"),
    ):
        with pytest.raises(OptbenchError) as caught:
            act()
        assert "hydra.callbacks.x._target_: found os.system" in str(caught.value)
    assert not any(capfd.readouterr())


def test_showing_the_config_runs_nothing_of_it_either(
    fake_assets: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Hydra sets up its logging even to print a config."""
    folder = tmp_path / "theirs" / "optimizer"
    folder.mkdir(parents=True)
    evil = "{handlers: {x: {(): os.system, command: echo intruded}}, root: {handlers: [x]}}"
    text = f"# @package _global_\nhydra: {{hydra_logging: {evil}}}\n"
    (folder / "fast.yaml").write_text(text)
    arguments = ["--cfg", "job", f"--config-dir={folder.parent}", "optimizer=fast"]
    assert cli.main(arguments) == 2
    said = capfd.readouterr()
    assert "os.system" in said.err
    assert "intruded" not in said.out


def test_a_class_of_nobody_we_know_is_named_before_it_is_imported() -> None:
    stranger = replace(ADAMW, name="theirs", target="theirs.Fast")
    shipped = replace(ADAMW, target="torch.optim.AdamW")
    assert import_notices([shipped]) == []
    assert import_notices([shipped, stranger, stranger]) == [
        "recipe theirs imports and runs theirs.Fast, which no recipe that ships with optbench names"
    ]


def test_plan_imports_no_strangers_metric_and_a_start_names_it_first(
    fake_assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "theirs" / "metric"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(
        "enabled: true\nmetrics: {x: {_target_: evil_metric_module.M}}\n"
    )
    (tmp_path / "evil_metric_module.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (run,) = compose_runs([f"--config-dir={folder.parent}", "metric=evil"]).runs
    assert import_notices([], [run.config.metric]) == [
        "metric x imports and runs evil_metric_module.M, which does not come with optbench"
    ]
    for target, found in (("os.system", "Python's own"), ("no_such_package.M", "no package")):
        with pytest.raises(OptbenchError, match=found):
            compose_runs([f"metric.metrics.surface={{_target_: {target}}}"])


def test_numbers_that_yaml_reads_in_another_base_are_said(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    file = tmp_path / "train" / "mine.yaml"
    file.write_text("a: 010\nb: [1:30, '1:30', 10, 0, 0.5, 1e-4, 1_000]\nc: {d: '010'}\n")
    problems = check_config_dir(tmp_path, [])
    assert sorted((problem.where, problem.found) for problem in problems) == [
        (f"{file} line 1", "010, which YAML reads as 8"),
        (f"{file} line 2", "1:30, which YAML reads as 90"),
    ]
