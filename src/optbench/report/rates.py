"""Put into words how far learning rates were tuned, and where dim moves together with them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from optbench.analysis.rates import CHOSEN_ON, RankTrap, Tuning
from optbench.report.wording import listed, number_text

_EVEN = 1.15


def tuning_badge(tuning: Tuning) -> str:
    """Return a badge for the best rate of a ladder, nothing for its other rates."""
    if tuning.is_automatic or (tuning.num_rates > 1 and not tuning.is_best):
        return ""
    if tuning.num_rates == 1:
        return "untuned: 1 rate"
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


def chosen_rates_sentence(recipes: Sequence[str], base: str) -> str:
    """Return which default rates were chosen by looking at this base model; or nothing."""
    if base not in CHOSEN_ON:
        return ""
    sentence = (
        f"On base={base} all default rates are multiplied by base.lr_scale, which was chosen by "
        "eye with AdamW and Lion."
    )
    chosen = sorted(CHOSEN_ON[base] & {*recipes})
    if not chosen:
        return sentence
    own = "Its rate was" if len(chosen) == 1 else "Their rates were"
    return f"{sentence} {listed(chosen)}: {own.lower()} besides cut to a third for the loss here."
