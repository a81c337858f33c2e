"""Where things lie in a checkout and in a wheel, and what a folder of weights hashes to."""

from __future__ import annotations

import os
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


def test_a_command_line_is_quoted_for_a_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "program", lambda: "optbench")
    line = resources.command_line("resize", "-m", "source=[a,b]", "param=2,4")
    assert line == "optbench resize -m 'source=[a,b]' param=2,4"
    assert resources.command_line("train", "seed=1") == "optbench seed=1"
    assert resources.command_line("") == "optbench"


def test_a_fingerprint_changes_with_bytes_and_names_of_weights_only(tmp_path: Path) -> None:
    weights = write(tmp_path / "unet" / "a.safetensors", "one")
    first = resources.folder_fingerprint(tmp_path)
    assert len(first) == 16
    write(tmp_path / "preview.png", "a picture")
    assert resources.folder_fingerprint(tmp_path) == first
    weights.write_text("two")
    second = resources.folder_fingerprint(tmp_path)
    assert second != first
    weights.rename(weights.with_name("b.safetensors"))
    assert resources.folder_fingerprint(tmp_path) not in (first, second)


def test_a_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write(tmp_path / place / "vae" / "config.json", "{}")
    here, there = (resources.folder_fingerprint(tmp_path / place) for place in ("here", "there"))
    assert here == there


def test_known_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = write(tmp_path / "base" / "a.safetensors", "one")
    cache = tmp_path / "cache"
    cache.mkdir()
    first = resources.folder_fingerprint(tmp_path / "base", cache_dir=cache)
    reads: list[Path] = []
    original = resources.hash_of
    monkeypatch.setattr(resources, "hash_of", lambda path: (reads.append(path), original(path))[1])
    assert resources.folder_fingerprint(tmp_path / "base", cache_dir=cache) == first
    assert reads == []
    weights.write_text("two")
    os.utime(weights, ns=(1, 1))
    assert resources.folder_fingerprint(tmp_path / "base", cache_dir=cache) != first
    assert reads == [weights]


def test_a_damaged_cache_is_made_again_and_none_is_created(tmp_path: Path) -> None:
    write(tmp_path / "base" / "a.safetensors", "one")
    plain = resources.folder_fingerprint(tmp_path / "base")
    assert resources.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "absent") == plain
    # A wrong digit would give every run on this base another name.
    (tmp_path / "cache").mkdir()
    cache = tmp_path / "cache" / "file-hashes.json"
    assert resources.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "cache") == plain
    text = cache.read_text()
    place = text.index("safetensors|") + len('safetensors|1|1234": "') + 20
    cache.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    assert resources.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "cache") == plain
    assert not (tmp_path / "absent").exists()
    write(tmp_path / "cache" / "file-hashes.json", "{truncated")
    assert resources.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "cache") == plain
