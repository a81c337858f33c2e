"""Whole commands on the embedded base model, in processes of their own that may be disturbed.

Each command runs in a fork of this process, which has imported everything: so hundreds of them
take minutes, and each is still a process with a death of its own. It goes through the real command
line: Hydra, locks, validation, metrics, report, plots, resized files, class images.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from optbench.cli import main as cli
from optbench.errors import DamagedFileError
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from tests.torture import faults
from tests.torture.faults import Fault

SIZE = 64
_POLL_SECONDS = 0.002
_LIMIT_SECONDS = 900.0  # of the wall, on a busy machine; a command that hangs is a loss
_UNLIKE = ("peak_memory_bytes", "load_average")  # besides all that is called seconds
_TRACEBACK = "Traceback (most recent call last)"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one part of the campaign did, and what of it was lost."""

    name: str
    num_tried: int
    what: str  # of what kind the tries were, and what became of them
    losses: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int | None  # None: killed
    cpu_seconds: float
    num_operations: int
    hit: str  # the path that a fault met, relative to the command's place
    output: str
    peak_bytes: int
    is_hung: bool

    def complaints(self) -> Iterator[str]:
        """Yield what no command may do, whatever happens to it."""
        if self.is_hung:
            yield f"hung: {self.output[-600:]}"
        elif self.code is not None and self.code not in (0, 1, 2):
            yield f"exit {self.code}: {self.output[-1500:]}"
        if _TRACEBACK in self.output:
            yield f"a traceback: {self.output[self.output.index(_TRACEBACK) :][-1200:]}"
        if _CONTROL.search(self.output.replace("\r", "")):
            yield f"control characters on the screen: {self.output[-600:]!r}"
        if self.code in (1, 2) and "->" not in self.output and "optbench" not in self.output:
            yield f"no word of how to go on: {self.output[-600:]}"


