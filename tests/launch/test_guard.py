"""The run boundary: whatever a run does, it ends in a status and the others go on."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from optbench.config.build import config_yaml
from optbench.config.compose import SweepPlan, compose_runs
from optbench.errors import DivergedError, MissingPackageError, OptbenchError, Problem
from optbench.launch import guard
from optbench.schema import RunConfig
from optbench.storage import files, rundir
from optbench.training.made_as import made_as
from optbench.training.plan import RunPlan

pytestmark = pytest.mark.usefixtures("fake_assets")
PROBLEM = Problem("w", "f", "e", "x")
Behave = Callable[[RunConfig], None]


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Stand in for the pipeline: remembers its runs, misbehaves where told, then is done."""
    monkeypatch.chdir(tmp_path)
    module: Any = types.ModuleType("optbench.pipeline")
    module.behave = {}
    module.places = []

    def run_plans(plans: list[RunPlan], session: object) -> dict[str, Exception]:
        (plan,) = plans
        config, run_dir = plan.config, plan.run_dir
        module.places.append((config.network.dim, plan))
        rundir.write_status(run_dir, "running", fact=1)
        module.behave.get(config.network.dim, lambda: None)()
        files.write_atomic(run_dir / "config.yaml", config_yaml(config))
        steps = [{"step": step, "epoch": 1} for step in range(1, plan.total_steps + 1)]
        files.write_rows(run_dir / "steps.jsonl", steps)
        files.write_rows(run_dir / "epochs.jsonl", [{"epoch": 1}])
        if config.validate.enabled:
            files.write_rows(run_dir / "validation.jsonl", [{"epoch": 1, "loss": 0.1}])
        for path in guard.image_paths(rundir.RunDir(run_dir), config):
            files.write_atomic(path, b"")
        files.write_atomic(run_dir / "validation.jsonl", b"")
        rundir.write_status(run_dir, "done", made_as=made_as(plan))
        return {}

    module.run = run_plans
    monkeypatch.setitem(sys.modules, "optbench.pipeline", module)
    return module


