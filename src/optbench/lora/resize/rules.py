"""Choose a layer's new dim from its singular values, by the rules of kohya's resize tool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from optbench.schema import ResizeCompat, ResizeMethod

_LEAST_SINGULAR_VALUE = 1e-6  # a layer whose largest is not above it is as good as untrained


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRule:
    """The part of the options that decides a layer's dim."""

    method: ResizeMethod
    param: float | None
    dim: int | None
    conv_dim: int | None
    compat: ResizeCompat

    def limit(self, *, is_conv: bool) -> int | None:
        """Return the largest dim a layer may get, None for any; kernels of 1x1 are conv too."""
        return self.conv_dim if is_conv and self.conv_dim is not None else self.dim


def kept_dim(
    singular_values: Sequence[float], rule: SizeRule, *, largest_rank: int, is_conv: bool
) -> int:
    """Return a layer's new dim, at least 1.

    With S_1 >= S_2 >= ... of the product up @ down without its scale and p = `param`, kept are

    - none: as many as the limit says;
    - sv_ratio: those with S_i > S_1 / p;
    - sv_cumulative: the fewest with sum_kept S >= p * sum S;
    - sv_fro: the fewest with sum_kept S^2 >= p^2 * sum S^2, that is ||kept||_F >= p ||whole||_F;

    and never more than the limit. A layer with S_1 <= 1e-6 keeps one. Under compat v0.10 the count
    is first held to 1 .. largest_rank - 1, and then one more is kept.

    Args:
        singular_values: Falling; zeros at the end may be left out.
        rule: What to keep.
        largest_rank: How many singular values the layer's whole weight has, zeros included.
        is_conv: Whether the layer is a convolution, of any kernel.
    """
    limit = rule.limit(is_conv=is_conv)
    if rule.method == "none":
        assert limit is not None, "method none needs a dim; options are checked before this"
        dim = limit
    else:
        count = _count(singular_values, rule)
        if rule.compat == "v0.10":
            dim = min(max(1, min(count, largest_rank - 1)) + 1, largest_rank)
        else:
            dim = max(1, min(count, largest_rank))
        dim = dim if limit is None else min(dim, limit)
    return 1 if singular_values[0] <= _LEAST_SINGULAR_VALUE else dim


def _count(singular_values: Sequence[float], rule: SizeRule) -> int:
    """Return how many singular values a method asks for, before any clamping."""
    assert rule.param is not None, "the method needs a param; options are checked before this"
    if rule.method == "sv_ratio":
        return sum(value > singular_values[0] / rule.param for value in singular_values)
    if rule.method == "sv_cumulative":
        sums, share = list(accumulate(singular_values)), rule.param
    else:
        sums, share = list(accumulate(value**2 for value in singular_values)), rule.param**2
    return 1 + next(index for index, total in enumerate(sums) if total >= share * sums[-1])
