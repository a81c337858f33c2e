"""Find the LoRA files that a command names: single files, and folders of runs by epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optbench.errors import Problem
from optbench.storage.resources import command_line
from optbench.storage.rundir import RunDir


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One LoRA: a file, or a run's files by epoch."""

    name: str  # as sheets and <lora:NAME:STRENGTH> have it
    given: str
    files: Mapping[int | None, Path]  # None: a file that is no run's
    run_dir: Path | None

    def file(self, epoch: int | None) -> Path | None:
        """Return the file of an epoch, None for the last one; nothing where there is none."""
        if epoch is None or self.run_dir is None:
            return self.files[max(self.files, key=lambda number: number or 0)]
        return self.files.get(epoch)


def find_sources(given: Sequence[str], problems: list[Problem]) -> list[Source]:
    """Return what is at every place that is named, after noting where there is no LoRA."""
    sources = []
    for name_given in given:
        path = Path(name_given)
        files: dict[int | None, Path] = {}
        if path.is_dir():
            files.update(RunDir(path).lora_files().items())
        elif path.is_file() and path.suffix == ".safetensors":
            files[None] = path
        if files:
            name = path.resolve().name if path.is_dir() else path.stem
            run_dir = path if path.is_dir() else None
            sources.append(Source(name=name, given=name_given, files=files, run_dir=run_dir))
        else:
            what = "a folder without lora/*-000001.safetensors" if path.is_dir() else "no LoRA file"
            problems.append(_problem(name_given, what if path.exists() else "which does not exist"))
    names = [source.name for source in sources]
    problems += [
        _problem(source.given, f"a second LoRA of the name {source.name}")
        for index, source in enumerate(sources)
        if source.name in names[:index]
    ]
    return sources


def _problem(given: str, what: str) -> Problem:
    return Problem(
        "lora",
        f"{given}, {what}",
        "a .safetensors file, or a run's folder, each of a name of its own",
        f"write {command_line('render', 'FILE.safetensors')}, or the folder runs/SWEEP/RUN",
    )
