"""Per-image loss, its weighting (min-SNR, debiased, prior) and reduction.

Shapes: B batch, C latent channels, H and W latent height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from optbench.contracts import NoiseProcess
from optbench.records import Sample
from optbench.schema import LossOptions


class LossWeighting:
    """How much each image of a batch counts; depends on the draws alone, not on predictions."""

    def __init__(
        self,
        options: LossOptions,
        process: NoiseProcess,
        timesteps_B: Tensor,
        samples: Sequence[Sample],
    ) -> None:
        """Work out weights and thresholds of the images at `timesteps_B`, a CPU tensor."""
        self._options = options
        self._weights_B = sample_weights(
            options,
            process,
            timesteps_B,
            is_regularization=[sample.is_regularization for sample in samples],
        )
        self._thresholds_B = huber_thresholds(options, process, timesteps_B)

    def reduce(self, predicted_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Return the weighted mean over images of their mean errors, a scalar; in float32."""
        return mean_loss(
            predicted_BCHW.float(),
            target_BCHW.float(),
            self._options,
            weights_B=self._weights_B,
            thresholds_B=self._thresholds_B,
        )


def mean_loss(
    predicted_BCHW: Tensor,
    target_BCHW: Tensor,
    options: LossOptions,
    *,
    weights_B: Tensor | None,
    thresholds_B: Tensor | None,
) -> Tensor:
    """Return mean_b w_b mean_chw f(d) for the differences d, w_b = 1 without weights.

    f(d) = d^2 (l2), |d| (l1), 2 c (sqrt(d^2 + c^2) - c) (huber) or 2 (sqrt(d^2 + c^2) - c)
    (smooth_l1), the last two with each image's own threshold c: near d^2 or d^2 / c for errors
    below c, straight above it (the pseudo-Huber loss; Khrapov et al., Improving Diffusion Models's
    Data-Corruption Resistance using Scheduled Pseudo-Huber Loss, arXiv:2403.16728).
    """
    plain = l1_loss if options.loss_type == "l1" else mse_loss
    if weights_B is None and thresholds_B is None:
        return plain(predicted_BCHW, target_BCHW)  # to the last bit what it always was
    if thresholds_B is None:
        errors_BCHW = plain(predicted_BCHW, target_BCHW, reduction="none")
    else:
        c_B111 = thresholds_B.to(predicted_BCHW.device)[:, None, None, None]
        squares_BCHW = (predicted_BCHW - target_BCHW).square()
        factor_B111 = 2 * c_B111 if options.loss_type == "huber" else 2.0
        errors_BCHW = factor_B111 * ((squares_BCHW + c_B111.square()).sqrt() - c_B111)
    loss_B = errors_BCHW.mean(dim=(1, 2, 3))
    return loss_B.mean() if weights_B is None else (loss_B * weights_B.to(loss_B.device)).mean()


def sample_weights(
    options: LossOptions,
    process: NoiseProcess,
    timesteps_B: Tensor,
    *,
    is_regularization: Sequence[bool],
) -> Tensor | None:
    """Return each image's weight, (B,), or None where all of them are 1.

    The product of `prior_loss_weight` for regularization images, and of the weights that the noise
    process gives each timestep (min-SNR and its like).
    """
    factors = process.loss_factors(timesteps_B, options)
    if options.prior_loss_weight != 1 and any(is_regularization):
        prior_B = torch.where(torch.tensor(is_regularization), options.prior_loss_weight, 1.0)
        factors = [prior_B, *factors]
    return torch.stack(factors).prod(dim=0) if factors else None


def huber_thresholds(
    options: LossOptions, process: NoiseProcess, timesteps_B: Tensor
) -> Tensor | None:
    """Return each image's threshold c, (B,), or None where the loss has none.

    From `huber_c` h and `huber_scale` s: s h (constant), s h^p with the progress p from image to
    noise (exponential), or (1 - h) / (1 + sigma)^2 + h with the noise level sigma (snr, which
    takes no scale).
    """
    if options.huber_schedule is None or options.huber_c is None:
        return None
    if options.huber_schedule == "snr":
        sigma_B = process.noise_level(timesteps_B)
        return (1 - options.huber_c) / (1 + sigma_B).square() + options.huber_c
    assert options.huber_scale is not None
    progress_B = process.progress(timesteps_B)
    if options.huber_schedule == "constant":
        return torch.full_like(progress_B, options.huber_scale * options.huber_c)
    return options.huber_scale * options.huber_c**progress_B
