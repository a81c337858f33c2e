"""Name files that are still being written, and remove those whose process is gone."""

from __future__ import annotations

import itertools
import os
import re
import secrets
import time
from pathlib import Path

import psutil

from optbench.storage.process import place

_NAME = re.compile(r"\.(?P<pid>\d+)-(?P<place>[0-9a-f]{8})[0-9a-f]*\.[a-z]+$")
_ABANDONED_SECONDS = 86_400.0  # no file takes a day to be written
_PLACE = place()[:8]  # of this boot and PID namespace; empty where there is none to tell
_COUNTER = itertools.count()  # of the files of this process, all of its threads


def partial_path(path: Path, suffix: str) -> Path:
    """Return a name beside a file that no other process uses, for what will get its name.

    It tells the process and the place: two machines may have processes of one number.
    """
    unique = f"{_PLACE or secrets.token_hex(4)}{next(_COUNTER):04x}"
    return path.with_name(f"{path.name}.{os.getpid()}-{unique}{suffix}")


def remove_abandoned(folder: Path, suffix: str) -> None:
    """Remove the partial files of killed processes: they cannot do it themselves.

    Of this machine's processes at once, of others' after a day.
    """
    for partial in folder.glob(f"*{suffix}"):
        match = _NAME.search(partial.name)
        if match is None:
            continue  # not ours
        try:
            if match["place"] == _PLACE:
                is_abandoned = not psutil.pid_exists(int(match["pid"]))
            else:  # another machine's, or an older version's
                is_abandoned = time.time() - partial.stat().st_mtime > _ABANDONED_SECONDS
            if is_abandoned:
                partial.unlink()
        except OSError:
            continue  # its process has finished it, or this folder may not be written to
