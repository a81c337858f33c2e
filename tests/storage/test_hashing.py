"""Fingerprints of settings, and hashes of files that are read once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from optbench.storage import hashing


def write(file: Path, text: str = "x") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_fingerprints_depend_on_content_only() -> None:
    one = hashing.fingerprint({"a": 1, "b": [1, 2]})
    assert one == hashing.fingerprint({"b": [1, 2], "a": 1})
    assert one != hashing.fingerprint({"a": 1, "b": [2, 1]})
    assert len(one) == 16
    assert hashing.fingerprint({"a": float("inf")}) == hashing.fingerprint({"a": "inf"})


def test_a_fingerprint_changes_with_bytes_and_names_of_weights_only(tmp_path: Path) -> None:
    weights = write(tmp_path / "unet" / "a.safetensors", "one")
    first = hashing.folder_fingerprint(tmp_path)
    assert len(first) == 16
    write(tmp_path / "preview.png", "a picture")
    assert hashing.folder_fingerprint(tmp_path) == first
    weights.write_text("two")
    second = hashing.folder_fingerprint(tmp_path)
    assert second != first
    weights.rename(weights.with_name("b.safetensors"))
    assert hashing.folder_fingerprint(tmp_path) not in (first, second)


def test_a_fingerprint_does_not_depend_on_where_the_folder_is(tmp_path: Path) -> None:
    for place in ("here", "there"):
        write(tmp_path / place / "vae" / "config.json", "{}")
    here, there = (hashing.folder_fingerprint(tmp_path / place) for place in ("here", "there"))
    assert here == there


def test_known_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = write(tmp_path / "base" / "a.safetensors", "one")
    cache = tmp_path / "cache"
    cache.mkdir()
    first = hashing.folder_fingerprint(tmp_path / "base", cache_dir=cache)
    reads: list[Path] = []
    original = hashing._read_sha256
    monkeypatch.setattr(
        hashing, "_read_sha256", lambda path: (reads.append(path), original(path))[1]
    )
    assert hashing.folder_fingerprint(tmp_path / "base", cache_dir=cache) == first
    assert reads == []
    weights.write_text("two")
    os.utime(weights, ns=(1, 1))
    assert hashing.folder_fingerprint(tmp_path / "base", cache_dir=cache) != first
    assert reads == [weights]


def test_a_damaged_cache_is_made_again_and_none_is_created(tmp_path: Path) -> None:
    write(tmp_path / "base" / "a.safetensors", "one")
    plain = hashing.folder_fingerprint(tmp_path / "base")
    assert hashing.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "absent") == plain
    # A wrong digit would give every run on this base another name.
    (tmp_path / "cache").mkdir()
    cache = tmp_path / "cache" / "file-hashes.json"
    assert hashing.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "cache") == plain
    text = cache.read_text()
    place = text.index("safetensors|") + len('safetensors|1|1234": "') + 20
    cache.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    assert hashing.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "cache") == plain
    assert not (tmp_path / "absent").exists()
    write(tmp_path / "cache" / "file-hashes.json", "{truncated")
    assert hashing.folder_fingerprint(tmp_path / "base", cache_dir=tmp_path / "cache") == plain
