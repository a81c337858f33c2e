"""A process that is no DDPM trains and is measured by the same code: rectified flow, in small."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from optbench import contracts
from optbench.models.text.clip import ClipTextOptions
from optbench.records import EpochRecord, Sizes, StepRecord
from optbench.schema import LossOptions
from optbench.training.noise import draw_noise
from optbench.training.paired_loss import ValidationSample, paired_losses
from tests.builders.small_training import (
    LOSS,
    SmallBase,
    make_network,
    make_optimizer,
    six_pictures,
    train_one,
)


class RectifiedFlow:
    """x_s = (1 - s) x + s e with the target e - x, s in [0, 1] (Liu et al., arXiv:2209.03003)."""

    prediction = "flow"
    num_timesteps = 1000  # what the options count in

    def __init__(self) -> None:
        self.timesteps: list[Tensor] = []

    def sample_timesteps(
        self, generators: Sequence[torch.Generator], options: LossOptions
    ) -> Tensor:
        normal_B = torch.cat([torch.randn(1, generator=generator) for generator in generators])
        return torch.sigmoid(normal_B)  # logit-normal

    def validation_timesteps(self, timesteps: Sequence[int]) -> Tensor:
        return torch.tensor(list(timesteps)) / self.num_timesteps

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        self.timesteps.append(timesteps_B)
        s_B111 = timesteps_B[:, None, None, None]
        return (1 - s_B111) * latents_BCHW + s_B111 * noise_BCHW

    def target(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps_B: Tensor) -> Tensor:
        return noise_BCHW - latents_BCHW

    def loss_factors(self, timesteps_B: Tensor, options: LossOptions) -> list[Tensor]:
        return []

    def noise_level(self, timesteps_B: Tensor) -> Tensor:
        return timesteps_B / (1 - timesteps_B)

    def progress(self, timesteps_B: Tensor) -> Tensor:
        return timesteps_B

    def sampler_settings(self, scheduler: type) -> dict[str, Any]:
        return {}


def trained(process: RectifiedFlow, **changes: Any) -> tuple[list[StepRecord], list[EpochRecord]]:
    """Return the records of four epochs of three updates, from a LoRA that changes nothing yet."""
    base = SmallBase(process)
    network = make_network(base, filled=False)
    return train_one(
        base,
        network,
        make_optimizer(network),
        six_pictures,
        loss=replace(LOSS, **changes),
        epochs=4,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"noise_offset": 0.1},
        {"multires_noise_iterations": 4, "multires_noise_discount": 0.3},
        {"ip_noise_gamma": 0.1},
        {"loss_type": "huber", "huber_schedule": "snr", "huber_c": 0.1},
        {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.1, "huber_scale": 1.0},
    ],
    ids=lambda changes: "-".join(changes) or "plain",
)
def test_the_loop_trains_a_flow(changes: dict[str, Any]) -> None:
    process = RectifiedFlow()
    _, epochs = trained(process, **changes)
    drawn = torch.cat(process.timesteps)
    assert drawn.dtype == torch.float32
    assert 0 < float(drawn.min()) < float(drawn.max()) < 1
    assert len({float(timestep) for timestep in drawn}) == len(drawn)
    assert all(math.isfinite(epoch.mean_loss) for epoch in epochs)
    assert epochs[-1].norms["norm/average_key_norm"] > 0


def test_the_first_loss_is_the_formula_written_by_hand() -> None:
    process, base = RectifiedFlow(), SmallBase()
    steps, _ = trained(process)
    batch = six_pictures(1)[0]
    noise = draw_noise(batch, process, LOSS, seed=5).noise_BCHW
    share = process.timesteps[0][:, None, None, None]
    captions = base.encode_captions([one.caption for one in batch.samples], ClipTextOptions())
    noisy = (1 - share) * batch.latents_BCHW + share * noise
    with torch.no_grad():
        predicted = base.predict(noisy, process.timesteps[0], captions)
    expected = (predicted - (noise - batch.latents_BCHW)).square().mean()
    assert steps[0].loss == pytest.approx(float(expected), rel=1e-5)


def test_validation_measures_at_shares_of_the_way() -> None:
    process = RectifiedFlow()
    base: contracts.BaseModel = SmallBase(process)
    latents = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(1))
    sizes = Sizes(original=(48, 32), crop=(0, 0), target=(48, 32))
    sample = ValidationSample(
        image_key="a", split="training", caption="girl", sizes=sizes, latents_CHW=latents
    )
    rows = list(
        paired_losses(base, [sample], timesteps=[50, 500, 950], text_options=ClipTextOptions())
    )
    assert [row.timestep for row in rows] == [50, 500, 950]  # in the records as in the settings
    assert torch.cat(process.timesteps).tolist() == pytest.approx([0.05, 0.5, 0.95])
    assert len({row.loss for row in rows}) == 3
