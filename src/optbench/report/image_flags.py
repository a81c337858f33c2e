"""Put flags of images into words, and warn of settings that a loss puts first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from optbench.analysis.image_metrics import Flag, FlagKind
from optbench.analysis.standings import Setting, Standings
from optbench.report.wording import listed, number_text, times

_MAX_NAMED = 3
_WORDS: Mapping[FlagKind, str] = {
    "blank": "blank",
    "burnt": "burnt",
    "noise": "noise",
    "identical_seeds": "all seeds give the same image",
    "outfit_leak": "the outfit leaks",
    "lost_background": "the background is not the one asked for",
    "unchanged": "hardly differs from the base model",
    "near_copy": "near-copy",
}


def flag_words(flag: Flag) -> str:
    """Return the flag in words."""
    copied = f" of {flag.training_image}" if flag.training_image else ""
    return f"{_WORDS[flag.kind]}{copied}"


def flag_numbers(flag: Flag) -> str:
    """Return the numbers that the flag rests on."""
    if flag.kind == "near_copy":
        return times(flag.num_images, "image")
    base = "" if flag.base_value is None else f", base {number_text(round(flag.base_value, 3))}"
    after = " after the last epoch" if flag.kind == "unchanged" else ""
    return f"{flag.metric} {number_text(round(flag.value, 3))}{base}{after}"


def flag_reason(flag: Flag) -> str:
    """Return the numbers and where to look."""
    if flag.kind == "unchanged":
        return flag_numbers(flag)
    epochs = ", ".join(map(str, flag.epochs))
    if flag.kind == "near_copy":
        prompt, seed = flag.first_copy
        place = f"first prompt {prompt}, seed {seed}, epoch {flag.epochs[0]}"
        return f"{flag_numbers(flag)}; {place}"
    return f"{flag_numbers(flag)}; epoch {epochs}"


def by_setting(standings: Standings, flags: Sequence[Flag]) -> dict[str, str]:
    """Return what is wrong with the last epoch's images of each setting, by its label.

    A setting is not there where none of its runs is flagged.
    """
    words: dict[str, dict[str, None]] = {}
    for setting in standings.settings:
        for flag in flags:
            if flag.is_last and flag.run in setting.runs:
                text = f"{flag_words(flag)} ({flag_numbers(flag)})"
                words.setdefault(setting.label, {})[text] = None
    return {label: listed(list(texts)) for label, texts in words.items()}


def warning(chosen: Sequence[Setting], flagged: Mapping[str, str]) -> str:
    """Return a sentence to follow a recommendation: whose images are flagged; or nothing."""
    labels = [setting.label for setting in chosen if setting.label in flagged]
    if not labels:
        return ""
    if len(chosen) == 1:
        return " But its images are flagged: look at them first."
    more = f" and {len(labels) - _MAX_NAMED} more" if len(labels) > _MAX_NAMED else ""
    names = ", ".join(labels[:_MAX_NAMED])
    return f" But look first at the images of {names}{more}: they are flagged."


def flagged_leaders(
    chosen: Sequence[Setting], ordered: Sequence[Setting], flagged: Mapping[str, str]
) -> Iterator[str]:
    """Yield what is wrong with the chosen settings' images, and the lowest setting without it.

    Args:
        chosen: What the losses put first.
        ordered: All that are finished, the lowest first.
        flagged: As `by_setting` returns it.
    """
    labels = [setting.label for setting in chosen if setting.label in flagged]
    for label in labels[:_MAX_NAMED]:
        yield f"Images of {label} after the last epoch: {flagged[label]}."
    if labels:
        sound = [setting.label for setting in ordered if setting.label not in flagged]
        lowest = f"The lowest without flagged images: {sound[0]}." if sound else ""
        yield lowest or "Every setting here has flagged images."
