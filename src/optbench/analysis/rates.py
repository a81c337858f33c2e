"""Tell how far the learning rates of a sweep were tuned, and where dim moves together with them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from optbench.analysis.comparisons import is_missing

RATES = ("lr_mult", "optimizer.lr", "optimizer.unet_lr", "optimizer.text_encoder_lr")
_AUTOMATIC = "automatic"  # optimizer.traits.lr_role of a class that finds its own rate
_SAME = 1e-6  # relative; rates and ratios are typed with fewer digits
_SIGNIFICANT_DIGITS = 3

# typed: by whoever started the run; raced: the best of a race on its base model; scaled: the
# recipe's usual one times what suits that base on the whole; usual: the recipe's; own: the class
# finds it.
RateSource = Literal["typed", "raced", "scaled", "usual", "own"]
Position = Literal["inside", "lowest", "highest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """One trained combination on its way into a ladder of rates."""

    key: str  # what tells it from all others
    rest: tuple[str, ...]  # its other settings, the recipe among them
    rates: tuple[float | None, ...]  # as typed, in the order of the varied settings of `RATES`
    lr_role: str
    value: float  # its mean loss; lower is better


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How far the rate of one setting was tuned, its recipe and everything else being equal."""

    num_rates: int
    spacing: tuple[float, float] | None  # the least and the largest ratio of neighbours; None: one
    position: Position | None  # of the best rate among those tried; None: one, or no order
    is_best: bool  # this setting has the best of the rates
    is_automatic: bool  # the class finds its own rate, and takes none

    @property
    def is_tuned(self) -> bool:
        """Whether more than one rate was tried, or none can be."""
        return self.is_automatic or self.num_rates > 1


def rate_source(config: Mapping[str, Any], changed: Collection[str]) -> RateSource | None:
    """Return where a run's rate, but for `lr_mult`, comes from; None where its folder does not say.

    Args:
        config: As in its config.yaml.
        changed: The settings that are not as they ship, of its provenance.
    """
    base, optimizer = config.get("base"), config.get("optimizer")
    if not isinstance(base, Mapping) or not isinstance(optimizer, Mapping):
        return None
    scales, traits = base.get("lr_scales"), optimizer.get("traits")
    if not isinstance(scales, Mapping) or not isinstance(traits, Mapping):
        return None
    if traits.get("lr_role") == _AUTOMATIC:
        return "own"
    if not {"optimizer.lr", "optimizer.unet_lr"}.isdisjoint(changed):
        return "typed"
    raced = scales.get(optimizer.get("name"))
    is_manual = traits.get("lr_role") == "manual"
    if raced is not None and (not is_manual or raced == base.get("lr_scale")):
        return "raced"
    return "usual" if base.get("lr_scale") == 1 else "scaled"


def tunings(rungs: Iterable[Rung]) -> dict[str, Tuning]:
    """Return by key how far each setting's rate was tuned; a ladder's rungs have equal `rest`."""
    ladders: dict[tuple[str, ...], list[Rung]] = {}
    for rung in rungs:
        ladders.setdefault(rung.rest, []).append(rung)
    result = {}
    for ladder in ladders.values():
        columns = [set(column) for column in zip(*(rung.rates for rung in ladder), strict=True)]
        moving = [index for index, values in enumerate(columns) if len(values) > 1]
        best = min(ladder, key=lambda rung: rung.value)
        spacing: tuple[float, float] | None = None
        position: Position | None = None
        if len(moving) == 1:
            steps = sorted(rate for rate in columns[moving[0]] if rate is not None and rate > 0)
            ratios = [after / before for before, after in zip(steps, steps[1:], strict=False)]
            spacing = (min(ratios), max(ratios)) if ratios else None
            rate = best.rates[moving[0]]
            if ratios and rate is not None and rate in steps:
                ends: dict[float, Position] = {steps[0]: "lowest", steps[-1]: "highest"}
                position = ends.get(rate, "inside")
        num_rates = len({rung.rates for rung in ladder})
        for rung in ladder:
            result[rung.key] = Tuning(
                num_rates=num_rates,
                spacing=spacing,
                position=position,
                is_best=rung is best,
                is_automatic=rung.lr_role == _AUTOMATIC,
            )
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTrap:
    """Dims compared at one rate and one ratio of alpha to dim: dim and rate move together.

    At a fixed scale alpha / dim the change that one update makes to a layer grows with dim, as if
    the rate had been raised (Kalajdzievski 2023, 2312.03732: the scale that keeps it is
    alpha / sqrt(dim)). Two further arms tell dim from rate: a fixed alpha, so that the scale falls
    with dim, and rsLoRA at a fixed alpha. Both are given so that nothing changes at the least dim.
    """

    dims: tuple[int, ...]
    ratio: float  # alpha / dim
    fixed_alpha: float
    rslora_alpha: float

    @property
    def arms(self) -> tuple[tuple[str, ...], ...]:
        """The overrides of both arms."""
        return (
            (f"network.alpha={self.fixed_alpha:g}",),
            ("network.rslora=true", f"network.alpha={self.rslora_alpha:g}"),
        )


def rank_trap(rows: Iterable[Mapping[str, Any]]) -> RankTrap | None:
    """Return the trap that runs fall into, or None: one dim, several rates, or an arm that tells.

    Args:
        rows: The settings of each run, by override name (`analysis.settings`).
    """
    by_recipe: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_recipe.setdefault(str(row.get("optimizer")), []).append(row)
    traps = [trap for of_recipe in by_recipe.values() if (trap := _trap(of_recipe)) is not None]
    return max(traps, key=lambda trap: len(trap.dims), default=None)


def _trap(rows: Sequence[Mapping[str, Any]]) -> RankTrap | None:
    sizes: dict[int, set[float]] = {}
    for row in rows:
        dim, alpha = row.get("network.dim"), row.get("network.alpha")
        if not isinstance(dim, (int, float)) or not isinstance(alpha, (int, float)) or not dim > 0:
            continue
        if row.get("network.rslora") is True:
            return None
        sizes.setdefault(int(dim), set()).add(float(alpha) / dim or 1.0)  # alpha 0 stands for dim
    ratios = sorted(ratio for of_dim in sizes.values() for ratio in of_dim)
    if len(sizes) < 2 or ratios[-1] > ratios[0] * (1 + _SAME):
        return None
    rates = {tuple(repr(row.get(name)) for name in RATES) for row in rows}
    if len(rates) > 1:
        return None
    least, ratio = min(sizes), ratios[0]
    return RankTrap(
        dims=tuple(sorted(sizes)),
        ratio=ratio,
        fixed_alpha=ratio * least,
        rslora_alpha=float(f"{ratio * math.sqrt(least):.{_SIGNIFICANT_DIGITS}g}"),
    )


def rate_of(value: Any) -> float | None:
    """Return a rate as a number; None where it is not given or is none."""
    if is_missing(value) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
