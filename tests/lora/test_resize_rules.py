"""How many singular values are kept: kohya's rules, to the index, before and after their repair."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from optbench.lora.resize.rules import SizeRule, kept_dim

# The worked example of kohya's tool: eight singular values, three of them zero.
EXAMPLE = (10.0, 5.0, 2.0, 1.0, 0.5, 0.0, 0.0, 0.0)


def rule(method: Any, param: float | None = None, **changes: Any) -> SizeRule:
    settings: dict[str, Any] = {"dim": None, "conv_dim": None, "compat": "v0.11", **changes}
    return SizeRule(method=method, param=param, **settings)


def dims(method: str, params: list[float], **changes: Any) -> list[int]:
    return [
        kept_dim(EXAMPLE, rule(method, param, **changes), largest_rank=8, is_conv=False)
        for param in params
    ]


@pytest.mark.parametrize(
    ("method", "params", "repaired", "before"),
    [
        ("sv_cumulative", [0.5, 0.8, 0.9, 0.95, 1.0], [1, 2, 3, 4, 5], [2, 3, 4, 5, 6]),
        ("sv_fro", [0.1, 0.9, 0.999, 1.0], [1, 2, 4, 5], [2, 3, 5, 6]),
        ("sv_ratio", [1, 2, 3, 10, 20, 21], [1, 1, 2, 3, 4, 5], [2, 2, 3, 4, 5, 6]),
    ],
)
def test_the_worked_example(
    method: str, params: list[float], repaired: list[int], before: list[int]
) -> None:
    assert dims(method, params) == repaired
    assert dims(method, params, compat="v0.10") == before


def test_the_old_rule_never_keeps_more_than_there_are() -> None:
    values = (4.0, 3.0, 2.0)
    asked = rule("sv_cumulative", 1.0, compat="v0.10")
    assert kept_dim(values, asked, largest_rank=3, is_conv=False) == 3
    assert kept_dim(values, asked, largest_rank=5, is_conv=False) == 4


def test_zeros_at_the_end_may_be_left_out() -> None:
    for method, param in (("sv_ratio", 20.0), ("sv_cumulative", 1.0), ("sv_fro", 1.0)):
        for compat in ("v0.10", "v0.11"):
            asked = rule(method, param, compat=compat)
            short = kept_dim(EXAMPLE[:5], asked, largest_rank=8, is_conv=False)
            assert short == kept_dim(EXAMPLE, asked, largest_rank=8, is_conv=False)


def test_limits_hold_and_convolutions_have_their_own() -> None:
    asked = rule("sv_ratio", 100.0, dim=3, conv_dim=2)
    assert kept_dim(EXAMPLE, asked, largest_rank=8, is_conv=False) == 3
    assert kept_dim(EXAMPLE, asked, largest_rank=8, is_conv=True) == 2
    shared = rule("sv_ratio", 100.0, dim=3)
    assert kept_dim(EXAMPLE, shared, largest_rank=8, is_conv=True) == 3
    fixed = rule("none", dim=16, conv_dim=4)
    assert kept_dim(EXAMPLE, fixed, largest_rank=8, is_conv=False) == 16
    assert kept_dim(EXAMPLE, fixed, largest_rank=8, is_conv=True) == 4


@pytest.mark.parametrize("largest", [0.0, 1e-7, 1e-6])
def test_an_untrained_layer_keeps_one(largest: float) -> None:
    for asked in (rule("none", dim=16), rule("sv_ratio", 5.0), rule("sv_fro", 0.9)):
        assert kept_dim([largest] * 3, asked, largest_rank=8, is_conv=False) == 1


@given(
    values=st.lists(st.floats(1e-5, 1e5), min_size=1, max_size=20),
    largest_rank=st.integers(20, 30),
    share=st.floats(0.01, 1.0),
    ratio=st.floats(1.0, 1e6),
)
def test_the_fewest_that_keep_what_is_asked(
    values: list[float], largest_rank: int, share: float, ratio: float
) -> None:
    values.sort(reverse=True)

    def kept(method: str, param: float) -> int:
        return kept_dim(values, rule(method, param), largest_rank=largest_rank, is_conv=False)

    for power, method in ((1, "sv_cumulative"), (2, "sv_fro")):
        powers = [value**power for value in values]
        wanted, slack = share**power * sum(powers), 1 + 1e-9
        count = kept(method, share)
        assert sum(powers[:count]) * slack >= wanted
        assert sum(powers[: count - 1]) <= wanted * slack
    count = kept("sv_ratio", ratio)
    assert all(value > values[0] / ratio for value in values[1:count])
    assert all(value <= values[0] / ratio for value in values[count:])
