"""Losses and weights against the papers' formulas, written out picture by picture in doubles."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from optbench.models.diffusion import STABLE_DIFFUSION_SCHEDULE, DiffusionProcess
from optbench.models.files.processes import PredictionType
from optbench.records import Batch
from optbench.training.loss import LossWeighting, huber_thresholds, mean_loss, sample_weights
from optbench.training.noise import draw_noise
from tests.builders.small_training import (
    LOSS,
    SmallBase,
    SmallProcess,
    copies_of,
    make_batch,
    make_network,
    make_optimizer,
    train_one,
)

BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
KEPT = np.cumprod(1 - BETAS)  # of SD1.5's schedule, in doubles
ALL = list(range(0, 1000, 37)) + [999]
EPSILON: PredictionType = "epsilon"
V: PredictionType = "v_prediction"


def process(kind: PredictionType, *, is_zero_terminal: bool = False) -> DiffusionProcess:
    return DiffusionProcess(
        {**STABLE_DIFFUSION_SCHEDULE, "prediction_type": kind}, is_zero_terminal=is_zero_terminal
    )


def snr_of(timestep: int) -> float:
    return float(KEPT[timestep] / (1 - KEPT[timestep]))


def weights(kind: PredictionType, timesteps: list[int], **changes: Any) -> list[float]:
    found = sample_weights(
        replace(LOSS, **changes),
        process(kind),
        torch.tensor(timesteps),
        is_regularization=[False] * len(timesteps),
    )
    assert found is not None
    assert found.shape == (len(timesteps),)
    return [float(one) for one in found]


# Weights


def test_the_schedule_here_is_the_one_the_reference_measured() -> None:
    for timestep, snr in ((0, 1175), (100, 8.45), (200, 3.06), (400, 0.74), (800, 0.038)):
        assert snr_of(timestep) == pytest.approx(snr, rel=0.01)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 5.0, 20.0])
def test_min_snr_caps_what_clean_pictures_count(gamma: float) -> None:
    for timestep, found in zip(ALL, weights("epsilon", ALL, min_snr_gamma=gamma), strict=True):
        snr = snr_of(timestep)
        assert found == pytest.approx(gamma / snr if snr > gamma else 1.0, rel=1e-4)
    for timestep, found in zip(ALL, weights("v_prediction", ALL, min_snr_gamma=gamma), strict=True):
        snr = snr_of(timestep)
        assert found == pytest.approx(min(snr, gamma) / (snr + 1), rel=1e-4)


def test_debiased_estimation() -> None:
    noise = weights("epsilon", ALL, debiased_estimation_loss=True)
    v = weights("v_prediction", ALL, debiased_estimation_loss=True)
    for timestep, of_noise, of_v in zip(ALL, noise, v, strict=True):
        snr = min(snr_of(timestep), 1000)
        assert of_noise == pytest.approx(1 / math.sqrt(snr), rel=1e-4)
        assert of_v == pytest.approx(1 / (snr + 1), rel=1e-4)
    assert max(noise) == pytest.approx(14.6, abs=0.05)  # at the last timestep


def test_the_errors_of_v_are_scaled_to_those_of_the_noise() -> None:
    """If v is off by d, the noise worked out from it is off by sqrt(a) d."""
    found = weights("v_prediction", ALL, scale_v_pred_loss_like_noise_pred=True)
    for timestep, one in zip(ALL, found, strict=True):
        # Above an SNR of 1000, at the first timestep alone, it is held at 1000 / 1001.
        assert one == pytest.approx(min(KEPT[timestep], 1000 / 1001), rel=1e-4)


def test_a_v_like_part_is_added_to_the_loss() -> None:
    for timestep, one in zip(ALL, weights("epsilon", ALL, v_pred_like_loss=0.25), strict=True):
        snr = min(snr_of(timestep), 1000)
        assert one == pytest.approx(1 + 0.25 * (snr + 1) / snr, rel=1e-4)


def test_weights_multiply() -> None:
    one = weights("epsilon", ALL, min_snr_gamma=5.0)
    other = weights("epsilon", ALL, debiased_estimation_loss=True)
    both = weights("epsilon", ALL, min_snr_gamma=5.0, debiased_estimation_loss=True)
    assert both == pytest.approx([a * b for a, b in zip(one, other, strict=True)], rel=1e-5)


def test_without_a_signal_v_still_has_weights() -> None:
    """The last timestep of a zero-terminal schedule; nothing divides by its SNR of 0."""
    silent = process(V, is_zero_terminal=True)
    expected = {
        "min_snr_gamma": 0.0,
        "debiased_estimation_loss": 1.0,
        "scale_v_pred_loss_like_noise_pred": 0.0,
    }
    for name, weight in expected.items():
        options = replace(LOSS, **{name: 5.0 if name == "min_snr_gamma" else True})
        found = sample_weights(options, silent, torch.tensor([999]), is_regularization=[False])
        assert found is not None
        assert float(found[0]) == weight


def test_only_regularization_pictures_get_the_prior_weight() -> None:
    def found(weight: float, marks: list[bool]) -> Tensor | None:
        options = replace(LOSS, prior_loss_weight=weight)
        return sample_weights(
            options, process(EPSILON), torch.tensor([0, 500, 999]), is_regularization=marks
        )

    weighted = found(0.25, [False, True, False])
    assert weighted is not None
    assert weighted.tolist() == [1.0, 0.25, 1.0]
    assert found(0.25, [False] * 3) is None
    assert found(1.0, [True] * 3) is None


# Losses


def differences() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(3, 4, 5, 6, generator=draw), torch.randn(3, 4, 5, 6, generator=draw)


def by_hand(kind: str, c: list[float]) -> list[float]:
    """Return each picture's loss, in doubles."""
    predicted, target = (one.double().numpy() for one in differences())
    losses = []
    for index in range(3):
        d = predicted[index] - target[index]
        values = {
            "l2": d**2,
            "l1": np.abs(d),
            "huber": 2 * c[index] * (np.sqrt(d**2 + c[index] ** 2) - c[index]),
            "smooth_l1": 2 * (np.sqrt(d**2 + c[index] ** 2) - c[index]),
        }
        losses.append(float(values[kind].mean()))
    return losses


