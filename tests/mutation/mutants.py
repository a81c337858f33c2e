"""The list of mutants, read from mutants.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One text of one source file that is replaced, and the tests that must notice."""

    file: str
    line: str
    mutant: str
    tests: tuple[str, ...]
    equivalent: str = ""  # why no test can notice, where none can

    def __str__(self) -> str:
        """Return the change in one line."""
        first, second = (" ".join(text.split()) for text in (self.line, self.mutant))
        return f"{self.file}: {first} -> {second or '(removed)'}"

    def applied(self, source: str) -> str:
        """Return the source with the mutant in it.

        Raises:
            ValueError: If the text is not there exactly once.
        """
        number = source.count(self.line)
        if number != 1:
            raise ValueError(f"{self.file} has {self.line!r} {number} times")
        return source.replace(self.line, self.mutant)


def read_mutants() -> list[Mutant]:
    """Return all mutants of the list."""
    content = yaml.safe_load((ROOT / "tests/mutation/mutants.yaml").read_text())
    return [
        Mutant(
            file=file,
            line=entry["line"],
            mutant=entry["mutant"],
            tests=tuple((entry.get("tests") or group["tests"]).split()),
            equivalent=entry.get("equivalent", ""),
        )
        for file, group in content.items()
        for entry in group["mutants"]
    ]
