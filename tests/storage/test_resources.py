"""Where things lie in a checkout and in a wheel, and which command starts this installation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from optbench.storage import resources


def write(file: Path, text: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_a_checkout_has_its_root_two_levels_above_the_package(tmp_path: Path) -> None:
    write(tmp_path / "conf" / "config.yaml")
    assert resources.resource_root(tmp_path / "src" / "optbench") == tmp_path


def test_a_wheel_carries_conf_inside_the_package_which_wins(tmp_path: Path) -> None:
    package = tmp_path / "src" / "optbench"
    write(tmp_path / "conf" / "config.yaml")
    write(package / "conf" / "config.yaml")
    assert resources.resource_root(package) == package


def test_a_broken_installation_names_both_places(tmp_path: Path) -> None:
    package = tmp_path / "src" / "optbench"
    with pytest.raises(FileNotFoundError) as caught:
        resources.resource_root(package)
    assert str(package / "conf" / "config.yaml") in str(caught.value)
    assert str(tmp_path / "conf" / "config.yaml") in str(caught.value)


def test_the_sweeps_of_this_checkout_are_found() -> None:
    assert {"demo", "optimizers", "dims"} <= set(resources.sweep_names())


def test_commands_run_as_copied_from_where_they_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, elsewhere = tmp_path / "a checkout", tmp_path / "elsewhere"
    script = write(checkout / ".venv" / "bin" / "optbench")
    script.chmod(0o755)
    elsewhere.mkdir()
    monkeypatch.setattr(sys, "prefix", str(checkout / ".venv"))
    monkeypatch.setenv("PATH", str(elsewhere))
    monkeypatch.setenv("HOME", "/")  # nobody's, so that no path hides it

    monkeypatch.chdir(checkout)
    assert resources.program() == ".venv/bin/optbench"
    monkeypatch.chdir(elsewhere)
    assert resources.program() == f"'{script}'"
    (elsewhere / "optbench").symlink_to(script)  # as pipx does
    assert resources.program() == "optbench"

    script.unlink()
    assert resources.program() == f"{sys.executable} -m optbench"
    monkeypatch.setattr(sys, "executable", str(elsewhere / "python"))
    write(elsewhere / "python").chmod(0o755)
    assert resources.program() == "python -m optbench"


def test_a_printed_command_does_not_show_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "somebody", tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = write(home / "a checkout" / ".venv" / "bin" / "optbench", "#!/bin/sh\necho started")
    script.chmod(0o755)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(sys, "prefix", str(script.parents[1]))
    monkeypatch.chdir(elsewhere)
    line = resources.command_line("report", "runs/demo")
    assert line == "~/'a checkout/.venv/bin/optbench' report runs/demo"
    shell = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert shell.stdout == "started\n"

    script.unlink()
    monkeypatch.setattr(sys, "executable", str(home / "env" / "bin" / "python"))
    assert resources.program() == "~/env/bin/python -m optbench"


def test_a_command_line_is_quoted_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "program", lambda: "optbench")
    line = resources.command_line("resize", "-m", "source=[a,b]", "param=2,4")
    assert line == "optbench resize -m 'source=[a,b]' param=2,4"
    assert resources.command_line("train", "seed=1") == "optbench seed=1"
    assert resources.command_line("") == "optbench"
