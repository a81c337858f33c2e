"""Put into words how far learning rates were tuned, and where dim moves together with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from optbench.analysis.rates import RankTrap, Tuning
from optbench.report.wording import listed, number_text

_EVEN = 1.15


_SINGLE_RATE = {
    "raced": "1 rate here, from a race on this base model",
    "scaled": "untuned: 1 rate, never raced on this base model",
}


def tuning_badge(tuning: Tuning, source: str = "") -> str:
    """Return a badge for the best rate of a ladder, nothing for its other rates.

    Args:
        tuning: How far the rate was tuned in this sweep.
        source: Where a single rate comes from, one of `analysis.rates.RateSource`.
    """
    if tuning.is_automatic or (tuning.num_rates > 1 and not tuning.is_best):
        return ""
    if tuning.num_rates == 1:
        return _SINGLE_RATE.get(source, "untuned: 1 rate")
    words = [f"tuned: {tuning.num_rates} rates"]
    if tuning.spacing is not None:
        least, largest = tuning.spacing
        # Rates are typed in round numbers: 0.3, 1, 3 are evenly spaced.
        is_even = largest <= _EVEN * least
        ratios = (
            f"x{math.sqrt(least * largest):.2g}" if is_even else f"x{least:.2g} to x{largest:.2g}"
        )
        words.append(f"{ratios} apart")
    if tuning.position is not None:
        words.append(
            "inside" if tuning.position == "inside" else f"at the edge ({tuning.position})"
        )
    return ", ".join(words)


def rank_trap_sentence(trap: RankTrap) -> str:
    """Return what a comparison of dims mixes, and the overrides that separate it."""
    arms = listed([" ".join(arm) for arm in trap.arms])
    return (
        f"Dim and learning rate move together here: alpha / dim is {number_text(trap.ratio)} at "
        f"dim {listed(list(map(str, trap.dims)))}, and at one rate a larger dim changes the layers "
        f"more. Two arms separate them: {arms} (at dim {trap.dims[0]} both equal these runs)."
    )


def rate_sources_sentence(sources: Mapping[str, Collection[str]], base: str) -> str:
    """Return which recipes trained at a rate that a race found on a base, and which did not.

    Nothing on a base whose rates are the recipes' usual ones.

    Args:
        sources: Of each recipe, where its rates come from: of `analysis.rates.RateSource`.
        base: The base's name.
    """
    raced = sorted(recipe for recipe, of_recipe in sources.items() if "raced" in of_recipe)
    scaled = sorted(recipe for recipe, of_recipe in sources.items() if "scaled" in of_recipe)
    sentences = []
    if raced:
        whose = "the rate of" if len(raced) == 1 else "the rates of"
        sentences.append(
            f"On base={base} {whose} {listed(raced)} {'comes' if len(raced) == 1 else 'come'} from "
            "races at dim 16 on its own character: another size, length or data set wants others."
        )
    if scaled:
        sentences.append(
            f"No race has found the rate of {listed(scaled)} on base={base}: a default that does "
            "not suit it looks like a worse optimizer."
        )
    return " ".join(sentences)
