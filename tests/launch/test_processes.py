"""Runs in processes of their own: side by side, on their GPUs, and dying in every way."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from optbench.config.compose import compose_runs
from optbench.errors import ConfigError
from optbench.launch import guard, processes
from optbench.launch.exit_status import judge_exit
from optbench.schema import LaunchOptions
from optbench.storage import locks, rundir
from optbench.training.plan import RunPlan

pytestmark = pytest.mark.usefixtures("fake_assets")

# Stands in for the worker: says what it was given, then does as the run's index tells it.
WORKER = """
import os, pickle, signal, sys, time, faulthandler
request = pickle.load(sys.stdin.buffer)
faulthandler.enable(file=request["faults"])
from optbench.storage import rundir
plan = request["job"].plan
run = plan.run_dir
with (plan.sweep_dir / "made.txt").open("a") as made:
    made.write(f"{run.name} {os.environ.get('CUDA_VISIBLE_DEVICES')} {time.monotonic()}\\n")
rundir.write_status(run, "running", note=5)
how = BEHAVIOUR[plan.run_index % len(BEHAVIOUR)]
if how == "crash":
    faulthandler._sigsegv()
elif how == "exit":
    os._exit(3)
elif how == "wait":
    def save(*about):
        rundir.write_status(run, "interrupted", "saved")
        os._exit(0)
    signal.signal(signal.SIGTERM, save)
    (run / "waiting").touch()
    time.sleep(60)
elif how.startswith("SIG"):
    os.kill(os.getpid(), getattr(signal, how))
    time.sleep(60)
else:
    time.sleep(0.3)
    rundir.write_status(run, "done")
