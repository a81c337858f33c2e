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

from optbench.storage import provenance


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
