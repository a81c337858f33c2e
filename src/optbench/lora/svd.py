"""Decompose up @ down from its two small factors, and cut it to the best factors of a smaller dim.

A LoRA layer adds scale * up @ down, with up (O, R), down (R, K) and scale = alpha / dim. With
up = Q1 R1 and down^T = Q2 R2 the product is Q1 (R1 R2^T) Q2^T, and the SVD U S V^T of the small
core R1 R2^T gives its own: (Q1 U) S (Q2 V)^T. Keeping the k largest singular values is the best
approximation of rank k there is (Eckart and Young, 1936); the product itself is never formed.

Shapes: O outputs, K inputs times kernel height and width, R dim, S singular values: min(O, R, K).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Factors:
    """One LoRA layer's weights in the shapes of kohya's files, and its alpha.

    Linear: up (O, R), down (R, I). Convolution: up (O, R, 1, 1), down (R, I, kernel, kernel).
    """

    up: Tensor
    down: Tensor
    alpha: float

    @property
    def dim(self) -> int:
        """R, the largest rank that the product can have."""
        return int(self.down.shape[0])

    @property
    def scale(self) -> float:
        """What up @ down is multiplied by: alpha / dim."""
        return self.alpha / self.dim

    @property
    def largest_rank(self) -> int:
        """How many singular values the whole product has, zeros included: min(O, K)."""
        return min(int(self.up.shape[0]), int(self.down[0].numel()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Decomposition:
    """The SVD of one layer's up @ down, in the factored form that `truncate` cuts."""

    factors: Factors
    singular_values: tuple[float, ...]  # falling; of the product without its scale
    left: tuple[Tensor, Tensor]  # Q1 as Householder reflectors (O, S') and their factors
    right: tuple[Tensor, Tensor]  # Q2 likewise
    core_left: Tensor  # U diag(S)
    core_right: Tensor  # V


def decompose(factors: Factors) -> Decomposition:
    """Return the SVD of up @ down, computed in float32 or, for float64 weights, in float64.

    Cost: about (O + K) R^2 + 10 R^3 multiplications, instead of O K min(O, K) and more.
    """
    kind = torch.float64 if factors.up.dtype == torch.float64 else torch.float32
    left = torch.geqrf(factors.up.flatten(1).to(kind))
    right = torch.geqrf(factors.down.flatten(1).to(kind).T)
    core = _triangle(left[0]) @ _triangle(right[0]).T
    u, s, vh = torch.linalg.svd(core, full_matrices=False)
    return Decomposition(
        factors=factors,
        singular_values=tuple(s.tolist()),
        left=left,
        right=right,
        core_left=u * s,
        core_right=vh.T,
    )


def truncate(decomposition: Decomposition, dim: int) -> Factors:
    """Return factors of the given dim whose product is the nearest one to the original's.

    As in kohya's tool the singular values all go into up, the rows of down have length 1, and
    alpha becomes scale * dim, so that the scale stays. A dim above the number of singular values
    adds directions of zeros, which change nothing.
    """
    factors = decomposition.factors
    up_OR = _times(decomposition.left, decomposition.core_left, dim)
    down_KR = _times(decomposition.right, decomposition.core_right, dim)
    return Factors(
        up=up_OR.reshape(factors.up.shape[0], dim, *factors.up.shape[2:]),
        down=down_KR.T.reshape(dim, *factors.down.shape[1:]),
        alpha=factors.scale * dim,
    )


def _triangle(reflectors: Tensor) -> Tensor:
    """Return the triangular (or wide trapezoidal) factor that `geqrf` leaves above the diagonal."""
    return reflectors[: min(reflectors.shape)].triu()


def _times(orthogonal: tuple[Tensor, Tensor], columns: Tensor, dim: int) -> Tensor:
    """Return Q times the first `dim` columns, and zeros for those there are not.

    Q stays a list of reflections: applying them to few columns costs much less than writing Q out.
    """
    reflectors, factors = orthogonal
    num_columns = min(dim, columns.shape[1])
    padded = reflectors.new_zeros(reflectors.shape[0], num_columns)
    padded[: columns.shape[0]] = columns[:, :num_columns]
    product = torch.ormqr(reflectors[:, : len(factors)], factors, padded)
    return torch.nn.functional.pad(product, (0, dim - num_columns))
