"""Say which build of a report is the newest, for pages that are open while a sweep trains.

`report/built.js` is a script of one line. A page reads it every few seconds, by double click too,
where it may read no other file, and shows the newer build where its own is another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from optbench.storage.disk import open_to_append
from optbench.storage.files import write_atomic

BUILT_NAME = "built.js"
_LOCK_NAME = "building.lock"


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """One build of a report."""

    is_live: bool  # its sweep was training: another build follows
    id: str = field(default_factory=lambda: secrets.token_hex(6))
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, report_dir: Path) -> None:
        """Write it as the newest; the last thing of a build, when all its files are there."""
        content = {"id": self.id, "live": self.is_live, "time": self.time}
        text = f"window.optbenchBuilt={json.dumps(content)};\n"
        write_atomic(report_dir / BUILT_NAME, text, durable=False)


@contextlib.contextmanager
def building(report_dir: Path, *, waits: bool) -> Iterator[bool]:
    """Hold the right to build a report; False where another process has it and `waits` is not.

    Two processes of one machine never build at once. Where the disk has no locks, as on some
    shares, nothing is held: every file of a report is written whole, whoever writes it.
    """
    report_dir.mkdir(parents=True, exist_ok=True)
    with open_to_append(report_dir / _LOCK_NAME) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        except OSError:
            pass
        yield True