class Workplace:
    """A folder with images; the places of commands, each with its caches, lie beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folder = root / "data" / "1_thing"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(3):
            image = Image.new("RGB", (SIZE, SIZE), (40 * index, 90, 200 - 40 * index))
            ImageDraw.Draw(image).ellipse((10, 10, 30 + 8 * index, 45), fill=(250, 220, 40))
            image.save(folder / f"{index}.png")
            (folder / f"{index}.txt").write_text(f"thing, number {index}, blue sky\n")

    def data(self) -> list[str]:
        """Return the settings of the data set."""
        return [
            "dataset=folder",
            f"dataset.dir={self.root / 'data'}",
            f"dataset.resolution=[{SIZE},{SIZE}]",
            f"dataset.min_bucket_reso={SIZE}",
            "dataset.max_bucket_reso=256",
        ]

    def training(self, place: Path, *extra: str) -> list[str]:
        """Return the command line of a sweep in `place`, with its own caches."""
        return [
            "-m",
            *self.data(),
            *_IMAGES,
            *_VALIDATION,
            f"runs_dir={place / 'runs'}",
            f"cache_dir={place / 'cache'}",
            "sweep_name=torture",
            "train.epochs=2",
            "train.batch_size=2",
            "train.num_threads=1",
            "network.dim=2",
            "dropout=network",
            *extra,
        ]


_IMAGES = (
    "render.steps=1",
    "render.seeds=[7]",
    "prompts=folder",
    f"prompts.prompts={{a:{{text:thing,negative:'',width:{SIZE},height:{SIZE}}}}}",
)
_VALIDATION = ("validate=default", "validate.num_pictures=1", "validate.timesteps=[500]")
OPTIMIZERS = "optimizer=adamw,lion"
Commands = list[list[str]]


def every_kind(workplace: Workplace, place: Path, *, lora: Path) -> Commands:
    """Return one command of every kind that writes: train, render, resize, regularize.

    A training ends with metrics and a report. `lora` is what is rendered and resized, so that these
    need nothing of the training.
    """
    cache = f"cache_dir={place / 'cache'}"
    device = ("device=cpu", "num_threads=1")
    return [
        workplace.training(place, OPTIMIZERS),
        ["render", str(lora), *_IMAGES, *device, f"dir={place / 'renders'}", cache],
        [
            *("resize", f"source={lora}", "new_dim=1", "sweep_name=resized", *device),
            *(*workplace.data(), *_IMAGES, *_VALIDATION),
            *(f"runs_dir={place / 'runs'}", cache),
        ],
        [
            *("regularize", "class_words=thing", "num_pictures=2", "steps=1", *device),
            *(f"width={SIZE}", f"height={SIZE}", f"dir={place / 'classes'}", cache),
        ],
    ]


def verification(place: Path) -> list[str]:
    """Return the command that reads all of it again."""
    folders = [place / name for name in ("runs", "renders", "classes")]
    return ["verify", *(str(folder) for folder in folders if folder.is_dir())]


def run(
    place: Path,
    commands: Sequence[Sequence[str]],
    *,
    fault: Fault | None = None,
    cpu_seconds: float | None = None,
    then: Callable[[], object] | None = None,
    limit_seconds: float = _LIMIT_SECONDS,
) -> Ended:
    """Run commands one after the other in a process of their own, perhaps a disturbed one.

    All are tried, as a person would; the code is the highest.

    Args:
        place: The folder whose files a fault is about.
        commands: The words behind `optbench` of each.
        fault: What happens at a file operation.
        cpu_seconds: Kill it after so many seconds of processor time.
        then: Called at that moment instead, while the command goes on.
        limit_seconds: Call it hung after so many seconds.
    """
    out_read, out_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out_read)
        _live(place, commands, out_write, fault)
    os.close(out_write)
    is_killed = is_hung = False
    chunks = []
    started = time.monotonic()
    os.set_blocking(out_read, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            chunks.append(os.read(out_read, 1 << 20))
        ended, status, usage = os.wait4(pid, os.WNOHANG)
        if ended:
            break
        is_over = cpu_seconds is not None and _cpu_seconds(pid) >= cpu_seconds
        is_hung = time.monotonic() - started > limit_seconds
        if is_over and then is not None:
            then()
            cpu_seconds = None
        elif (is_over or is_hung) and not is_killed:
            os.kill(pid, signal.SIGKILL)
            is_killed = True
        time.sleep(_POLL_SECONDS)
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(out_read, 1 << 20):
            chunks.append(chunk)
    os.close(out_read)
    text, _, told = b"".join(chunks).decode(errors="replace").partition(_LAST_LINE)
    last = json.loads(told) if told else {}
    code = os.waitstatus_to_exitcode(status)
    return Ended(
        code=None if code == -signal.SIGKILL else code,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        num_operations=last.get("operations", 0),
        hit=last.get("hit", "").removeprefix(f"{place}/"),
        output=text,
        peak_bytes=usage.ru_maxrss * 1024,
        is_hung=is_hung and is_killed,
    )


_LAST_LINE = "\nwhat the campaign asks: "


def _live(
    place: Path,
    commands: Sequence[Sequence[str]],
    out: int,
    fault: Fault | None,
) -> None:
    """Be the command; never returns."""
    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False, errors="backslashreplace")
        sys.stderr = os.fdopen(2, "w", closefd=False, errors="backslashreplace")
        if faults.is_loaded():
            faults.arm(place, fault or Fault(action="count"))
        code = max([cli.main(list(words)) for words in commands])
        sys.stdout.flush()
        if faults.is_loaded():
            told = {"operations": faults.counted(), "hit": faults.hit()}
            sys.stderr.write(f"{_LAST_LINE}{json.dumps(told)}")
        sys.stderr.flush()
    except BaseException:  # a traceback on the screen is a finding
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def results_of(place: Path) -> dict[str, Any]:
    """Return everything that must be equal in two makings of the same commands, by file."""
    results: dict[str, Any] = {}
    for run_dir in run_dirs(place):
        key = f"{run_dir.path.parent.name}/{run_dir.name}"
        results[f"{key}/status"] = rundir.read_status(run_dir.path).status
        for path in sorted(run_dir.path.glob("*.jsonl")):
            try:
                results[f"{key}/{path.name}"] = _rows(path)
            except DamagedFileError:
                results[f"{key}/{path.name}"] = "corrupt"
    for pattern in (
        "runs/*/*/lora/*.safetensors",
        "runs/*/*/images/*/*.png",
        "renders/cells/*.png",
        "renders/sheets/*/*.webp",
        "classes/*/*.png",
    ):
        for path in sorted(place.glob(pattern)):
            results[str(path.relative_to(place))] = path.read_bytes()
    for path in sorted(place.glob("runs/*/report/**/*")):  # their bytes name seconds
        results[str(path.relative_to(place))] = "there"
    return results


def run_dirs(place: Path) -> list[RunDir]:
    """Return the runs of all sweeps below a place, by name."""
    return [RunDir(path.parent) for path in sorted(place.glob("runs/*/*/config.yaml"))]


def _rows(path: Path) -> list[dict[str, Any]]:
    return [
        {
            name: value
            for name, value in row.items()
            if not name.startswith("seconds") and name not in _UNLIKE
        }
        for row in files.read_rows(path)
    ]


def differences(place: Path, whole: dict[str, Any]) -> list[str]:
    """Return what is not as it is undisturbed, and what lies there besides."""
    results = results_of(place)
    unlike = [
        key for key in sorted(results.keys() | whole.keys()) if results.get(key) != whole.get(key)
    ]
    debris = [
        str(path.relative_to(place))
        for path in place.rglob("*")
        if path.name.endswith((".tmp", ".partial", ".new"))
    ]
    return unlike + debris


@dataclass(frozen=True, slots=True, kw_only=True)
class Undisturbed:
    """Commands that nothing disturbed: what they made, what they cost."""

    place: Path
    commands: Commands
    ended: Ended
    results: dict[str, Any]

    def again(self) -> list[str]:
        """Give the same commands in the same place; return what is not as it is undisturbed."""
        ended = run(self.place, self.commands)
        losses = [*ended.complaints(), *differences(self.place, self.results)]
        if ended.code != 0:
            losses.append(f"exit {ended.code}: {ended.output[-800:]}")
        return losses


def half_files(place: Path, whole: dict[str, Any]) -> list[str]:
    """Return the LoRA files and images that have their name and are not whole."""
    return [
        f"{key} is not whole"
        for key, value in results_of(place).items()
        if key.endswith((".safetensors", ".png")) and whole.get(key) not in (None, "there", value)
    ]


def undisturbed(place: Path, commands: Commands) -> Undisturbed:
    """Run commands to their end; what they made is read and then removed."""
    ended = run(place, commands)
    if ended.code != 0:
        raise RuntimeError(f"the commands that nothing disturbs: {ended.output[-3000:]}")
    results = results_of(place)
    shutil.rmtree(place)
    return Undisturbed(place=place, commands=commands, ended=ended, results=results)


def prepare(workplace: Workplace) -> Path:
    """Run every kind of command in this process, so that all is imported; return a LoRA file."""
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    # A process that is killed leaves no core, and one that fails must not take the machine along.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    place = workplace.root / "warm"
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(output):
        codes = [cli.main(workplace.training(place, "optimizer=adamw"))]
        (run_dir,) = run_dirs(place)
        lora = run_dir.lora_path(None)
        codes += [cli.main(words) for words in every_kind(workplace, place, lora=lora)[1:]]
        codes += [cli.main(verification(place))]
    if any(codes):
        raise RuntimeError(f"what nothing disturbs ended with {codes}: {output.getvalue()[-2000:]}")
    return lora
