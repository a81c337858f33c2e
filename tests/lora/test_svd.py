"""Singular values from small factors: those of the full matrix, and the best shorter factors."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from torch import Tensor

from optbench.lora.svd import Factors, decompose, truncate

SHARE = 1e-5  # of the largest singular value: what float32 and the full SVD may differ by


def random_factors(
    outputs: int, dim: int, inputs: tuple[int, ...], *, seed: int = 0, alpha: float = 2.0
) -> Factors:
    """Return factors whose singular values fall over some orders of magnitude."""
    draw = torch.Generator().manual_seed(seed)
    tail = (1,) * (len(inputs) - 1)
    up = torch.randn(outputs, dim, generator=draw) * torch.logspace(0, -3, dim)
    down = torch.randn(dim, *inputs, generator=draw)
    return Factors(up=up.view(outputs, dim, *tail), down=down, alpha=alpha)


def product(factors: Factors) -> Tensor:
    return factors.up.flatten(1).double() @ factors.down.flatten(1).double()


factor_sets = st.builds(
    random_factors,
    outputs=st.integers(1, 24),
    dim=st.integers(1, 12),
    inputs=st.one_of(
        st.tuples(st.integers(1, 24)),
        st.builds(lambda i, k: (i, k, k), st.integers(1, 8), st.sampled_from([1, 3])),
    ),
    seed=st.integers(0, 1000),
    alpha=st.floats(0.01, 128),
)


@given(factors=factor_sets)
def test_singular_values_are_those_of_the_full_matrix(factors: Factors) -> None:
    found = decompose(factors).singular_values
    full = torch.linalg.svdvals(product(factors))
    assert len(found) == min(factors.dim, factors.largest_rank)
    assert list(found) == sorted(found, reverse=True)
    torch.testing.assert_close(
        torch.tensor(found, dtype=torch.float64),
        full[: len(found)],
        rtol=0,
        atol=SHARE * float(full[0]),
    )
    assert full[len(found) :].sum() <= SHARE * full[0]


@given(factors=factor_sets, dim=st.integers(1, 16))
def test_what_is_lost_is_what_was_cut_and_no_more(factors: Factors, dim: int) -> None:
    whole = product(factors)
    values = torch.linalg.svdvals(whole)
    found = truncate(decompose(factors), dim)
    assert found.up.shape == (factors.up.shape[0], dim, *factors.up.shape[2:])
    assert found.down.shape == (dim, *factors.down.shape[1:])
    # No factors of this dim come nearer (Eckart and Young), and these come as near.
    lost = torch.linalg.matrix_norm(whole - product(found))
    assert float(lost) == pytest.approx(
        float(values[dim:].square().sum().sqrt()), rel=0, abs=SHARE * float(values[0])
    )
    assert found.scale == pytest.approx(factors.scale, rel=1e-12)


@given(factors=factor_sets, dim=st.integers(1, 16))
def test_truncating_again_changes_nothing(factors: Factors, dim: int) -> None:
    once = truncate(decompose(factors), dim)
    again = truncate(decompose(once), dim)
    limit = SHARE * max(1e-30, float(torch.linalg.matrix_norm(product(factors))))
    assert float((product(again) - product(once)).abs().max()) <= limit


@given(factors=factor_sets)
def test_singular_values_go_into_up_and_rows_of_down_are_orthonormal(factors: Factors) -> None:
    whole = decompose(factors)
    found = truncate(whole, len(whole.singular_values))
    down = found.down.flatten(1)
    torch.testing.assert_close(down @ down.T, torch.eye(found.dim), rtol=0, atol=1e-5)
    lengths = torch.linalg.vector_norm(found.up.flatten(1), dim=0)
    expected = torch.tensor(whole.singular_values)
    torch.testing.assert_close(lengths, expected, rtol=0, atol=SHARE * float(expected[0]))


def test_a_dim_above_the_rank_adds_zeros_only() -> None:
    factors = random_factors(6, 4, (5,))
    found = truncate(decompose(factors), 9)
    assert not found.up[:, 4:].any()
    assert not found.down[4:].any()
    torch.testing.assert_close(product(found), product(factors), rtol=0, atol=1e-5)


def test_float64_weights_are_not_rounded() -> None:
    factors = random_factors(20, 5, (30,))
    wide = Factors(up=factors.up.double(), down=factors.down.double(), alpha=1.0)
    found = truncate(decompose(wide), 5)
    assert found.up.dtype == torch.float64
    torch.testing.assert_close(product(found), product(wide), rtol=0, atol=1e-13)


@pytest.mark.parametrize("size", [1e-20, 1e-6, 1e15])
def test_very_small_and_very_large_weights_keep_their_proportions(size: float) -> None:
    factors = random_factors(8, 3, (9,))
    other = Factors(up=factors.up * size, down=factors.down, alpha=1.0)
    expected = [value * size for value in decompose(factors).singular_values]
    assert decompose(other).singular_values == pytest.approx(expected, rel=1e-4)


def test_an_untrained_layer_has_singular_values_of_zero() -> None:
    factors = random_factors(8, 3, (9,))
    untrained = Factors(up=torch.zeros(8, 3), down=factors.down, alpha=1.0)
    whole = decompose(untrained)
    assert whole.singular_values == (0.0, 0.0, 0.0)
    assert not product(truncate(whole, 2)).any()


@given(factors=factor_sets, pair=st.tuples(st.integers(1, 12), st.integers(1, 12)))
def test_a_larger_dim_never_loses_more(factors: Factors, pair: tuple[int, int]) -> None:
    small, large = sorted(pair)
    assume(small < large)
    whole = decompose(factors)
    lost = [
        float(torch.linalg.matrix_norm(product(factors) - product(truncate(whole, dim))))
        for dim in (small, large)
    ]
    assert lost[1] <= lost[0] + SHARE * whole.singular_values[0]
