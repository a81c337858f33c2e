"""What the pictures say against the settings that a loss puts first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optbench.analysis.standings import Setting, Standings
from optbench.report.image_metrics import Flag
from optbench.report.wording import listed

_MAX_NAMED = 3


def oddities(standings: Standings, flags: Sequence[Flag]) -> dict[str, str]:
    """Return what is odd about the last epoch's pictures of each setting, by its label.

    A setting is not there where none of its runs is flagged.
    """
    found: dict[str, dict[str, None]] = {}
    for setting in standings.settings:
        names = {run.run.name for run in setting.runs}
        for flag in flags:
            if flag.is_last and flag.run.run.name in names:
                numbers = flag.why.partition(";")[0]
                found.setdefault(setting.label, {})[f"{flag.what} ({numbers})"] = None
    return {label: listed(list(whats)) for label, whats in found.items()}


def beware(chosen: Sequence[Setting], odd: Mapping[str, str]) -> str:
    """Return a sentence to follow what recommends settings: which have odd pictures; or nothing."""
    named = [one.label for one in chosen if one.label in odd]
    if not named:
        return ""
    if len(chosen) == 1:
        return " But its pictures are odd: look at them first."
    more = f" and {len(named) - _MAX_NAMED} more" if len(named) > _MAX_NAMED else ""
    return f" But look first at the pictures of {', '.join(named[:_MAX_NAMED])}{more}: odd."


def against(
    chosen: Sequence[Setting], ordered: Sequence[Setting], odd: Mapping[str, str]
) -> Iterator[str]:
    """Yield what is odd about the chosen settings, and which is the lowest without.

    Args:
        chosen: What the losses put first.
        ordered: All that are finished, the lowest first.
        odd: As `oddities` returns it.
    """
    named = [one.label for one in chosen if one.label in odd]
    for label in named[:_MAX_NAMED]:
        yield f"Pictures of {label} after the last epoch: {odd[label]}."
    if named:
        sound = [one.label for one in ordered if one.label not in odd]
        lowest = f"The lowest whose pictures show none of it: {sound[0]}." if sound else ""
        yield lowest or "No setting here has pictures without something odd."
