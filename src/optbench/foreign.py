"""Code of others, called so that whatever it raises becomes a sentence and stops nothing.

Trackers and metrics look on while LoRAs are compared. None of them is worth a run.
"""

from __future__ import annotations

from collections.abc import Callable


def attempt(work: Callable[[], object]) -> str:
    """Return what went wrong in `work` in one line, or nothing; only Ctrl-C comes through."""
    try:
        work()
    except (Exception, SystemExit) as error:
        first = str(error).strip().partition("\n")[0]
        return f"{type(error).__name__}: {first}"
    return ""