def raiser(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_picture_somebody_deleted_is_made_again(pipeline: Any) -> None:
    asked = run("network.dim=1")
    run("network.dim=1")
    assert len(pipeline.places) == 1
    pictures = sorted(asked.runs[0].run_dir.rglob("*.png"))
    assert len(pictures) == 16  # two prompts, four seeds, the base alone and an epoch
    pictures[3].unlink()
    run("network.dim=1")
    assert len(pipeline.places) == 2
    assert pictures[3].is_file()


@pytest.mark.parametrize("name", ["steps.jsonl", "epochs.jsonl"])
def test_a_finished_run_whose_records_were_cut_off_is_trained_again(
    pipeline: Any, name: str
) -> None:
    path = run("network.dim=1").runs[0].run_dir / name
    path.write_bytes(path.read_bytes()[:-3])
    run("network.dim=1")
    assert len(pipeline.places) == 2
    path.unlink()
    run("network.dim=1")
    assert len(pipeline.places) == 3


def run(*arguments: str) -> SweepPlan:
    asked = compose_runs(arguments)
    guard.launch(arguments, asked)
    return asked


def statuses(asked: SweepPlan) -> list[str]:
    return [rundir.read_status(each.run_dir).status for each in asked.runs]


def test_every_run_gets_its_place(pipeline: Any) -> None:
    asked = run("-m", "network.dim=1,2,3")
    assert statuses(asked) == ["done"] * 3
    assert [(dim, place.run_index, place.num_runs) for dim, place in pipeline.places] == [
        (1, 0, 3),
        (2, 1, 3),
        (3, 2, 3),
    ]
    assert {place.sweep_dir for _, place in pipeline.places} == {Path("runs/network.dim")}


def test_a_single_run_has_the_place_0_of_1(pipeline: Any) -> None:
    run("network.dim=4")
    (_, place), *rest = pipeline.places
    assert not rest
    assert (place.sweep_dir, place.run_index, place.num_runs) == (Path("runs/single"), 0, 1)


def test_hydra_leaves_nothing_in_the_working_folder(pipeline: Any) -> None:
    run("-m", "network.dim=1,2")
    run("network.dim=3")
    assert {path.name for path in Path().iterdir()} - {"assets"} == {"runs"}
    assert not list(Path("runs").rglob(".hydra"))
    assert not list(Path("runs").rglob("*.log"))


def test_a_folder_that_is_another_runs_is_not_this_run(pipeline: Any) -> None:
    run("network.dim=1")
    ((_, plan),) = pipeline.places
    files.write_json(
        rundir.RunDir(plan.run_dir).provenance_path, {"weights_fingerprint": "of-another"}
    )
    assert not guard.is_finished(plan)


def test_finished_runs_are_left_alone_and_others_join_them(pipeline: Any) -> None:
    run("-m", "network.dim=1,2", "sweep_name=s")
    run("-m", "network.dim=1,2", "sweep_name=s")
    assert [dim for dim, _ in pipeline.places] == [1, 2]
    run("-m", "network.dim=1,2,3", "sweep_name=s")
    assert [dim for dim, _ in pipeline.places] == [1, 2, 3]


def test_other_pictures_are_still_to_make(pipeline: Any) -> None:
    run("network.dim=1")
    run("network.dim=1", "render.steps=3")
    run("network.dim=1", "prompts.prompts.a.text=other")
    run("network.dim=1", "prompts.prompts.a.text=other")
    assert len(pipeline.places) == 3


def test_a_run_that_goes_wrong_gets_a_reason_and_the_others_go_on(pipeline: Any) -> None:
    gpu_error = type("OutOfMemoryError", (RuntimeError,), {})  # torch's, by its name
    errors: list[tuple[BaseException, str, str]] = [
        (RuntimeError("broken"), "failed", "broken"),
        (SystemExit(3), "failed", "SystemExit"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (gpu_error("CUDA"), "out_of_memory", "CUDA"),
        (DivergedError(PROBLEM), "diverged", "found f"),
        (MissingPackageError(PROBLEM), "skipped", "found f"),
        (OptbenchError(PROBLEM), "failed", "found f"),
    ]
    pipeline.behave = {dim: raiser(error) for dim, (error, _, _) in enumerate(errors, start=2)}
    asked = run("-m", f"network.dim=range(1,{len(errors) + 3})")
    assert statuses(asked) == ["done", *(status for _, status, _ in errors), "done"]
    for each, (_, _, said) in zip(asked.runs[1:-1], errors, strict=True):
        record = rundir.read_status(each.run_dir)
        assert said in record.reason
        assert record.facts == {"fact": 1}


def test_a_failed_run_is_tried_again(pipeline: Any) -> None:
    pipeline.behave[2] = raiser(RuntimeError("once"))
    run("-m", "network.dim=1,2")
    pipeline.behave.clear()
    asked = run("-m", "network.dim=1,2")
    assert [dim for dim, _ in pipeline.places] == [1, 2, 2]
    assert statuses(asked) == ["done", "done"]


def test_ctrl_c_marks_the_run_and_stops_the_sweep(pipeline: Any) -> None:
    pipeline.behave[2] = raiser(KeyboardInterrupt())
    arguments = ["-m", "network.dim=1,2,3"]
    asked = compose_runs(arguments)
    with pytest.raises(KeyboardInterrupt):
        guard.launch(arguments, asked)
    assert statuses(asked) == ["done", "interrupted", "pending"]


def test_a_run_that_another_process_makes_is_left_to_it(pipeline: Any) -> None:
    arguments = ["network.dim=1"]
    asked = compose_runs(arguments)
    rundir.write_status(asked.runs[0].run_dir, "running")
    guard.launch(arguments, asked)
    assert pipeline.places == []


def test_sys_argv_is_as_before(pipeline: Any) -> None:
    before = list(sys.argv)
    run("network.dim=1")
    assert sys.argv == before


def test_a_failure_keeps_none_of_the_runs_locals_alive(pipeline: Any) -> None:
    import gc
    import weakref

    class Model:
        pass

    kept: list[weakref.ref[Model]] = []

    def fail() -> None:
        model = Model()
        kept.append(weakref.ref(model))
        raise RuntimeError("with a model in its frame")

    pipeline.behave[1] = fail
    run("network.dim=1")
    gc.collect()
    assert kept[0]() is None
