"""Folders from strangers: special files, links, bombs, escape sequences, formulas."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from optbench.storage import files, rundir
from tests.torture.commands import Figures, Workplace, every_kind, run, run_dirs, verification

_LIMIT_SECONDS = 240.0  # a command that waits for a pipe waits for ever
_MOST_BYTES = 900 * 2**20  # above what the same command takes without a bomb
_BOMB_PX = 13_300  # Pillow refuses 13 400 squared
_SPECIAL = (
    "config.yaml",
    "status.json",
    "provenance.json",
    "steps.jsonl",
    "epochs.jsonl",
    "layers.jsonl",
    "files.jsonl",
    "validation.jsonl",
    "metrics.jsonl",
    "images/epoch-0001/*.png",
    "images/rendered-as.json",
    "lora/*-000001.safetensors",
    "state/last.pt",
    "claims/000001.json",
    "sheets/*.png",
)
_ESCAPE = "\x1b]0;title\x07\x1b[31m[/bold]\u202e"


def hostile_campaign(workplace: Workplace, *, lora: Path) -> Figures:
    """Put hostile things into a finished sweep, and give every command that reads it."""
    place, done = workplace.root / "hostile", workplace.root / "finished"
    private = workplace.root / "private"
    commands = every_kind(workplace, place, lora=lora)
    run(place, commands)
    place.rename(done)
    losses: list[str] = []
    names = []
    for name, prepare in _cases(private):
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(private, ignore_errors=True)
        shutil.copytree(done, place)
        _make_private(private)
        before = _snapshot(private)
        run_dir = next(one.path for one in run_dirs(place) if one.path.parent.name == "torture")
        prepare(run_dir)
        names.append(name)
        sweep = str(place / "runs" / "torture")
        tried = [
            ("report", [["report", sweep]]),
            ("verify", [verification(place)]),
            ("metrics", [["metrics", sweep]]),
            ("render", [["render", sweep, *commands[1][2:]]]),
            ("train", commands[:1]),
        ]
        # In a file's place: what reads all files, and what would write them again.
        is_special = name.split(" as ")[0] in ("named pipe", "folder", "socket")
        for command, words in tried:
            if is_special and command in ("metrics", "render"):
                continue
            ended = run(place, words, limit_seconds=_LIMIT_SECONDS)
            new = list(ended.complaints())
            if ended.peak_bytes > _MOST_BYTES + _own_peak_bytes():
                new.append(f"{ended.peak_bytes >> 20} MiB of memory")
            losses += [f"{name}, {command}: {loss}" for loss in new]
        if _snapshot(private) != before:
            losses.append(f"{name}: something was written outside of the sweep")
        losses += [f"{name}: {loss}" for loss in _leaks(place, private)]
        losses += [f"{name}: {loss}" for loss in _formulas_left(Path(sweep) / "report")]
        print(f"  {name}: {losses[-2:]}", flush=True)
    what = f"named pipes, sockets and folders in place of {len(_SPECIAL)} kinds of files, links, "
    what += "bombs, escape sequences, formulas; report, verify, metrics, render and train on each: "
    what += "nothing hung, leaked, was written outside, or steered the terminal"
    return Figures(name="hostile folders", num_tried=len(names), what=what, losses=tuple(losses))


def _cases(private: Path) -> Iterator[tuple[str, Callable[[Path], object]]]:
    kinds = {"named pipe": os.mkfifo, "folder": os.mkdir, "socket": _make_socket}
    for number, name in enumerate(_SPECIAL):
        # The pipe is the worst; the others take turns.
        for word in ("named pipe", ("folder", "socket")[number % 2]):
            yield f"{word} as {name}", _in_place(name, kinds[word])
    yield (
        "run folder that is a link",
        lambda run_dir: (run_dir.rename(private / "run"), run_dir.symlink_to(private / "run")),
    )
    for name in ("images", "images/epoch-0001", "sheets", "thumbs", "../report", "state"):
        yield f"{name} that is a link", _link(name, private)
    for name in ("images/epoch-0001/*.png", "steps.jsonl", "config.yaml", "metrics.jsonl"):
        yield f"{name} that leads to a private file", _in_place(name, _link_to(private, name))
    yield "images of 177 million pixels", _put_bombs
    yield "escape sequences everywhere", _put_escapes
    yield "formulas as column names", _put_formulas


def _in_place(name: str, make: Callable[[Path], object]) -> Callable[[Path], object]:
    def prepare(run_dir: Path) -> None:
        for path in sorted(run_dir.glob(name))[:1]:
            path.unlink()
            make(path)

    return prepare


def _make_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the name of a socket is short
    try:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("s")
        os.rename("s", path.name)  # noqa: PTH104
    finally:
        os.chdir(before)


def _link(name: str, private: Path) -> Callable[[Path], object]:
    def prepare(run_dir: Path) -> None:
        path = run_dir / name
        shutil.rmtree(path, ignore_errors=True)
        path.symlink_to(private)

    return prepare


def _link_to(private: Path, name: str) -> Callable[[Path], object]:
    secret = "secret.png" if name.endswith(".png") else "secret.txt"
    return lambda path: path.symlink_to(private / secret)


def _make_private(private: Path) -> None:
    from PIL import Image

    private.mkdir()
    (private / "secret.txt").write_text("secret: WORDOFMINE\n")
    Image.new("RGB", (64, 64), (1, 254, 3)).save(private / "secret.png")


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_relative_to(folder / "run")
    }


def _leaks(place: Path, private: Path) -> Iterator[str]:
    """Yield the files of the sweep into which private ones were copied."""
    if not (private / "secret.txt").is_file():
        yield "the private files are gone"
    for path in (place / "runs" / "torture").rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        if b"WORDOFMINE" in path.read_bytes():
            yield f"{path.name} holds a private text"
        if path.suffix == ".webp" and _has_private_colour(path):
            yield f"{path.name} shows a private image"


def _has_private_colour(path: Path) -> bool:
    from PIL import Image

    try:
        with Image.open(path) as image:
            red, green, blue = image.convert("RGB").resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    except OSError:
        return False
    return red < 40 and green > 215 and blue < 40


def _put_bombs(run_dir: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + 3 * _BOMB_PX)
    data = b"".join(packer.compress(row) for _ in range(_BOMB_PX)) + packer.flush()
    head = struct.pack(">IIBBBBB", _BOMB_PX, _BOMB_PX, 8, 2, 0, 0, 0)
    content = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )
    folder = run_dir / "images" / "epoch-0001"
    for seed in range(100, 104):
        (folder / f"a-64x64-s{seed}.png").write_bytes(content)


def _put_escapes(run_dir: Path) -> None:
    rundir.write_status(run_dir, "failed", f"reason {_ESCAPE}")
    other = run_dir.parent / f"name{_ESCAPE.replace('/', '')}"
    shutil.copytree(run_dir, other)
    files.append_rows(other / "epochs.jsonl", [{"epoch": 9, _ESCAPE: 1.0}])
    (other / "provenance.json").write_text("{")
    lora = run_dir / "lora" / f"{run_dir.name}.safetensors"
    header = json.dumps({f"lora{_ESCAPE}": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}})
    lora.write_bytes(struct.pack("<Q", len(header.encode())) + header.encode() + b"\0" * 4)


def _put_formulas(run_dir: Path) -> None:
    rows, _ = files.readable_rows(run_dir / "steps.jsonl")
    files.write_rows(run_dir / "steps.jsonl", [{**row, "=HYPERLINK(1)": "=1+1"} for row in rows])


def _formulas_left(report: Path) -> list[str]:
    """Return the column names of a report's tables that a spreadsheet would run."""
    return [
        f"{path.name}: {column}"
        for path in report.glob("*.csv")
        for column in pd.read_csv(path, nrows=0).columns
        if str(column).startswith(("=", "+", "-", "@"))
    ]


def _own_peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
