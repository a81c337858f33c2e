"""Folders that are made once for all processes of a test session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


class SharedFolders:
    """Makes a folder the first time any worker asks for it; who asks meanwhile waits.

    What one test finds there, others find too: look at it, copy it, never change it.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def folder(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return the folder `name`, which `make` fills if it is not there; it exists by then."""
        folder, ready = self._root / name, self._root / f"{name}.ready"
        with FileLock(self._root / f"{name}.lock"):
            if not ready.exists():
                folder.mkdir()
                make(folder)
                ready.touch()
        return folder
