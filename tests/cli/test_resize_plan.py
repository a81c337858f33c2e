"""A resize command line: names, folders, several sources, and everything wrong with it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from optbench.cli.resize.plan import ResizePlan, plan_resizes
from optbench.errors import ConfigError


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work beside two files and a run, none of which is read as a LoRA here."""
    monkeypatch.chdir(tmp_path)
    for name in ("big", "other"):
        Path(f"{name}.safetensors").write_text(name)
    lora = Path("run") / "lora"
    lora.mkdir(parents=True)
    for name in ("run-000002", "run-000001", "run", "run-1"):
        (lora / f"{name}.safetensors").write_text(name)
    Path("empty").mkdir()


def one(*arguments: str) -> ResizePlan:
    (run,) = plan_resizes(arguments).runs
    return run


def wrong(*arguments: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        plan_resizes(arguments)
    return {problem.where: str(problem) for problem in caught.value.problems}


def test_a_sweep_is_named_by_its_keys_and_its_files_by_their_settings() -> None:
    asked = plan_resizes(["-m", "source=big.safetensors", "method=sv_ratio", "param=2,16"])
    assert asked.sweep_dir == Path("runs/resize-param")
    assert [run.run_dir.name.rpartition("-")[0] for run in asked.runs] == [
        "big-sv_ratio2",
        "big-sv_ratio16",
    ]
    assert [run.options.param for run in asked.runs] == [2.0, 16.0]
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["new_dim=32"], "big-dim32"),
        (["new_dim=32", "new_conv_dim=4"], "big-dim32-conv4"),
        (["new_dim=32", "save_precision=bf16"], "big-dim32-bf16"),
        (["method=sv_fro", "param=0.95", "new_dim=9"], "big-sv_fro0.95-dim9"),
        (["method=sv_cumulative", "compat=v0.10"], "big-sv_cumulative0.9-v0.10"),
    ],
)
def test_names_say_what_differs(arguments: list[str], name: str) -> None:
    run = one("source=big.safetensors", *arguments)
    assert run.run_dir.parent == Path("runs/resize-single")
    assert run.run_dir.name.rpartition("-")[0] == name


def test_the_name_follows_the_bytes_and_nothing_that_changes_no_weight() -> None:
    first = one("source=big.safetensors", "new_dim=4").run_dir.name
    assert one("source=big.safetensors", "new_dim=4", "num_threads=1").run_dir.name == first
    Path("big.safetensors").write_text("other bytes")
    assert one("source=big.safetensors", "new_dim=4").run_dir.name != first


def test_a_run_is_resized_epoch_by_epoch() -> None:
    run = one("source=run", "new_dim=4")
    assert run.sources == {
        1: (Path("run/lora/run-000001.safetensors"),),
        2: (Path("run/lora/run-000002.safetensors"),),
    }


def test_a_merge_names_its_files_and_weights() -> None:
    run = one("source=[big.safetensors,other.safetensors]", "weights=[0.7,-0.3]", "new_dim=4")
    assert run.run_dir.name.startswith("bigx0.7+otherx-0.3-dim4-")
    assert run.sources == {None: (Path("big.safetensors"), Path("other.safetensors"))}
    assert run.options.weights == (0.7, -0.3)


def test_everything_wrong_is_said_at_once() -> None:
    found = wrong("source=nothing", "method=sv_ratio", "param=0.5", "new_dim=0", "save_precsion=x")
    assert found.keys() == {"source", "param", "new_dim", "save_precsion"}
    assert "from 1" in found["param"]
    assert "did you mean save_precision" in found["save_precsion"]


@pytest.mark.parametrize(
    ("arguments", "where", "fix"),
    [
        ([], "new_dim", "new_dim=32"),
        (["new_dim=4", "param=5"], "param", "add method=sv_ratio"),
        (["new_dim=4", "compat=v0.10"], "compat", "leave compat out"),
        (["method=sv_fro", "param=1.5"], "param", "param=0.9"),
        (["method=sv_fro", "param=0"], "param", "param=0.9"),
        (["method=sv_cumulative", "param=null"], "param", "param=0.9"),
        (["method=sv_ratio", "param=inf"], "param", "param="),
        (["method=sv_ration"], "method", "method=sv_ratio"),
        (["new_dim=4", "weights=[1,2]"], "weights", "weights=[1]"),
        (["new_dim=4", "weights=[nan]"], "weights", "replace nan in weights"),
        (["new_dim=4,8"], "new_dim", "-m new_dim=4,8"),
        (["new_dim=4", "sweep_name=../x"], "sweep_name", "my-sweep"),
    ],
)
def test_what_is_impossible_or_without_effect_is_refused(
    arguments: list[str], where: str, fix: str
) -> None:
    found = wrong("source=big.safetensors", *arguments)
    assert fix in found[where]


@pytest.mark.parametrize(
    "source", ["empty", "none.safetensors", "[]", "[big.safetensors,run]", "[run]"]
)
def test_sources_that_are_none_are_refused(source: str) -> None:
    extra = ["weights=[1,1]"] if "big" in source else ["weights=[1]"] if "[run" in source else []
    assert "source=FILE.safetensors" in wrong(f"source={source}", "new_dim=4", *extra)["source"]


def test_several_files_need_their_weights() -> None:
    found = wrong("source=[big.safetensors,other.safetensors]", "new_dim=4")
    assert "weights=[0.5,0.5]" in found["weights"]


def test_where_and_how_precisely_images_are_computed_changes_no_name() -> None:
    plain = one("source=big.safetensors", "new_dim=4")
    other = one("source=big.safetensors", "new_dim=4", "device=cpu", "mixed_precision=bf16")
    assert other.run_dir == plain.run_dir
    assert other.original_dir == plain.original_dir
    assert plain.options.mixed_precision == "no"