"""


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    return compose_runs([f"runs_dir={tmp_path}"]).runs[0]


def make(
    plan: RunPlan,
    sweep_dir: Path,
    behaviour: list[str],
    monkeypatch: pytest.MonkeyPatch,
    *,
    workers: int = 1,
) -> list[list[str]]:
    """Make one run per behaviour; return name, GPU and time of each in the order of beginning."""
    code = f"BEHAVIOUR = {behaviour!r}\n{WORKER}"
    monkeypatch.setattr(processes, "_COMMAND", (sys.executable, "-c", code))
    monkeypatch.setenv("PYTHONPATH", str(Path(processes.__file__).parents[2]))
    sweep_dir.mkdir(parents=True, exist_ok=True)
    jobs = [
        processes.RunJob(
            plan=replace(
                plan,
                name=f"run-{index}",
                sweep_dir=sweep_dir,
                run_index=index,
                num_runs=len(behaviour),
            ),
            command=("optbench",),
        )
        for index in range(len(behaviour))
    ]
    processes.run_all(jobs, workers=workers)
    return [line.split() for line in (sweep_dir / "made.txt").read_text().splitlines()]


def test_every_death_of_a_process_is_a_status_in_words(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_num_oom_kills", lambda: 0)
    deaths = {
        "crash": ("failed", "segmentation fault (SIGSEGV)"),
        "exit": ("failed", "exit code 3"),
        "SIGKILL": ("interrupted", "killed (SIGKILL); rerun the same command"),
        "SIGABRT": ("failed", "aborted (SIGABRT)"),
        "SIGTERM": ("interrupted", "terminated (SIGTERM)"),
        "": ("done", ""),
    }
    make(plan, tmp_path / "s", list(deaths), monkeypatch, workers=3)
    for index, (status, said) in enumerate(deaths.values()):
        record = rundir.read_status(tmp_path / "s" / f"run-{index}")
        assert record.status == status
        assert said in record.reason
    crashed = rundir.read_status(tmp_path / "s" / "run-0")
    assert "Fatal Python error: Segmentation fault" in crashed.reason
    assert crashed.facts == {"note": 5}


def test_killed_by_the_kernel_for_memory_is_out_of_memory(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([7, 8])
    monkeypatch.setattr(processes, "_num_oom_kills", lambda: next(counts))
    make(plan, tmp_path / "s", ["SIGKILL"], monkeypatch)
    record = rundir.read_status(tmp_path / "s" / "run-0")
    assert record.status == "out_of_memory"
    assert "-> try launch.isolation=process" in record.reason


def test_a_dead_worker_of_a_run_that_another_has_by_now_says_nothing(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locks.hold_lock(tmp_path / "s" / "run-0"):
        make(plan, tmp_path / "s", ["SIGKILL"], monkeypatch)
        content = json.loads((tmp_path / "s" / "run-0" / "status.json").read_text())
    assert content["status"] == "running"


def test_gpus_go_round_and_a_free_one_is_used_next(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,MIG-7")
    on_gpu = replace(plan.config.train, device="cuda")  # what auto comes to where there is one
    plan = replace(plan, config=replace(plan.config, train=on_gpu))
    made = make(plan, tmp_path / "s", [""] * 4, monkeypatch, workers=2)
    assert {gpu for _, gpu, _ in made[:2]} == {"4", "MIG-7"}
    assert {gpu for _, gpu, _ in made[2:]} == {"4", "MIG-7"}
    begun = [float(when) for _, _, when in made]
    assert begun[2] - begun[0] >= 0.3 > begun[1] - begun[0] - 5
    train = replace(plan.config.train, device="cuda:1")
    plan = replace(plan, config=replace(plan.config, train=train))
    (tmp_path / "s" / "made.txt").unlink()
    made = make(plan, tmp_path / "s", [""], monkeypatch)
    assert made[0][1] == "4,MIG-7"  # a run that names its GPU sees them all


def test_a_stop_reaches_every_child_and_leaves_their_statuses(
    plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop() -> None:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("s/*/waiting"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts what goes on in the background with Ctrl-C ignored; the suite may be that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=stop, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            make(plan, tmp_path / "s", ["wait"] * 3, monkeypatch, workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    found = [rundir.read_status(tmp_path / "s" / f"run-{index}") for index in range(3)]
    assert [one.reason for one in found[:2]] == ["saved", "saved"]
    assert found[2].status == "pending"


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("GPU 0: H200 (UUID: GPU-1)\nGPU 1: H200 (UUID: GPU-2)\n", ("0", "1")),
        ("GPU 0: H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-a)\n", ("MIG-a",)),
        ("", ()),
    ],
)
def test_gpus_are_found_without_torch(
    listed: str, expected: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncat <<'END'\n{listed}END\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert processes.gpus() == expected


def test_when_a_run_gets_a_process(plan: RunPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    # What auto comes to where there is a GPU.
    config = replace(plan.config, train=replace(plan.config.train, device="cuda"))

    def options(isolation: Any, workers: int | None = None) -> LaunchOptions:
        return LaunchOptions(isolation=isolation, workers=workers, until_epoch=None)

    on_cpu = replace(config, train=replace(config.train, device="cpu"))
    for visible, wanted, number in (("", False, 1), ("0,1", True, 2)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert processes.needs_own_process(options("auto"), [config]) is wanted
        assert processes.num_workers(options("auto"), [config]) == number
        assert not processes.needs_own_process(options("auto"), [on_cpu])
        assert processes.num_workers(options("auto"), [on_cpu]) == 1
        assert processes.needs_own_process(options("process"), [on_cpu])
        assert not processes.needs_own_process(options("none"), [config])
    assert processes.num_workers(options("auto", 5), [on_cpu]) == 5


def test_impossible_and_ineffective_ways_to_launch_are_refused(tmp_path: Path) -> None:
    for arguments, where in (
        (["launch.workers=0"], "launch.workers"),
        (["launch.workers=2", "launch.isolation=none"], "launch.workers"),
        (["launch.isolation=thread"], "launch.isolation"),
        (["launch.nonsense=1"], "launch.nonsense"),
    ):
        with pytest.raises(ConfigError) as caught:
            compose_runs([f"runs_dir={tmp_path}", *arguments])
        assert where in {problem.where for problem in caught.value.problems}


def test_launching_changes_no_run(tmp_path: Path) -> None:
    (plain,) = compose_runs([f"runs_dir={tmp_path}"]).runs
    (apart_one,) = compose_runs([f"runs_dir={tmp_path}", "launch.isolation=process"]).runs
    assert (plain.config, plain.name) == (apart_one.config, apart_one.name)


def test_an_unknown_signal_is_told_by_its_number() -> None:
    assert "signal 99" in judge_exit(-99, is_out_of_memory=False, last_words="")[1]


def test_a_task_travels_whole(plan: RunPlan, tmp_path: Path) -> None:
    import pickle

    task = guard.RunTask(
        plans=(plan,),
        sweep_dir=tmp_path,
        needs_own_process=True,
        command=("optbench",),
        working_dir="/",
    )
    assert pickle.loads(pickle.dumps(task)) == task
