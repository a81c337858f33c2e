"""Addresses that work from a page opened by double click, whatever the folders are called."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote


def address(path: Path, folder: Path) -> str:
    """Return where `path` lies as seen from a page in `folder`: relative, percent-encoded."""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    # Without the dot a first part like "javascript:x" would be read as a scheme.
    return quote(relative if relative.startswith("..") else f"./{relative}")
