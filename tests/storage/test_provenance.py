"""What a run was made with is stored, and nothing that names the machine or the person."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import types
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from optbench.storage import files, provenance


@pytest.fixture(autouse=True)
def _git_is_asked_anew() -> Iterator[None]:
    provenance.git_state.cache_clear()
    yield
    provenance.git_state.cache_clear()


def collected(**changes: Any) -> dict[str, Any]:
    asked: dict[str, Any] = {"packages": [], "command": [], "extra": {}, **changes}
    return provenance.collect(**asked)


def make_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # A person's own settings, for instance signed commits, must not reach these commits.
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    source = folder / "src" / "optbench"
    source.mkdir(parents=True)
    (source / "__init__.py").write_text("")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "Somebody")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "somebody@example.com")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", "-C", str(folder), *arguments], check=True)
    monkeypatch.setattr(provenance, "_CHECKOUT", folder)
    return folder


def test_it_can_be_stored_as_json_and_says_what_was_used() -> None:
    content = collected(
        packages=["pytest", "no-such-package-anywhere"], command=["optbench", "seed=1"]
    )
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["python"] == platform.python_version()
    assert content["packages"] == {"pytest": pytest.__version__, "no-such-package-anywhere": None}
    assert content["command"] == ["optbench", "seed=1"]
    assert content["cpu"]
    assert 1 <= content["num_cpus"] <= (os.cpu_count() or 1)
    assert content["memory_bytes"] > 1 << 27
    age = datetime.now(UTC) - datetime.fromisoformat(content["time"])
    assert 0 <= age.total_seconds() < 60
    assert datetime.fromisoformat(content["time"]).utcoffset() is not None


def test_further_keys_are_added_and_win() -> None:
    content = collected(extra={"device": "cpu", "platform": "asked", "sizes": (1, 2)})
    assert (content["device"], content["platform"], content["sizes"]) == ("cpu", "asked", [1, 2])


def test_neither_the_machine_nor_the_person_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: "my-secret-host")
    monkeypatch.setenv("HOME", "/home/somebody")
    content = collected(
        command=["/home/somebody/.venv/bin/optbench", "dataset.dir=/home/somebody/pictures"],
        extra={
            "inner": {"list": [Path("/home/somebody")], "/home/somebody/key": 1},
            "other": "/home/somebodyelse/x and /backup/home/somebody",
        },
    )
    assert content["command"] == ["~/.venv/bin/optbench", "dataset.dir=~/pictures"]
    assert content["inner"]["list"] == ["~"]
    assert content["other"].startswith("/home/somebodyelse/x")
    assert content["inner"]["~/key"] == 1
    assert os.uname().nodename not in json.dumps(content)


def test_a_home_folder_that_is_the_root_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/")
    command = ["/usr/bin/optbench", "dataset.dir=/.pictures"]
    assert collected(command=command)["command"] == command


def test_torch_is_never_loaded_for_it() -> None:
    code = (
        "import sys; from optbench.storage.provenance import collect\n"
        "content = collect(packages=['torch'], command=[], extra={})\n"
        "assert content['gpus'] == [] and content['packages']['torch']\n"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(provenance.__file__).parents[2])}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0


def test_gpus_are_named_when_torch_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = types.SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_device_name=lambda i: f"card {i}"
    )
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert collected()["gpus"] == ["card 0", "card 1"]


def test_the_commit_and_changes_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    asked = ["git", "-C", str(folder), "rev-parse", "HEAD"]
    commit = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    assert collected()["git"] == {"commit": commit, "is_dirty": False}
    (folder / "runs").mkdir()
    (folder / "runs" / "untracked.txt").write_text("a result, not code")
    provenance.git_state.cache_clear()
    assert collected()["git"] == {"commit": commit, "is_dirty": False}
    (folder / "src" / "optbench" / "__init__.py").write_text("changed = True")
    provenance.git_state.cache_clear()
    assert collected()["git"] == {"commit": commit, "is_dirty": True}


def test_git_is_asked_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    before = collected()["git"]
    assert before is not None
    # The code in memory is the one from before, whatever is edited while a sweep runs.
    (folder / "src" / "optbench" / "__init__.py").write_text("changed = True")
    assert collected()["git"] == before


def test_git_variables_of_a_hook_do_not_lead_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    expected = collected()["git"]
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    provenance.git_state.cache_clear()
    assert collected()["git"] == expected
    assert folder.is_dir()


def test_no_checkout_no_git_and_a_hanging_git_are_null(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_CHECKOUT", tmp_path)
    assert collected()["git"] is None
    make_checkout(tmp_path / "checkout", monkeypatch)

    def hanging(*arguments: Any, **keywords: Any) -> None:
        raise subprocess.TimeoutExpired(arguments[0], keywords["timeout"])

    provenance.git_state.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", hanging)
        assert collected()["git"] is None
    monkeypatch.setenv("PATH", str(tmp_path))
    provenance.git_state.cache_clear()
    assert collected()["git"] is None


def test_somebody_elses_repository_around_an_installed_package_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkout(tmp_path / "checkout", monkeypatch)
    inside = folder / "project" / ".venv"
    inside.mkdir(parents=True)
    monkeypatch.setattr(provenance, "_CHECKOUT", inside)
    assert collected()["git"] is None


def session(from_step: int, to_step: int, **facts: Any) -> dict[str, Any]:
    return {"from_step": from_step, "to_step": to_step, "num_threads": 1, "device": "cpu", **facts}


def test_every_process_that_trained_a_run_is_named_and_no_other() -> None:
    trained = session(0, 4, packages={"torch": "2.9"})
    resumed = session(4, 8, packages={"torch": "2.13"}, device="cuda:1", gpus=["A", "B"])
    rendered = session(8, 8, packages={"torch": "3.0"})
    facts = provenance.identity_facts({"sessions": [trained, resumed, rendered]})
    assert facts["torch_version"] == "2.9, 2.13"
    assert facts["device_kind"] == "cpu, cuda"
    assert facts["gpu"] == "B"
    assert facts["threads"] == "1"  # of the part that was computed on a CPU


def test_a_session_that_began_again_leaves_nothing_of_those_before_it() -> None:
    lost, again = session(0, 4, num_threads=1), session(0, 8, num_threads=2)
    assert provenance.identity_facts({"sessions": [lost, again]})["threads"] == "2"
    # The first got to step 4, the second resumed at 2 and went on from there.
    assert provenance.training_sessions({"sessions": [lost, session(2, 8)]})[0] is lost


def test_an_older_file_is_one_session() -> None:
    older = {
        "optbench": "0.1.0",
        "packages": {"torch": "2.13.0", "lion-pytorch": "0.2.3"},
        "git": {"commit": "abc", "is_dirty": True},
        "optimizer": {"package": "lion-pytorch", "package_version": "0.2.3"},
        "dataset": {"fingerprint": "d"},
        "base": {"fingerprint": "b"},
        "device": "cpu",
        "num_threads": 2,
        "cpu": "x",
    }
    assert provenance.sessions_of(older) == [older]
    assert {k: v for k, v in provenance.identity_facts(older).items() if v is not None} == {
        "data_fingerprint": "d",
        "base_fingerprint": "b",
        "optimizer_version": "lion-pytorch 0.2.3",
        "torch_version": "2.13.0",
        "optbench_version": "0.1.0",
        "optbench_commit": "abc+",
        "device_kind": "cpu",
        "cpu": "x",
        "threads": "2",
    }


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"sessions": "x"},
        {"sessions": [1, None]},
        {"sessions": [{"from_step": "0", "to_step": []}]},
        {"sessions": [{"packages": [], "git": 3, "gpus": {}, "device": 7}], "optimizer": 1},
    ],
)
def test_what_a_file_of_others_says_wrongly_is_not_known(content: dict[str, Any]) -> None:
    assert set(provenance.identity_facts(content).values()) == {None}


def test_sessions_are_added_and_none_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    older = {"optbench": "0.0.9", "packages": {"torch": "1.0"}, "dataset": {"fingerprint": "d"}}
    files.write_json(path, older)
    for version in ("2.9", "2.13"):
        facts = {"dataset": {"fingerprint": "d"}, "notices": []}
        packages = {"torch": version}
        assert provenance.begin_session(path, session(0, 0, packages=packages), facts) is None
        provenance.update_session(path, to_step=4)
    content = files.read_json(path)
    versions = [one["packages"]["torch"] for one in provenance.sessions_of(content)]
    assert versions == ["1.0", "2.9", "2.13"]
    assert [one.get("to_step") for one in content["sessions"]] == [None, 4, 4]
    assert content["dataset"] == {"fingerprint": "d"}
    sentences = provenance.shown_facts(content)["sessions"]
    assert len(sentences) == 3
    assert "trained steps 0 to 4" in sentences[2]
    assert "torch 2.13" in sentences[2]


def test_a_damaged_file_is_set_aside_and_said(tmp_path: Path) -> None:
    path = tmp_path / "provenance.json"
    path.write_text("{")
    damage = provenance.begin_session(path, session(0, 0), {"notices": ["first"]})
    assert damage is not None
    assert (tmp_path / "provenance.json.damaged").is_file()
    assert files.read_json(path)["notices"] == ["first", damage]
