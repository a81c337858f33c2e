"""Numbers as people say them: durations, sizes, differences."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optbench.report.charts import number_text

_NUM_TIMES_SHOWN = 5
_NONE = "-"


def seconds_text(seconds: float | None) -> str:
    """Return a duration: 84 ms, 1.23 s, 45.6 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return _NONE
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 99.95:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(num_bytes: float | None) -> str:
    """Return a size in binary units, as file managers do."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return _NONE
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def difference_text(difference: float | None) -> str:
    """Return a difference with its sign."""
    if difference is None or not math.isfinite(difference):
        return _NONE
    return f"{'+' if difference > 0 else ''}{number_text(difference)}"


def times_text(times: Sequence[tuple[int, float]]) -> str:
    """Return the seconds to each epoch in one line; of many epochs a few, and always the last."""
    shown = list(times)
    if len(shown) > _NUM_TIMES_SHOWN:
        last = len(times) - 1
        places = {round(last * part / (_NUM_TIMES_SHOWN - 1)) for part in range(_NUM_TIMES_SHOWN)}
        shown = [times[place] for place in sorted(places)]
    return ", ".join(f"{epoch}: {seconds_text(seconds)}" for epoch, seconds in shown) or _NONE
