"""A small sweep on the embedded base, made in processes of its own that may be killed.

Each command runs in a fork of this process, which has imported everything and loaded the base: so
a hundred of them take minutes, and still each is a process with a death of its own.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from optbench.cli import train as cli
from optbench.config.compose import compose_runs, flags_first
from optbench.launch import guard
from optbench.storage import files, rundir
from optbench.storage.rundir import RunDir
from optbench.training.session import Session

SIZE = 64
_POLL_SECONDS = 0.002
_UNLIKE = ("peak_memory_bytes", "load_average")  # besides all that is called seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one part of the campaign did, and what of it was lost."""

    name: str
    num_tried: int
    what: str  # of what kind the tries were, and what became of them
    losses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int | None  # None: killed
    cpu_seconds: float
    num_operations: int
    output: str


class Workplace:
    """A folder with pictures; sweeps and their caches lie beside them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        folder = root / "data" / "1_thing"
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(3):
            image = Image.new("RGB", (SIZE, SIZE), (40 * index, 90, 200 - 40 * index))
            ImageDraw.Draw(image).ellipse((10, 10, 30 + 8 * index, 45), fill=(250, 220, 40))
            image.save(folder / f"{index}.png")
            (folder / f"{index}.txt").write_text(f"thing, number {index}, blue sky\n")

    def arguments(self, place: Path, *extra: str) -> list[str]:
        """Return the command line of a sweep in `place`, with its own caches."""
        return [
            f"dataset.dir={self.root / 'data'}",
            f"runs_dir={place / 'runs'}",
            f"cache_dir={place / 'cache'}",
            "sweep_name=torture",
            "dataset=folder",
            f"dataset.resolution=[{SIZE},{SIZE}]",
            f"dataset.min_bucket_reso={SIZE}",
            "dataset.max_bucket_reso=256",
            "train.epochs=3",
            "train.batch_size=2",
            "train.num_threads=1",
            "dropout=network",
            "render.steps=1",
            "render.seeds=[7]",
            "prompts=folder",
            f"prompts.prompts={{a:{{text:thing,negative:'',width:{SIZE},height:{SIZE}}}}}",
            *extra,
        ]


SWEEP = ("-m", "optimizer=adamw,prodigy", "network.dim=2", "render=off")
PICTURES = ("-m", "optimizer=lion", "network.dim=2,4", "validate=default", *(
    "validate.num_pictures=2", "validate.timesteps=[500]"
))  # fmt: skip


SESSION = Session()  # its base is loaded before any fork, and found by all of them


class Made:
    """A sweep composed once, to be made again and again in one place without Hydra and report.

    What is left is what may lose something: the runs, their claims, files and statuses.
    """

    def __init__(self, workplace: Workplace, name: str, *extra: str) -> None:
        self.place = workplace.root / name
        self.arguments = workplace.arguments(self.place, *extra)
        self.asked = compose_runs(flags_first(self.arguments))

    def make(self, _: Sequence[str] = ()) -> int:
        """Make every run that is not done, as the command does; return its exit code."""
        self.asked.sweep_dir.mkdir(parents=True, exist_ok=True)
        statuses = [guard.run_guarded(plan, SESSION) for plan in self.asked.runs]
        for run in self.asked.runs:
            record = rundir.read_status(run.run_dir)
            if record.status != "done":
                print(f"{run.run_dir.name}: {record.status}: {record.reason}")
        return 0 if set(statuses) == {"done"} else 1

    def run(self, **kill: Any) -> Ended:
        """Make the runs in a process of its own, which may be killed."""
        return command([], main=self.make, **kill)

    def whole(self) -> tuple[Ended, dict[str, Any]]:
        """Make the sweep undisturbed, and return how it ended and what it made; it is removed."""
        ended = self.run()
        found = results_of(self.place)
        if ended.code != 0:
            raise RuntimeError(f"the sweep that nothing disturbs: {ended.output[-3000:]}")
        shutil.rmtree(self.place)
        return ended, found


def sweep_dir(place: Path) -> Path:
    """Return where a sweep's runs lie."""
    return place / "runs" / "torture"