@pytest.mark.parametrize("kind", ["l2", "l1", "huber", "smooth_l1"])
@pytest.mark.parametrize("is_weighted", [True, False])
def test_losses_follow_their_formulas(kind: str, is_weighted: bool) -> None:
    c, each = [0.1, 0.5, 2.0], [0.5, 1.0, 3.0]
    options = replace(LOSS, loss_type=kind)
    found = mean_loss(
        *differences(),
        options,
        weights_B=torch.tensor(each) if is_weighted else None,
        thresholds_B=torch.tensor(c) if kind in ("huber", "smooth_l1") else None,
    )
    counted = [
        loss * (weight if is_weighted else 1)
        for loss, weight in zip(by_hand(kind, c), each, strict=True)
    ]
    assert float(found) == pytest.approx(sum(counted) / 3, rel=1e-5)


def test_a_plain_loss_is_torchs_own_to_the_last_bit() -> None:
    predicted, target = differences()
    found = mean_loss(predicted, target, LOSS, weights_B=None, thresholds_B=None)
    assert torch.equal(found, torch.nn.functional.mse_loss(predicted, target))


@given(error=st.floats(-50, 50, width=32), c=st.floats(0.0625, 4, width=32))
def test_huber_lies_between_the_square_and_the_straight_line(error: float, c: float) -> None:
    picture = torch.full((1, 1, 1, 1), error)
    for kind, bounds in (("huber", (error**2, 2 * c * abs(error))),
                         ("smooth_l1", (error**2 / c, 2 * abs(error)))):  # fmt: skip
        options = replace(LOSS, loss_type=kind)
        found = float(
            mean_loss(
                picture,
                torch.zeros_like(picture),
                options,
                weights_B=None,
                thresholds_B=torch.tensor([c]),
            )
        )
        # A difference of square roots of float32: some units in the last place of c (c + |d|).
        slack = 1e-5 * (1 + c) * (1 + c + abs(error))
        assert -slack <= found <= min(bounds) + slack


def huber(schedule: str, timesteps: list[int], **changes: Any) -> list[float]:
    options = replace(LOSS, loss_type="huber", huber_schedule=schedule, **changes)
    found = huber_thresholds(options, process(EPSILON), torch.tensor(timesteps))
    assert found is not None
    return [float(one) for one in found]


def test_the_three_schedules_of_hubers_threshold() -> None:
    times = {"huber_c": 0.2, "huber_scale": 3.0}
    assert huber("constant", ALL, **times) == pytest.approx([0.6] * len(ALL))
    falling = [3 * math.exp(math.log(0.2) * timestep / 1000) for timestep in ALL]
    assert huber("exponential", ALL, **times) == pytest.approx(falling, rel=1e-4)
    by_snr = []
    for timestep in ALL:
        sigma = math.sqrt((1 - KEPT[timestep]) / KEPT[timestep])
        by_snr.append((1 - 0.2) / (1 + sigma) ** 2 + 0.2)
    assert huber("snr", ALL, huber_c=0.2, huber_scale=None) == pytest.approx(by_snr, rel=1e-4)


