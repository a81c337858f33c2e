"""Addresses that work from a page opened by double click, and folders that lead nowhere else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote

from optbench.errors import DatasetError, Problem

_MAX_NAMED = 5


def address(path: Path, folder: Path) -> str:
    """Return where `path` lies as seen from a page in `folder`: relative, percent-encoded."""
    relative = Path(os.path.relpath(path, folder)).as_posix()
    # Without the dot a first part like "javascript:x" would be read as a scheme.
    return quote(relative if relative.startswith("..") else f"./{relative}")


def refuse_links(folders: Iterable[Path]) -> None:
    """See that what is written below these folders stays there.

    A sweep's folder may come from somebody else: a symbolic link in it could lead anywhere.

    Raises:
        DatasetError: If one of them, or a folder inside of one, is a symbolic link; names them.
    """
    links: list[Path] = []
    for folder in folders:
        if folder.is_symlink():
            links.append(folder)
            continue
        for parent, names, _ in os.walk(folder):
            links += [path for name in names if (path := Path(parent, name)).is_symlink()]
    if links:
        raise DatasetError(
            *(
                Problem(
                    str(link),
                    f"a symbolic link to {link.readlink()}",
                    "a folder of its own, because the report is written into it",
                    (
                        f"remove the link (rm {link.name}, in {link.parent}); the report makes the "
                        "folder anew"
                    ),
                )
                for link in links[:_MAX_NAMED]
            )
        )
