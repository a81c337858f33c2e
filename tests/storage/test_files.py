"""Damage in anything of ours is noticed: every single flipped bit, and every file cut short."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from optbench.errors import DamagedFileError
from optbench.storage import disk, files, hashing, process

ROWS = [
    {"epoch": 1, "step": 1, "loss": 0.25, "text": "a\u2028b"},
    {"epoch": 1, "step": 2, "loss": 0.125, "note": None},
]
CONTENT: dict[str, Any] = {"schema": 1, "text": "\u00e9", "inner": {"a": [1, 0.5, None, True]}}
TEXT = "seed: 1\noptimizer:\n  name: adamw\n  lr: 0.001\n"


def flips(content: bytes) -> list[bytes]:
    """Return the content with every one of its bits wrong in turn."""
    found = []
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            found.append(bytes(changed))
    return found


def noticed(path: Path, read: Callable[[Path], object], whole: object) -> None:
    """Assert that no flip is read as something else than what was written."""
    content = path.read_bytes()
    missed = []
    for changed in flips(content):
        path.write_bytes(changed)
        try:
            if read(path) != whole:
                missed.append(changed)
        except DamagedFileError:
            continue
    assert not missed, missed[:3]


def test_every_flipped_bit_of_a_json_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, CONTENT)
    assert files.read_json(path) == CONTENT
    noticed(path, files.read_json, CONTENT)


def test_every_flipped_bit_of_a_text_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    files.write_sealed_text(path, TEXT)
    assert files.read_sealed_text(path) == TEXT
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(TEXT)
    noticed(path, files.read_sealed_text, TEXT)


def test_every_flipped_bit_of_records_is_noticed_or_loses_the_last_line(tmp_path: Path) -> None:
    """Without its end of line the last record is one that a killed process tore."""
    path = tmp_path / "steps.jsonl"
    files.append_rows(path, ROWS)
    content = path.read_bytes()
    assert files.read_rows(path) == ROWS
    for number, changed in enumerate(flips(content)):
        path.write_bytes(changed)
        try:
            read = files.read_rows(path)
        except DamagedFileError:
            continue
        is_end_of_line = number // 8 == len(content) - 1
        assert read == (ROWS[:1] if is_end_of_line else ROWS), changed


def test_a_file_cut_anywhere_is_noticed(tmp_path: Path) -> None:
    path, text = tmp_path / "a.json", tmp_path / "config.yaml"
    files.write_json(path, CONTENT)
    files.write_sealed_text(text, TEXT)
    whole, whole_text = path.read_bytes(), text.read_bytes()
    for length in range(len(whole) - 1):  # its last byte is the end of the line
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError):
            files.read_json(path)
    for length in range(1, len(whole_text)):
        text.write_bytes(whole_text[:length])
        try:
            read = files.read_sealed_text(text)
        except DamagedFileError:
            continue
        assert length < len("# sha256 of"), read  # still no text that could be settings
        assert yaml.safe_load(read) is None


def test_what_older_versions_wrote_is_read(tmp_path: Path) -> None:
    """They wrote no checksums; what is added to such records has them."""
    path, old, text = (tmp_path / name for name in ("a.json", "b.jsonl", "c.yaml"))
    path.write_text(json.dumps(CONTENT))
    old.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS))
    text.write_text(TEXT)
    assert files.read_json(path) == CONTENT
    assert files.read_rows(old) == ROWS
    assert files.read_sealed_text(text) == TEXT
    files.append_rows(old, ROWS)
    assert files.read_rows(old) == [*ROWS, *ROWS]
    with old.open("a") as file:
        file.write(json.dumps(ROWS[0]) + "\n")
    with pytest.raises(DamagedFileError, match="no checksum in line 5"):
        files.read_rows(old)


def test_rows_that_were_read_are_written_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    files.append_rows(path, [*ROWS, {"epoch": 2}])
    before = path.read_bytes()
    files.write_rows(path, files.read_rows(path))
    assert path.read_bytes() == before


def test_what_is_set_aside_keeps_its_bytes_and_is_no_longer_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    asides = []
    for content in (b"one", b"two", b"three"):
        path.write_bytes(content)
        asides.append(files.set_aside(path))
        assert not path.exists()
    assert [one.read_bytes() for one in asides] == [b"one", b"two", b"three"]
    assert [one.name for one in asides] == [f"a.json.damaged{end}" for end in ("", "2", "3")]


def test_the_lines_before_a_damaged_one_can_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    files.append_rows(path, [{"epoch": number} for number in range(5)])
    content = path.read_bytes().replace(b'"epoch":3', b'"epoch":7')
    path.write_bytes(content)
    rows, error = files.readable_rows(path)
    assert rows == [{"epoch": number} for number in range(3)]
    assert "line 4" in str(error)
    assert files.readable_rows(tmp_path / "none.jsonl") == ([], None)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, '"\\ud800"'])
def test_no_json_at_all_breaks_a_reader(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text + "\n")
    for read in (files.read_rows, files.read_json):
        with pytest.raises(DamagedFileError):
            read(path)


def test_the_hash_of_what_was_written_is_that_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a"
    digest = files.write_pieces(path, [b"one", memoryview(b"two")])
    assert path.read_bytes() == b"onetwo"
    assert digest == hashing.file_sha256(path)


def test_every_flipped_bit_and_every_cut_of_a_png_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8), (9, 99, 200)).save(path)
    whole = path.read_bytes()
    assert files.is_intact_png(path)
    for changed in [*flips(whole), *(whole[:length] for length in range(len(whole))), whole + b"x"]:
        path.write_bytes(changed)
        assert not files.is_intact_png(path)


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_name_replaces_what_was_there_and_leaves_nothing_beside_it(
    tmp_path: Path, has_links: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "source", tmp_path / "folder" / "target"
    source.write_bytes(b"content")

    def refuse(*names: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    for _ in range(2):  # the second time both names are of one file already
        files.link_or_copy(source, target)
        assert target.read_bytes() == b"content"
        assert list(target.parent.iterdir()) == [target]
    assert source.samefile(target) == has_links


def test_appended_records_are_on_the_disk_when_the_call_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync

    def noting_fsync(handle: int) -> None:
        fsync(handle)
        synced.append(os.fstat(handle).st_ino)

    path = tmp_path / "steps.jsonl"
    files.append_rows(path, ROWS)
    monkeypatch.setattr(os, "fsync", noting_fsync)
    files.append_rows(path, ROWS)
    assert synced == [path.stat().st_ino]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    """Opening a named pipe would wait for ever."""
    pipe, folder, listener = tmp_path / "pipe", tmp_path / "folder", tmp_path / "socket"
    os.mkfifo(pipe)
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(listener))
    device = Path("/dev/zero")
    for path, word in (
        (pipe, "a named pipe"),
        (folder, "a folder"),
        (listener, "a socket"),
        (device, "a device"),
    ):
        with pytest.raises(OSError, match=f"not a file: {word} has its name"):
            disk.read_bytes(path)
        for read in (files.read_json, files.read_sealed_text):
            with pytest.raises(DamagedFileError, match=word):
                read(path)
    real = tmp_path / "file"
    real.write_bytes(b"a\r\nb\rc\n")
    assert disk.read_bytes(real) == real.read_bytes()
    assert disk.read_text(real) == real.read_text()


def test_what_a_dead_writer_left_is_removed_by_the_next_write_into_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import os, sys, signal; from pathlib import Path; from optbench.storage import files\n"
        "os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_atomic(Path(sys.argv[1]), 'half')\n"
    )
    folder = tmp_path / "report"
    folder.mkdir()
    subprocess.run([sys.executable, "-c", code, str(folder / "a.csv")], check=False)
    (left,) = folder.iterdir()
    assert left.name.endswith(".tmp")
    living = folder / f"a.csv.{os.getpid()}-{process.place()[:8]}ffff.tmp"
    others = folder / "b.csv.17-0123456789ab.tmp"  # another machine's
    strange = folder / "mine.tmp"
    old = folder / "c.csv.17-01234567.tmp"  # of an earlier version
    for path in (living, others, strange, old):
        path.write_text("")
    os.utime(old, (5, 5))
    os.utime(strange, (5, 5))
    monkeypatch.setattr(files, "_SWEPT", set())
    files.write_atomic(folder / "a.csv", "whole")
    assert {path.name for path in folder.iterdir()} == {
        "a.csv",
        living.name,
        others.name,
        strange.name,
    }


def test_new_folders_are_on_the_disk_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(disk, "sync_folder", synced.append)
    disk.make_folder(tmp_path / "a" / "b")
    assert synced == [tmp_path, tmp_path / "a"]


def test_a_disk_that_refuses_a_write_is_told_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (
        lambda path: files.write_atomic(path, "a"),
        lambda path: files.append_rows(path, ROWS),
    ):
        with pytest.raises(OSError, match=r"No space left on device: .*a\.json"):
            write(tmp_path / "a.json")
