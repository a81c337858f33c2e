"""One model for all settings: value = setting + block + rest, and all their differences together.

Blocks are what settings share, such as a seed: its effect cancels in every difference. The variance
of the rest is pooled over settings, and where these are unlike each has its own, drawn towards the
common one (Smyth 2004, SAGMB 3(1), 3; Phipson et al. 2016, AOAS 10, 946). Intervals of all pairs
hold together (Tukey and Kramer, with the degrees of Welch and Satterthwaite), so that a pair may
be looked at because of what was measured. Where every value is a mean over images, the images are
as random as the blocks (a crossed design; Cornfield and Tukey 1956, Ann. Math. Stat. 27, 907).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from optbench.analysis.stats.intervals import CONFIDENCE, Floats, Interval, student_quantile
from optbench.analysis.stats.studentized_range import range_quantile, range_quantiles

POWER = 0.8
# A common variance never counts for more degrees than this: of 35 settings with heavy-tailed noise
# one will have an outlier that only its own runs can warn of (tests/statistics).
_MOST_PRIOR_DEGREES = 20.0
# A setting ten times as noisy as the quieter half belongs to no common variance: it has collapsed.
_WILD = 100.0
_WILD_PROBABILITY = 0.01

_LEAST = 1e-60  # size of values that are all 0
_LEAST_WEIGHT = 1e-4  # of a setting's runs for the blocks' effects
_NO_DEGREES = 1e-6  # what rounding leaves of none
_ROUNDING = 1e-12  # of the values' size

Flags = NDArray[np.bool_]
Indices = NDArray[np.int64]
Images = Mapping[str, Mapping[str, float]]  # by kind of images: of each image its part of the value


@dataclass(frozen=True, slots=True, kw_only=True)
class TwoWay:
    """All settings compared with one another; arrays are in the order of `names`.

    Differences are second minus first: `differences[i, j]` is setting j minus setting i. What
    cannot be said is NaN.
    """

    names: tuple[Hashable, ...]
    means: Floats  # (S,), as if each setting had run in every block of those it is connected with
    differences: Floats  # (S, S)
    lows: Floats  # (S, S), of the intervals that hold together
    highs: Floats
    errors: Floats  # (S, S), standard errors of the differences
    degrees: Floats  # (S, S)
    num_shared: Floats  # (S, S), blocks that both have
    deviation: float | None  # of one run, with its block's effect taken out, pooled
    residual_degrees: float  # 0: nothing is known of luck
    is_wild: tuple[bool, ...]  # much noisier than the others or known to be unlike: not pooled
    num_images: int  # that the intervals are about, as a sample of others; 0: blocks alone
    mean_errors: Floats  # (S,), standard errors of single means, the block's luck included
    mean_degrees: Floats  # (S,)
    num_blocks: Floats  # (S,)

    def place(self, name: Hashable) -> int:
        """Return the index of a setting in the arrays."""
        return self.names.index(name)

    def difference(self, first: Hashable, second: Hashable) -> Interval:
        """Return second minus first with its simultaneous interval."""
        i, j = self.place(first), self.place(second)
        return self._interval(self.differences[i, j], self.lows[i, j], self.highs[i, j], i, j)

    def difference_of_bests(
        self, first: Sequence[Hashable], second: Sequence[Hashable]
    ) -> Interval:
        """Return the least mean of `second` minus the least of `first`.

        Whichever setting is truly the least of its group, the interval holds: the least of a group
        is at most each of its members, so low is the highest over i in `first` of the lowest over
        j in `second` of the pairs' own, and high the lowest over j of the highest over i.
        """
        i = [self.place(name) for name in first]
        j = [self.place(name) for name in second]
        lows, highs = self.lows[np.ix_(i, j)], self.highs[np.ix_(i, j)]
        best_i, best_j = (min(group, key=lambda at: self.means[at]) for group in (i, j))
        return self._interval(
            float(self.means[best_j] - self.means[best_i]),
            float(lows.min(axis=1).max()),
            float(highs.max(axis=0).min()),
            best_i,
            best_j,
        )

    def mean(self, name: Hashable, *, confidence: float = CONFIDENCE) -> Interval:
        """Return a setting's own mean with its interval, of it alone."""
        at = self.place(name)
        error, degrees = float(self.mean_errors[at]), float(self.mean_degrees[at])
        mean = float(self.means[at])
        half = (
            student_quantile((1 + confidence) / 2, degrees) * error
            if math.isfinite(error)
            else math.nan
        )
        return self._interval(mean, mean - half, mean + half, at, at)

    def detectable(
        self,
        num_blocks: int | None = None,
        *,
        power: float = POWER,
        confidence: float = CONFIDENCE,
    ) -> float | None:
        """Return the smallest true difference of two settings that is seen with this probability.

        None where nothing is known of luck.

        Args:
            num_blocks: Of each setting; None: those that there are.
            power: How often it would be seen.
            confidence: Of all intervals together.
        """
        pairs = np.triu(np.isfinite(self.errors), 1)
        if not pairs.any() or self.deviation is None:
            return None
        variances, degrees = self.errors[pairs] ** 2, self.degrees[pairs]
        middle = int(np.argsort(variances)[(len(variances) - 1) // 2])
        variance, f = float(variances[middle]), float(degrees[middle])
        if num_blocks is not None:
            shared = max(1.0, float(np.median(self.num_shared[pairs])))
            of_blocks = 2 * self.deviation**2 / shared
            of_images = max(0.0, variance - of_blocks)
            variance = 2 * self.deviation**2 / num_blocks + of_images
            f = max(1.0, f * (num_blocks - 1) / max(1.0, shared - 1))
        critical = range_quantile(confidence, len(self.names), round(f, 1)) / math.sqrt(2)
        return (critical + student_quantile(power, f)) * math.sqrt(variance)

    def _interval(self, mean: float, low: float, high: float, i: int, j: int) -> Interval:
        is_known = math.isfinite(low) and math.isfinite(high)
        return Interval(
            mean=float(mean),
            low=float(low) if is_known else None,
            high=float(high) if is_known else None,
            num_values=int(self.num_blocks[i] + self.num_blocks[j]) // (1 + (i == j)),
            num_blocks=int(self.num_shared[i, j]),
        )


def fit_two_way(
    values: Mapping[Hashable, Mapping[Hashable, float]],
    images: Mapping[Hashable, Mapping[Hashable, Images]] | None = None,
    *,
    apart: Collection[Hashable] = (),
    confidence: float = CONFIDENCE,
) -> TwoWay:
    """Return all settings compared; blocks may be missing, and settings share none.

    Two settings that no chain of shared blocks connects are compared as independent samples, if
    any setting was run twice.

    Args:
        values: Of each setting its value in every block that it was run in, at least one.
        images: Of each value its parts by image: the value is the sum over kinds of the mean over
            images. The images of a kind are taken as a sample of all such images where every value
            has the same ones. Where each block has images of its own, its luck has theirs in it.
        apart: Settings known to be unlike the others, whose variance says nothing of theirs.
        confidence: Of all intervals together.
    """
    names = tuple(values)
    blocks = tuple(dict.fromkeys(block for of_name in values.values() for block in of_name))
    Y = np.asarray([[values[n].get(b, math.nan) for b in blocks] for n in names], dtype=float)
    Y = Y.reshape(len(names), len(blocks))
    present = np.isfinite(Y)
    num_blocks = present.sum(axis=1).astype(float)
    is_apart = np.asarray([name in apart for name in names])
    rest = _residual_variances(Y, present, is_apart & ~is_apart.all())
    design = _Design(present, np.maximum(_LEAST_WEIGHT, rest.common / rest.of_settings))
    means, residuals = design.solve(Y)
    squared = rest.common * _of_pairs(design.covariance)
    # Welch's degrees; but two settings with one common variance do not know it twice.
    share = rest.of_settings / num_blocks
    f = _combined_degrees((share[:, None], rest.degrees[:, None]), (share, rest.degrees))
    f = np.minimum(f, np.maximum(rest.degrees[:, None], rest.degrees))
    # Where no chain of others connects two settings, the luck of whole blocks counts as well.
    total, total_degrees = _total_variance(Y, present, design.parts, rest.is_wild)
    of_mean = np.maximum(total, rest.of_settings) / num_blocks
    mean_f = np.full(len(names), total_degrees)
    # Nor is anything else known where no two settings share two blocks.
    is_unconnected = (design.parts[:, None] != design.parts) | (rest.num_degrees == 0)
    squared = np.where(is_unconnected, of_mean[:, None] + of_mean, squared)
    f = np.where(is_unconnected, total_degrees, f)
    num_images = 0
    if images is not None and rest.num_degrees:
        for X in _image_arrays(images, names, blocks, present):
            num_images += X.shape[2]
            pairs, alone = _image_variances(X, design)
            squared, f = pairs.added_to(squared, f)
            of_mean, mean_f = alone.added_to(of_mean, mean_f)
    is_known = np.where(is_unconnected, total_degrees, rest.num_degrees) > 0
    errors = np.where(is_known, np.sqrt(squared), math.nan)
    half = np.full(errors.shape, math.nan)
    if len(names) > 1:
        half = range_quantiles(confidence, len(names), f) / math.sqrt(2) * errors
    differences = means[None, :] - means[:, None]
    return TwoWay(
        names=names,
        means=means,
        differences=differences,
        lows=differences - half,
        highs=differences + half,
        errors=errors,
        degrees=f,
        num_shared=present.astype(float) @ present.T,
        deviation=math.sqrt(rest.common) if rest.num_degrees else None,
        residual_degrees=rest.num_degrees,
        is_wild=tuple(map(bool, rest.is_wild)),
        num_images=num_images,
        mean_errors=np.where(mean_f > 0, np.sqrt(of_mean), math.nan),
        mean_degrees=mean_f,
        num_blocks=num_blocks,
    )


class _Design:
    """Weighted least squares of value = setting + block, for any values in the same places."""

    def __init__(self, present: Flags, weights: Floats) -> None:
        """Prepare for values where `present` (S, B); a setting's variance is 1 / its weight."""
        self.present = present
        self.parts = _connected_parts(present)
        self._weights_SB = weights[:, None] * present
        self._in_block = self._weights_SB.sum(axis=0)
        self._shares = self._weights_SB / self._in_block
        information = np.diag(self._weights_SB.sum(axis=1)) - self._weights_SB @ self._shares.T
        # Of contrasts of settings: a constant more in all means of a connected part is any other.
        self.covariance: Floats = np.linalg.pinv(information, rcond=1e-10, hermitian=True)
        in_part = self.parts[:, None] == self.parts
        of_part = (in_part.astype(float) @ present) > 0
        self._of_part = of_part / of_part.sum(axis=1, keepdims=True)

    def solve(self, Y: Floats) -> tuple[Floats, Floats]:
        """Return means (S, ...) and residuals (S, B, ...) of values (S, B, ...).

        Block effects have mean 0 over the blocks of a connected part.
        """
        tail = Y.shape[2:]
        flat = np.where(self.present[:, :, None], Y.reshape(*Y.shape[:2], -1), 0.0)
        in_block = np.einsum("sb,sbp->bp", self._shares, flat)
        sums = np.einsum("sb,sbp->sp", self._weights_SB, flat - in_block)
        means = self.covariance @ sums
        effects = in_block - self._shares.T @ means
        residuals = np.where(self.present[:, :, None], flat - means[:, None] - effects, 0.0)
        means = means + self._of_part @ effects
        return means.reshape(len(Y), *tail), residuals.reshape(Y.shape)

    @property
    def spare_degrees(self) -> Floats:
        """Return how many degrees each setting's residuals have, (S,); their sum is the whole."""
        spread = self.covariance @ self._shares
        of_fit = (
            1 / self._in_block
            + np.diag(self.covariance)[:, None]
            - 2 * spread
            + (self._shares * spread).sum(axis=0)
        )
        leverage = self._weights_SB * of_fit
        spare: Floats = np.where(self.present, 1 - leverage, 0.0).sum(axis=1)
        return np.where(spare < _NO_DEGREES, 0.0, spare)


def _connected_parts(present: Flags) -> Indices:
    """Return for each setting the number of the part that chains of shared blocks make, (S,)."""
    parts = np.arange(len(present))
    touches = present.astype(float) @ present.T > 0
    while True:
        lowest = np.where(touches, parts, len(parts)).min(axis=1, initial=len(parts))
        if (lowest == parts).all():
            return parts
        parts = lowest


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rest:
    """The variance of one run with setting and block taken out."""

    common: float  # pooled; some positive number where nothing is known
    num_degrees: float  # of the pooled one; 0: nothing is known
    of_settings: Floats  # (S,)
    degrees: Floats  # (S,), of each setting's
    is_wild: Flags  # (S,)


def _residual_variances(Y: Floats, present: Flags, is_apart: Flags) -> _Rest:
    S = len(Y)
    is_wild = is_apart.copy()
    is_wild[~is_apart] = _find_wild(Y[~is_apart], present[~is_apart])
    # Wild settings say nothing of the blocks' effects.
    design = _Design(present, np.where(is_wild, _LEAST_WEIGHT, 1.0))
    squares = (design.solve(Y)[1] ** 2).sum(axis=1)
    spare = design.spare_degrees
    tame = ~is_wild
    num_degrees = float(spare[tame].sum())
    smallest = (_ROUNDING * max(float(np.abs(Y[present]).max(initial=0.0)), _LEAST)) ** 2
    if not num_degrees:
        return _Rest(
            common=1.0,
            num_degrees=0.0,
            of_settings=np.ones(S),
            degrees=np.ones(S),
            is_wild=is_wild,
        )
    common = max(smallest, float(squares[tame].sum()) / num_degrees)
    known = spare > 0
    own = np.divide(squares, spare, out=np.full(S, common), where=known)
    # A sum of squares about a mean has n - 1 degrees; the block effects took a share of each.
    num_tame = max(2, int((tame & known).sum()))
    nu = np.minimum(present.sum(axis=1) - 1.0, spare * np.where(tame, num_tame / (num_tame - 1), 1))
    nu = np.where(known, np.maximum(nu, spare), 0.0)
    prior = _prior_degrees(own[tame & known], nu[tame & known], smallest)
    if math.isinf(prior):
        variances, degrees = np.full(S, common), np.full(S, num_degrees)
    else:
        variances = (prior * common + nu * own) / (prior + nu)
        degrees = np.minimum(prior + nu, max(num_degrees, 1.0))
    return _Rest(
        common=common,
        num_degrees=num_degrees,
        of_settings=np.maximum(np.where(is_wild, own, variances), smallest),
        degrees=np.where(is_wild, np.maximum(nu, 1.0), degrees),
        is_wild=is_wild,
    )


def _prior_degrees(variances: Floats, degrees: Floats, smallest: float) -> float:
    """Return how many degrees the common variance counts for beside a setting's own.

    Infinite where the settings' variances differ no more than chance makes them: the moments of
    log s^2 (Smyth 2004, section 6.2). The prior is about the pooled variance, not about the mean
    logarithm, which is lower where variances are unlike and would call luck a difference.
    """
    if len(variances) < 3:
        return math.inf
    logs = np.log(np.maximum(variances, smallest))
    logs = logs - special.digamma(degrees / 2) + np.log(degrees / 2)
    excess = float(np.var(logs, ddof=1) - special.polygamma(1, degrees / 2).mean())
    if excess <= 0:
        return math.inf
    x = 0.5 + 1 / excess  # Newton's method for trigamma(x) = excess (Smyth 2004, appendix)
    for _ in range(50):
        trigamma = float(special.polygamma(1, x))
        step = trigamma * (1 - trigamma / excess) / float(special.polygamma(2, x))
        x += step
        if abs(step) < 1e-8 * x:
            break
    return min(2 * x, _MOST_PRIOR_DEGREES)


def _find_wild(Y: Floats, present: Flags) -> Flags:
    """Return which settings are so noisy that they have no variance in common with the others.

    From the quieter half on, settings are added by their noise until one exceeds all before it by
    `_WILD` and beyond chance (F test); that one and those after it are wild.
    """
    is_wild = np.zeros(len(Y), dtype=bool)
    design = _Design(present, np.ones(len(Y)))
    spare = design.spare_degrees
    known = np.flatnonzero(spare > 0)
    if len(known) < 3:
        return is_wild
    own = (design.solve(Y)[1] ** 2).sum(axis=1)[known] / spare[known]
    ordered = known[np.argsort(own)]
    num_core = max(2, (len(known) + 1) // 2)
    core = list(ordered[:num_core])
    squares, degrees = _residual_squares(Y[core], present[core])
    for place, at in enumerate(ordered[num_core:], start=num_core):
        more_squares, more_degrees = _residual_squares(Y[[*core, at]], present[[*core, at]])
        added = more_degrees - degrees
        if degrees and added > _NO_DEGREES and squares > 0:
            ratio = (more_squares - squares) / added / (squares / degrees)
            p = float(special.fdtrc(added, degrees, ratio))
            if ratio > _WILD and p < _WILD_PROBABILITY / len(known):
                is_wild[ordered[place:]] = True
                return is_wild
        core.append(at)
        squares, degrees = more_squares, more_degrees
    return is_wild


def _residual_squares(Y: Floats, present: Flags) -> tuple[float, float]:
    """Return the sum of squares that settings and blocks leave, and its degrees."""
    used = present.any(axis=0)
    design = _Design(present[:, used], np.ones(len(Y)))
    return float((design.solve(Y[:, used])[1] ** 2).sum()), float(design.spare_degrees.sum())


def _total_variance(
    Y: Floats, present: Flags, parts: Indices, is_wild: Flags
) -> tuple[float, float]:
    """Return the variance of one run inside its setting, its block's luck included, and degrees.

    Settings of one part share its blocks, so they know no more of these than one of them.
    """
    squares = degrees = 0.0
    num_blocks: dict[int, set[int]] = {}
    for values, has_value, part, wild in zip(Y, present, parts, is_wild, strict=True):
        if has_value.sum() > 1 and not wild:
            squares += float(((values[has_value] - values[has_value].mean()) ** 2).sum())
            degrees += float(has_value.sum()) - 1
            num_blocks.setdefault(int(part), set()).update(map(int, np.flatnonzero(has_value)))
    if not degrees:
        return 0.0, 0.0
    return squares / degrees, float(sum(len(of_part) - 1 for of_part in num_blocks.values()))


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageVariances:
    """What the choice of images adds to the variance of means or of their differences."""

    of_images: Floats  # mean square over images / their number
    of_rest: Floats  # that of images and blocks together, which the blocks' own has in it already
    image_degrees: Floats
    rest_degrees: Floats

    def added_to(self, squared: Floats, degrees: Floats) -> tuple[Floats, Floats]:
        """Return the variance (MS_images + MS_blocks - MS_rest) / (P R) and its degrees."""
        whole = squared + np.maximum(0.0, self.of_images - self.of_rest)
        f = _combined_degrees(
            (squared, degrees),
            (self.of_images, self.image_degrees),
            (self.of_rest, self.rest_degrees),
            whole=whole,
        )
        return whole, np.where(self.of_images > self.of_rest, f, degrees)


def _image_arrays(
    images: Mapping[Hashable, Mapping[Hashable, Images]],
    names: Sequence[Hashable],
    blocks: Sequence[Hashable],
    present: Flags,
) -> Iterator[Floats]:
    """Yield for each kind its values (S, B, P), where all runs have the same two images or more."""
    places = [(i, j) for i, j in np.argwhere(present)]
    parts = {(i, j): images.get(names[i], {}).get(blocks[j], {}) for i, j in places}
    kinds = dict.fromkeys(kind for of_run in parts.values() for kind in of_run)
    for kind in kinds:
        of_kind = {place: of_run.get(kind, {}) for place, of_run in parts.items()}
        keys = sorted(next(iter(of_kind.values())))
        if len(keys) < 2 or any(of_run.keys() != set(keys) for of_run in of_kind.values()):
            continue
        X = np.full((*present.shape, len(keys)), math.nan)
        for place, of_run in of_kind.items():
            X[place] = [of_run[key] for key in keys]
        yield X


def _image_variances(X: Floats, design: _Design) -> tuple[_ImageVariances, _ImageVariances]:
    """Return the variances that images add to differences (S, S), and to single means (S,)."""
    num_images = X.shape[2]
    means, residuals = design.solve(X)
    centred = means - means.mean(axis=1, keepdims=True)
    gram = centred @ centred.T / (num_images - 1) / num_images
    residuals = residuals - residuals.mean(axis=2, keepdims=True)
    degrees = np.maximum(design.spare_degrees * (num_images - 1), 1e-9)
    squares = (residuals**2).sum(axis=(1, 2))
    has_rest = design.spare_degrees > 0
    # A setting without a second run has the others' rest.
    common = squares.sum() / degrees.sum()
    of_rest = np.where(has_rest, squares / degrees, common)
    of_rest = of_rest / design.present.sum(axis=1) / num_images
    # Each pair has images that are easier for the one; but of many pairs some seem to have none by
    # chance, so that no pair has less than the settings have in common.
    own = _of_pairs(gram)
    S = len(means)
    common_pair = own.sum() / max(1, S * (S - 1))
    pairs = _ImageVariances(
        of_images=np.maximum(own, common_pair),
        of_rest=of_rest[:, None] + of_rest,
        image_degrees=np.where(own > common_pair, 1.0, max(1, S - 1)) * (num_images - 1),
        rest_degrees=np.maximum(degrees[:, None] + degrees, 1.0),
    )
    alone = _ImageVariances(
        of_images=np.diag(gram),
        of_rest=of_rest,
        image_degrees=np.full(S, num_images - 1.0),
        rest_degrees=np.maximum(degrees, 1.0),
    )
    return pairs, alone


def _of_pairs(covariance: Floats) -> Floats:
    """Return the variances of all differences of two, (S, S)."""
    alone = np.diag(covariance)
    return np.maximum(0.0, alone[:, None] + alone - 2 * covariance)


def _combined_degrees(*terms: tuple[Floats, Floats], whole: Floats | None = None) -> Floats:
    """Return the degrees of a sum of variances (Satterthwaite 1946), each with its own degrees."""
    total = sum((variance for variance, _ in terms), np.zeros(1)) if whole is None else whole
    below = sum(
        (variance**2 / np.maximum(degrees, 1e-9) for variance, degrees in terms), np.zeros(1)
    )
    f: Floats = np.divide(total**2, below, out=np.ones(np.shape(below)), where=below > 0)
    return np.maximum(f, 1.0)