def test_the_snr_schedule_gives_the_values_the_reference_measured() -> None:
    found = huber("snr", [0, 200, 600, 999], huber_c=0.1)
    assert found == pytest.approx([0.95, 0.46, 0.18, 0.104], abs=0.006)
    assert huber_thresholds(LOSS, process(EPSILON), torch.tensor([500])) is None


def test_without_a_signal_the_threshold_is_huber_c() -> None:
    options = replace(LOSS, loss_type="huber", huber_schedule="snr", huber_c=0.1)
    found = huber_thresholds(options, process(V, is_zero_terminal=True), torch.tensor([999]))
    assert found is not None
    assert float(found[0]) == pytest.approx(0.1)


# In a training


def marked(batch: Batch, *keys: str) -> Batch:
    samples = tuple(
        replace(sample, is_regularization=sample.image_key in keys) for sample in batch.samples
    )
    return replace(batch, samples=samples)


def trained(**changes: Any) -> tuple[list[Tensor], float]:
    """Return the weights and the loss after one update on two pictures."""
    kind = changes.pop("prediction_type", "epsilon")
    batch = marked(make_batch("a", "b"), "b")
    base = SmallBase(SmallProcess(kind))
    network = make_network(base)
    (record,), _ = train_one(
        base, network, make_optimizer(network), lambda epoch: [batch], loss=replace(LOSS, **changes)
    )
    return copies_of(network), record.loss


@pytest.mark.parametrize(
    "changes",
    [
        {"loss_type": "l1"},
        {"loss_type": "huber", "huber_schedule": "snr", "huber_c": 0.1},
        {"loss_type": "smooth_l1", "huber_schedule": "constant", "huber_c": 0.1, "huber_scale": 1.},
        {"min_snr_gamma": 0.5},
        {"debiased_estimation_loss": True},
        {"v_pred_like_loss": 1.0},
        {"scale_v_pred_loss_like_noise_pred": True, "prediction_type": "v_prediction"},
        {"prior_loss_weight": 0.5},
        {"noise_offset": 0.1},
        {"noise_offset": 0.1, "noise_offset_random_strength": True},
        {"noise_offset": 0.1, "adaptive_noise_scale": 0.5},
        {"multires_noise_iterations": 8, "multires_noise_discount": 0.3},
        {"ip_noise_gamma": 0.1},
        {"ip_noise_gamma": 0.1, "ip_noise_gamma_random_strength": True},
        {"min_timestep": 630},
        {"max_timestep": 100},
    ],
    ids=lambda changes: "-".join(changes),
)  # fmt: skip
def test_every_option_reaches_the_weights(changes: dict[str, Any]) -> None:
    weights, _ = trained(**changes)
    plain, _ = trained()
    assert not any(torch.equal(one, other) for one, other in zip(weights, plain, strict=True))


def test_the_loss_of_a_step_is_the_weighted_one() -> None:
    base = SmallBase()
    batch = marked(make_batch("a", "b"), "b")
    timesteps_B = torch.tensor([100, 900])
    options = replace(LOSS, min_snr_gamma=1.0, prior_loss_weight=0.5)
    predicted, target = torch.randn(2, 2, 3, 4, 6, generator=torch.Generator().manual_seed(8))
    found = LossWeighting(options, base.process, timesteps_B, batch.samples).reduce(
        predicted, target
    )
    # The small base keeps 1 - t / 1000: SNRs of 9 and 1 / 9.
    each = (predicted - target).square().mean(dim=(1, 2, 3)).tolist()
    assert float(found) == pytest.approx((each[0] / 9 + each[1] * 0.5) / 2, rel=1e-5)


def test_the_unet_is_shown_perturbed_noise_and_asked_for_the_clean_one() -> None:
    base = SmallBase()
    network = make_network(base)
    seen = []

    def keep(predicted: Tensor, call: int) -> Tensor:
        seen.append(predicted.detach())
        return predicted

    base.spoil = keep
    options = replace(LOSS, ip_noise_gamma=0.5)
    (record,), _ = train_one(
        base,
        network,
        make_optimizer(network),
        lambda epoch: [make_batch("a", "b")],
        loss=options,
    )
    ((shown, _),) = base.draws
    clean = draw_noise(make_batch("a", "b"), base.process, LOSS, seed=5).noise_BCHW
    assert float((shown - clean).std()) == pytest.approx(0.5, rel=0.2)
    assert record.loss == pytest.approx(float((seen[0] - clean).square().mean()), rel=1e-5)
