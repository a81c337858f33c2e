"""How errors are counted: one number per picture, its weight, and their mean.

The signal-to-noise ratio of timestep t is SNR = a / (1 - a), where a is the share of the picture's
variance that is left (`BaseModel.alphas_cumprod_T`). It is that of the schedule the run trains on,
zero-terminal or not (docs/decisions/0008).

Shapes: B batch, C latent channels, H and W latent height and width, T timesteps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from optbench.contracts import BaseModel, PredictionType
from optbench.records import Sample
from optbench.schema import LossOptions

_MAX_SNR = 1000.0  # kohya's: no weight is for cleaner pictures than this


class Counting:
    """How one batch's errors count: made before the forward pass, from the draws alone."""

    def __init__(
        self, options: LossOptions, base: BaseModel, timesteps_B: Tensor, samples: Sequence[Sample]
    ) -> None:
        """Work out weights and thresholds of the pictures at `timesteps_B`, a CPU tensor."""
        self._options = options
        kept_B = base.alphas_cumprod_T[timesteps_B]
        self._weights_B = sample_weights(
            options,
            kept_B,
            prediction_type=base.prediction_type,
            is_regularization=[one.is_regularization for one in samples],
        )
        self._thresholds_B = huber_thresholds(
            options, kept_B, timesteps_B / len(base.alphas_cumprod_T)
        )

    def mean_loss(self, predicted_BCHW: Tensor, target_BCHW: Tensor) -> Tensor:
        """Return the weighted mean over pictures of their mean errors, a scalar; in float32."""
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
    (smooth_l1), the last two with each picture's own threshold c: near d^2 or d^2 / c for errors
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
    kept_B: Tensor,
    *,
    prediction_type: PredictionType,
    is_regularization: Sequence[bool],
) -> Tensor | None:
    """Return each picture's weight, (B,), or None where all of them are 1.

    The product of what is asked for, with S = min(SNR, 1000):

    - `prior_loss_weight` for regularization pictures;
    - `min_snr_gamma` g: min(SNR, g) / SNR for noise prediction, min(SNR, g) / (SNR + 1) for
      v-prediction (Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy,
      arXiv:2303.09556);
    - `scale_v_pred_loss_like_noise_pred`: S / (S + 1), which is what the squared error of v must
      be multiplied by to be that of the noise;
    - `v_pred_like_loss` l: 1 + l (S + 1) / S;
    - `debiased_estimation_loss`: 1 / sqrt(S) for noise prediction, 1 / (S + 1) for v-prediction
      (Yu et al., Debias the Training of Diffusion Models, arXiv:2310.08442).

    Args:
        options: What is asked for.
        kept_B: The share of variance a at each picture's timestep.
        prediction_type: What the unet predicts.
        is_regularization: Which pictures are regularization pictures.
    """
    has_prior = options.prior_loss_weight != 1 and any(is_regularization)
    if not (has_prior or _weighs_by_snr(options)):
        return None
    is_v = prediction_type == "v_prediction"
    snr_B = kept_B / (1 - kept_B)
    bounded_B = snr_B.clamp(max=_MAX_SNR)
    factors: list[Tensor] = []
    if has_prior:
        factors.append(torch.where(torch.tensor(is_regularization), options.prior_loss_weight, 1.0))
    if options.min_snr_gamma is not None:
        least_B = snr_B.clamp(max=options.min_snr_gamma)
        factors.append(least_B / (snr_B + 1 if is_v else snr_B))
    if options.scale_v_pred_loss_like_noise_pred:
        factors.append(bounded_B / (bounded_B + 1))
    if options.v_pred_like_loss is not None:
        factors.append(1 + options.v_pred_like_loss * (bounded_B + 1) / bounded_B)
    if options.debiased_estimation_loss:
        factors.append(1 / (bounded_B + 1) if is_v else bounded_B.rsqrt())
    return torch.stack(factors).prod(dim=0)


def _weighs_by_snr(options: LossOptions) -> bool:
    return (
        options.min_snr_gamma is not None
        or options.debiased_estimation_loss
        or options.scale_v_pred_loss_like_noise_pred
        or options.v_pred_like_loss is not None
    )


def huber_thresholds(options: LossOptions, kept_B: Tensor, progress_B: Tensor) -> Tensor | None:
    """Return each picture's threshold c, (B,), or None where the loss has none.

    From `huber_c` h and `huber_scale` s: s h (constant), s h^(t / T) (exponential), or
    (1 - h) / (1 + sigma)^2 + h with sigma = sqrt((1 - a) / a) (snr, which takes no scale).

    Args:
        options: The schedule and its numbers.
        kept_B: The share of variance a at each picture's timestep.
        progress_B: t / T, from 0 to 1.
    """
    if options.huber_schedule is None or options.huber_c is None:
        return None
    if options.huber_schedule == "snr":
        sigma_B = ((1 - kept_B) / kept_B).sqrt()
        return (1 - options.huber_c) / (1 + sigma_B).square() + options.huber_c
    assert options.huber_scale is not None
    if options.huber_schedule == "constant":
        return torch.full_like(kept_B, options.huber_scale * options.huber_c)
    return options.huber_scale * options.huber_c**progress_B