def run_dirs(place: Path) -> list[RunDir]:
    """Return the runs of a sweep, by name."""
    return [RunDir(path.parent) for path in sorted(sweep_dir(place).glob("*/config.yaml"))]


def command(
    arguments: Sequence[str],
    *,
    cpu_seconds: float | None = None,
    operations: int | None = None,
    main: Callable[[Sequence[str]], int] = cli.main,
) -> Ended:
    """Run a command to its end, or until it is killed with SIGKILL.

    Args:
        arguments: The command line.
        cpu_seconds: Kill it after so many seconds of processor time.
        operations: Kill it at this file operation (open to write, rename, link, remove), from 1.
        main: The command.
    """
    out_read, out_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(out_read)
        _live(arguments, out_write, operations, main)
    os.close(out_write)
    is_killed = False
    chunks = []
    os.set_blocking(out_read, False)
    while True:
        with contextlib.suppress(BlockingIOError):
            chunks.append(os.read(out_read, 1 << 20))
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            break
        if cpu_seconds is not None and not is_killed and _cpu_seconds(pid) >= cpu_seconds:
            os.kill(pid, signal.SIGKILL)
            is_killed = True
        time.sleep(_POLL_SECONDS)
    with contextlib.suppress(BlockingIOError):
        while chunk := os.read(out_read, 1 << 20):
            chunks.append(chunk)
    os.close(out_read)
    text = b"".join(chunks).decode(errors="replace")
    code = os.waitstatus_to_exitcode(status)
    counted = text.rpartition("operations: ")[2].strip()
    return Ended(
        code=None if code == -signal.SIGKILL else code,
        cpu_seconds=usage.ru_utime + usage.ru_stime,
        num_operations=int(counted) if counted.isdigit() else 0,
        output=text,
    )


def _live(
    arguments: Sequence[str],
    out: int,
    operations: int | None,
    main: Callable[[Sequence[str]], int],
) -> None:
    """Be the command; never returns."""
    code = 70
    try:
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", closefd=False)
        counted = _count_operations(operations)
        code = main(list(arguments))
        sys.stdout.flush()
        sys.stderr.write(f"\noperations: {counted[0]}\n")
        sys.stderr.flush()
    except BaseException:  # a traceback on the screen is a finding
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _count_operations(limit: int | None) -> list[int]:
    """Count what changes files from now on, and kill this process at number `limit`."""
    counted = [0]
    own = os.getpid()

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
        if is_write or event in ("os.rename", "os.link", "os.remove", "os.truncate"):
            counted[0] += 1
            if counted[0] == limit and os.getpid() == own:
                os.kill(own, signal.SIGKILL)

    sys.addaudithook(hook)
    return counted


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def results_of(place: Path) -> dict[str, Any]:
    """Return everything that must be equal in two makings of one sweep, by run and file."""
    found: dict[str, Any] = {}
    for run in run_dirs(place):
        key = run.name
        found[f"{key}/status"] = rundir.read_status(run.path).status
        for path in sorted(run.lora_dir.glob("*.safetensors")):
            found[f"{key}/{path.name}"] = path.read_bytes()
        for path in sorted(run.path.glob("*.jsonl")):
            found[f"{key}/{path.name}"] = _rows(path)
        for path in sorted(run.path.glob("images/*/*.png")):
            found[f"{key}/{path.parent.name}/{path.name}"] = path.read_bytes()
    return found


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
    """Return what is not as in the undisturbed sweep, and what lies there besides."""
    found = results_of(place)
    unlike = [
        key for key in sorted(found.keys() | whole.keys()) if found.get(key) != whole.get(key)
    ]
    debris = [
        str(path.relative_to(place))
        for path in sweep_dir(place).rglob("*")
        if path.name.endswith((".tmp", ".partial"))
    ]
    return unlike + debris


def prepare(workplace: Workplace) -> None:
    """Make a sweep in this process: all is imported and the base loaded, for the forks to find."""
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        code = Made(workplace, "warm", *PICTURES, "train.epochs=1").make()
    if code != 0:
        raise RuntimeError(f"the sweep that nothing disturbs ended with {code}")
