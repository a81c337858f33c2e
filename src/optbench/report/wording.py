"""Write numbers as people say them: durations, sizes, differences, lists."""

from __future__ import annotations

import math
from collections.abc import Sequence

NONE = "-"  # where a number is unknown


def number_text(value: float) -> str:
    """Return a number with up to four digits, as an axis or a table shows it."""
    if value == 0 or abs(value) < 1e-12:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def decimal_text(value: float, digits: int) -> str:
    """Return a small number without an exponent, with so many digits that count: 0.00032."""
    if value == 0 or not 1e-7 <= abs(value) < 1e5:
        return f"{value:.{digits}g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:.{places}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def seconds_text(seconds: float | None) -> str:
    """Return a duration: 84.1 ms, 1.23 s, 45.6 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 0.9995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def about(seconds: float) -> str:
    """Return an estimate of a duration: about 40 s, about 20 min, about 3 h."""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 100 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {round(seconds / 3600)} h"


def bytes_text(num_bytes: float | None) -> str:
    """Return a size in binary units, as file managers do."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return NONE
    size = float(num_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.3g} {unit}"
        size /= 1024
    return f"{size:.3g} GiB"


def difference_text(difference: float | None) -> str:
    """Return a difference with its sign."""
    if difference is None or not math.isfinite(difference):
        return NONE
    return f"{'+' if difference > 0 else ''}{number_text(difference)}"


def listed(words: Sequence[str]) -> str:
    """Return words as a sentence lists them: a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def times(count: int, word: str) -> str:
    """Return how many there are of something: 1 run, 2 runs."""
    return f"{count} {word}{'' if count == 1 else 's'}"


def reasons_once(reasons: Sequence[str]) -> str:
    """Return reasons that several runs have, each kind once with the first run's numbers.

    Args:
        reasons: Of each run one text, `kind: numbers`, several of them joined by "; ".
    """
    kinds: dict[str, list[str]] = {}
    for reason in (part for text in reasons for part in text.split("; ")):
        kind, _, numbers = reason.partition(": ")
        kinds.setdefault(kind, []).append(numbers)
    words = []
    for kind, (first, *others) in kinds.items():
        more = f" (and {times(len(others), 'more run')})" if others else ""
        words.append(f"{kind}{f': {first}' if first else ''}{more}")
    return "; ".join(words)
