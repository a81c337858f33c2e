"""The loop against one written by hand: sums, clipping, draws, records, and where it stops."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import optbench.training.loop as loop
from optbench import contracts, rng
from optbench.errors import DivergedError
from optbench.lora.network import LoraNetwork
from optbench.records import Batch
from optbench.schema import OptimizerOptions
from optbench.training.lane import Lane
from optbench.training.loop import EpochDone, LaneEnded, StepDone
from tests.builders.small_training import (
    ADAMW,
    COSINE,
    DADAPTED,
    LOSS,
    NOISY,
    SGD,
    SmallBase,
    assert_equal,
    copies_of,
    events_of,
    make_batch,
    make_network,
    make_optimizer,
    six_pictures,
    train_one,
    weights_of,
)

SEED = 5
LR = SGD.lr


def drawn_by_hand(batch: Batch, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Return the noise and timesteps that belong to the addresses of a batch's pictures."""
    places = [(one.epoch, one.image_key, one.occurrence) for one in batch.samples]
    noises = [torch.randn(3, 4, 6, generator=rng.generator(seed, "noise", *at)) for at in places]
    draws = [rng.generator(seed, "timesteps", *at) for at in places]
    timesteps = [torch.randint(0, 1000, (1,), generator=draw) for draw in draws]
    return torch.stack(noises), torch.cat(timesteps)


def loss_by_hand(base: SmallBase, network: LoraNetwork, batch: Batch) -> Tensor:
    """Return the mean squared error with every product of the LoRA formed in full."""
    down_text, up_text, down_out, up_out = weights_of(network)
    noise_BCHW, timesteps_B = drawn_by_hand(batch)
    kept_B111 = (1 - timesteps_B / 1000)[:, None, None, None]
    noisy_BCHW = kept_B111.sqrt() * batch.latents_BCHW + (1 - kept_B111).sqrt() * noise_BCHW
    draws = [
        torch.Generator().manual_seed(zlib.crc32(one.caption.encode())) for one in batch.samples
    ]
    words_BE = torch.stack([torch.randn(5, generator=draw) for draw in draws])
    states_BE = torch.tanh(words_BE @ (base.text.weight + up_text @ down_text).T + base.text.bias)
    hidden = torch.tanh(base.conv(noisy_BCHW) + states_BE[:, :, None, None])
    kernel = base.out.weight + (up_out.flatten(1) @ down_out.flatten(1))[:, :, None, None]
    predicted_BCHW = functional.conv2d(hidden, kernel, base.out.bias)
    return (predicted_BCHW - noise_BCHW).square().mean()


def gradients_by_hand(base: SmallBase, network: LoraNetwork, batch: Batch) -> list[Tensor]:
    return list(torch.autograd.grad(loss_by_hand(base, network, batch), weights_of(network)))


def assert_near(found: list[Tensor], expected: list[Tensor]) -> None:
    """Products formed in another order, float32: some units in the last place of numbers near 1."""
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_the_small_base_keeps_the_contract() -> None:
    base: contracts.BaseModel = SmallBase()
    assert base.lora_targets()


# One update


@pytest.mark.parametrize("num_accumulated", [1, 2, 3])
def test_accumulated_batches_give_the_mean_of_their_gradients(num_accumulated: int) -> None:
    base = SmallBase()
    network = make_network(base)
    before = copies_of(network)
    batches = six_pictures(1)[:num_accumulated]
    each = [gradients_by_hand(base, network, batch) for batch in batches]
    mean = [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]
    (record,), _ = train_one(
        base,
        network,
        make_optimizer(network),
        lambda epoch: batches,
        gradient_accumulation=num_accumulated,
    )
    assert_near(copies_of(network), [old - LR * one for old, one in zip(before, mean, strict=True)])
    norm = float(torch.cat([one.flatten() for one in mean]).norm())
    assert record.grad_norm == pytest.approx(norm, rel=1e-5)


def test_a_short_last_window_still_divides_by_all_as_kohya_does() -> None:
    base = SmallBase()
    network = make_network(base)
    steps, _ = train_one(base, network, make_optimizer(network), gradient_accumulation=2)
    assert [record.step for record in steps] == [1, 2]
    base = SmallBase()
    alone = make_network(base)
    train_one(
        base,
        alone,
        make_optimizer(alone),
        lambda epoch: six_pictures(epoch)[:2],
        gradient_accumulation=2,
    )
    before = copies_of(alone)
    last = six_pictures(1)[2]
    gradients = gradients_by_hand(base, alone, last)
    moved = [old - LR * one / 2 for old, one in zip(before, gradients, strict=True)]
    assert_near(copies_of(network), moved)
    # The loss that is recorded is the batch's own all the same.
    assert steps[1].loss == pytest.approx(loss_by_hand(base, alone, last).item(), rel=1e-5)


def test_pictures_split_into_batches_or_not_give_one_update() -> None:
    found = []
    for split in ([make_batch(*"abcdef")], six_pictures(1), [make_batch(key) for key in "abcdef"]):
        base = SmallBase()
        network = make_network(base)
        (record,), _ = train_one(
            base,
            network,
            make_optimizer(network),
            lambda epoch, split=split: split,  # type: ignore[misc]
            gradient_accumulation=len(split),
        )
        found.append((record, copies_of(network)))
    (whole, weights), *others = found
    for record, own in others:
        assert_near(own, weights)
        assert record.loss == pytest.approx(whole.loss, rel=1e-6)
        assert record.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)


@pytest.mark.parametrize("num_accumulated", [1, 3])
def test_the_loss_recorded_is_the_mean_squared_error(num_accumulated: int) -> None:
    base = SmallBase()
    network = make_network(base)
    batches = six_pictures(1)[:num_accumulated]
    expected = [loss_by_hand(base, network, batch).item() for batch in batches]
    (record,), (epoch,) = train_one(
        base,
        network,
        make_optimizer(network),
        lambda _: batches,
        gradient_accumulation=num_accumulated,
    )
    assert record.loss == pytest.approx(sum(expected) / num_accumulated, rel=1e-5)
    assert epoch.mean_loss == record.loss


def test_the_loss_is_formed_in_float32_whatever_the_base_computes_in() -> None:
    base = SmallBase()
    network = make_network(base)
    seen = []

    def round_and_keep(predicted: Tensor, call: int) -> Tensor:
        seen.append(predicted.bfloat16())
        return seen[-1]

    base.spoil = round_and_keep
    (record,), _ = train_one(
        base, network, make_optimizer(network), lambda epoch: [make_batch("a", "b")]
    )
    noise_BCHW, _ = base.draws[0]
    exact = float((seen[0].detach().double() - noise_BCHW.double()).square().mean())
    # In bfloat16 the mean would have 8 bits: wrong by up to 0.004 of itself.
    assert record.loss == pytest.approx(exact, rel=1e-6)


def test_the_denoiser_is_shown_perturbed_noise_and_learns_the_plain_one() -> None:
    base = SmallBase()
    network = make_network(base)
    batch = make_batch("a", "b")
    predictions = []

    def keep(predicted: Tensor, call: int) -> Tensor:
        predictions.append(predicted.detach())
        return predicted

    base.spoil = keep
    loss = replace(LOSS, ip_noise_gamma=0.5)
    (record,), _ = train_one(base, network, make_optimizer(network), lambda _: [batch], loss=loss)
    plain_BCHW, _ = drawn_by_hand(batch)
    ((shown_BCHW, _),) = base.draws
    strength = float((shown_BCHW - plain_BCHW).square().mean().sqrt())
    assert strength == pytest.approx(0.5, rel=0.2)  # of 144 draws
    expected = float((predictions[0] - plain_BCHW).square().mean())
    assert record.loss == pytest.approx(expected, rel=1e-5)


# Clipping


def test_clipping_shortens_the_gradient_and_the_record_keeps_its_length() -> None:
    base = SmallBase()
    network = make_network(base)
    before = copies_of(network)
    batch = make_batch("a", "b")
    gradients = gradients_by_hand(base, network, batch)
    norm = float(torch.cat([one.flatten() for one in gradients]).norm())
    limit = norm / 10
    (record,), _ = train_one(
        base, network, make_optimizer(network), lambda epoch: [batch], max_grad_norm=limit
    )
    assert record.grad_norm == pytest.approx(norm, rel=1e-5)
    # 1e-6 is torch's own guard against a division by zero.
    factor = LR * limit / (norm + 1e-6)
    moved = [old - factor * one for old, one in zip(before, gradients, strict=True)]
    assert_near(copies_of(network), moved)


@pytest.mark.parametrize("limit", [0.0, 1000.0])
def test_a_gradient_that_is_short_enough_is_left_alone(limit: float) -> None:
    found = []
    for own in (limit, 1e30):
        base = SmallBase()
        network = make_network(base)
        train_one(base, network, make_optimizer(network), max_grad_norm=own)
        found.append(copies_of(network))
    assert_equal(*found)


# Draws


def draws_of(**changes: Any) -> list[tuple[Tensor, Tensor]]:
    """Return the noise and timesteps of two epochs under some setting."""
    base = SmallBase()
    settings: dict[str, Any] = {"network": {}, "optimizer": SGD, "batches": six_pictures}
    settings |= changes
    network = make_network(base, **settings["network"])
    train_one(
        base,
        network,
        make_optimizer(network, settings["optimizer"]),
        settings["batches"],
        seed=settings.get("seed", SEED),
        epochs=2,
        gradient_accumulation=settings.get("gradient_accumulation", 1),
    )
    noise = torch.cat([noise for noise, _ in base.draws])
    return list(zip(noise, torch.cat([timesteps for _, timesteps in base.draws]), strict=True))


def singly(epoch: int) -> Iterator[Batch]:
    return (make_batch(key, epoch=epoch) for key in "abcdef")


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": ADAMW},
        {"optimizer": DADAPTED},
        {"optimizer": NOISY},
        {"network": {"dim": 4}},
        {"network": {"train_text_encoder": False}},
        {"network": {"conv_dim": 2, "conv_alpha": 1.0}},
        {"network": {"dropout": 0.5, "module_dropout": 0.2, "rank_dropout": 0.5}},
        {"batches": singly},
        {"gradient_accumulation": 3},
    ],
    ids=[
        "adamw",
        "dadapt",
        "noisy",
        "dim",
        "unet-alone",
        "conv",
        "dropout",
        "singly",
        "accumulation",
    ],
)
def test_nothing_that_is_compared_changes_a_draw(changes: dict[str, Any]) -> None:
    torch.manual_seed(99)
    found = draws_of(**changes)
    expected = [drawn_by_hand(batch) for epoch in (1, 2) for batch in singly(epoch)]
    for (noise_CHW, timestep), (noise_BCHW, timesteps_B) in zip(found, expected, strict=True):
        assert torch.equal(noise_CHW, noise_BCHW[0])
        assert timestep == timesteps_B[0]


def test_every_place_and_every_seed_has_draws_of_its_own() -> None:
    batches = [make_batch("a", "b"), make_batch("a", "b", occurrence=1)]
    drawn = [
        noise
        for seed in (SEED, SEED + 1)
        for noise, _ in draws_of(seed=seed, batches=lambda epoch: batches)[:4]
    ]
    epochs = draws_of()
    drawn += [epochs[0][0], epochs[6][0]]  # picture a of either epoch
    assert torch.equal(drawn[0], drawn[8])
    others = torch.stack([*drawn[:8], drawn[9]]).flatten(1)
    assert len(others.unique(dim=0)) == 9


def test_several_lanes_train_as_each_does_alone() -> None:
    settings: list[tuple[dict[str, Any], OptimizerOptions]] = [
        ({}, SGD),
        ({"dim": 4, "dropout": 0.3, "scale_weight_norms": 1.0}, ADAMW),
    ]
    expected = []
    for changes, options in settings:
        base = SmallBase()
        network = make_network(base, **changes)
        train_one(base, network, make_optimizer(network, options), epochs=2)
        expected.append(copies_of(network))
    base = SmallBase()
    networks = [make_network(base, **changes) for changes, _ in settings]
    lanes = [
        Lane(network=network, optimizer=make_optimizer(network, options))
        for network, (_, options) in zip(networks, settings, strict=True)
    ]
    *_, last = events_of(base, lanes, epochs=2)
    assert isinstance(last, EpochDone)
    plain, bounded = (record.norms for _, record in last.records)
    assert "norm/keys_scaled" in bounded
    assert "norm/keys_scaled" not in plain
    for network, weights in zip(networks, expected, strict=True):
        assert_equal(copies_of(network), weights)


SETTINGS: tuple[tuple[dict[str, Any], OptimizerOptions], ...] = (
    ({"train_text_encoder": False}, SGD),
    ({"train_text_encoder": False, "dim": 4, "dropout": 0.3}, ADAMW),
    ({"train_text_encoder": False, "dim": 1}, NOISY),
    ({}, ADAMW),
)


def lanes_of(base: SmallBase, indices: Iterable[int]) -> list[Lane]:
    networks = [(make_network(base, **SETTINGS[index][0]), SETTINGS[index][1]) for index in indices]
    return [Lane(network=one, optimizer=make_optimizer(one, options)) for one, options in networks]


@functools.cache
def weights_alone(index: int) -> list[Tensor]:
    base = SmallBase()
    (lane,) = lanes_of(base, [index])
    list(events_of(base, [lane], epochs=2))
    return copies_of(lane.network)


@pytest.mark.parametrize("num_lanes", [1, 2, 4])
def test_a_batch_is_drawn_and_its_captions_are_encoded_once_for_all_lanes(num_lanes: int) -> None:
    """Also where a library draws from the global generators, as `NOISY` does."""
    base = SmallBase()
    lanes = lanes_of(base, range(num_lanes))
    list(events_of(base, lanes, epochs=2))
    assert len(base.draws) == 6
    assert base.asked.count((False, 1)) == 6
    # The last lane trains the text encoder, and so encodes its batches' captions itself.
    assert base.asked.count((True, 1)) == (6 if num_lanes == 4 else 0)
    for index, lane in enumerate(lanes):
        assert_equal(copies_of(lane.network), weights_alone(index))


@pytest.mark.parametrize("error", ["diverged", "out of memory", "optimizer"])
def test_a_lane_that_ends_leaves_the_others_to_their_own_bits(error: str) -> None:
    base = SmallBase()
    lanes = lanes_of(base, range(4))
    doomed = lanes[1]
    if error == "diverged":
        weights_of(doomed.network)[0].data.fill_(math.nan)
    elif error == "optimizer":

        def fail(*_: object) -> None:
            raise RuntimeError("broken")

        doomed.optimizer.optimizer.register_step_pre_hook(fail)
    else:
        calls = iter(range(100))

        def spoil(predicted: Tensor, call: int) -> Tensor:
            if next(calls) == 5:  # the second lane's second step
                raise torch.OutOfMemoryError("CUDA out of memory")
            return predicted

        base.spoil = spoil
    events = list(events_of(base, lanes, epochs=2))
    ((ended, reason),) = [(e.lane, e.error) for e in events if isinstance(e, LaneEnded)]
    assert ended is doomed
    assert doomed.error is reason
    assert doomed.step == (1 if error == "out of memory" else 0)
    kinds = {"diverged": DivergedError, "optimizer": RuntimeError}
    assert type(reason) is kinds.get(error, torch.OutOfMemoryError)
    for index in (0, 2, 3):
        assert lanes[index].step == 6
        assert_equal(copies_of(lanes[index].network), weights_alone(index))


def test_lanes_that_were_resumed_at_other_steps_wait_for_each_other() -> None:
    base = SmallBase()
    lanes = lanes_of(base, (0, 1))
    for event in events_of(base, [lanes[0]], epochs=2):
        if isinstance(event, StepDone) and event.record.step == 4:
            break
    list(events_of(base, lanes, epochs=2))
    for index, lane in enumerate(lanes):
        assert lane.step == 6
        assert_equal(copies_of(lane.network), weights_alone(index))


@pytest.mark.parametrize("is_trained", [True, False])
def test_captions_are_encoded_with_a_gradient_only_where_it_is_needed(is_trained: bool) -> None:
    base = SmallBase()
    network = make_network(base, train_text_encoder=is_trained)
    train_one(base, network, make_optimizer(network), clip_skip=2)
    # Three batches of two; what is not trained is encoded caption by caption.
    assert base.asked == [(is_trained, 2)] * (3 if is_trained else 6)


# Records


def test_records_are_numbered_and_show_the_rate_of_their_own_update() -> None:
    base = SmallBase()
    network = make_network(base)
    optimizer = make_optimizer(network, ADAMW, lr_scheduler=COSINE, total_steps=6)
    steps, epochs = train_one(base, network, optimizer, epochs=2)
    assert [(one.step, one.epoch) for one in steps] == [
        (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2),
    ]  # fmt: skip
    for index, record in enumerate(steps):
        factor = (1 + math.cos(math.pi * index / 6)) / 2
        assert record.lr == pytest.approx({"unet": 1e-2 * factor, "text_encoder": 5e-3 * factor})
        assert record.effective_lr == record.lr
        assert record.d == {}
    assert [(one.epoch, one.step) for one in epochs] == [(1, 3), (2, 6)]
    for epoch in epochs:
        losses = [one.loss for one in steps if one.epoch == epoch.epoch]
        assert epoch.mean_loss == pytest.approx(sum(losses) / 3)
    assert epochs[-1].norms == network.norms()


def test_seconds_go_to_the_phase_that_took_them(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def pass_time(seconds: float) -> None:
        clock[0] += seconds

    def slow_batches(epoch: int) -> Iterator[Batch]:
        for batch in six_pictures(epoch):
            pass_time(1)
            yield batch

    base = SmallBase()
    network = make_network(base)
    optimizer = make_optimizer(network)

    def spend(predicted: Tensor, call: int) -> Tensor:
        pass_time(10)
        predicted.register_hook(lambda gradient: pass_time(100))
        return predicted

    base.spoil = spend
    optimizer.optimizer.register_step_pre_hook(lambda *_: pass_time(1000))
    steps, (epoch,) = train_one(
        base, network, optimizer, slow_batches, gradient_accumulation=2, total_steps=2
    )
    phases = [
        (one.seconds_data, one.seconds_forward, one.seconds_backward, one.seconds_optimizer)
        for one in steps
    ]
    assert phases == [(2, 20, 200, 1000), (1, 10, 100, 1000)]
    assert epoch.seconds_train == 2333
    assert clock[0] == epoch.seconds_train


def test_max_steps_cuts_the_last_epoch_and_asks_for_no_further_one() -> None:
    asked = []

    def batches(epoch: int) -> list[Batch]:
        asked.append(epoch)
        return six_pictures(epoch)

    base = SmallBase()
    network = make_network(base)
    lane = Lane(network=network, optimizer=make_optimizer(network))
    events = list(events_of(base, [lane], batches, epochs=9, total_steps=4))
    assert [type(event) for event in events] == [StepDone] * 3 + [EpochDone, StepDone, EpochDone]
    assert isinstance(events[-1], EpochDone)
    ((_, last),) = events[-1].records
    assert (last.epoch, last.step) == (2, 4)
    assert len(base.draws) == 4
    assert asked == [1, 2]


def test_max_steps_at_the_end_of_an_epoch_leaves_no_empty_one() -> None:
    base = SmallBase()
    network = make_network(base)
    _, epochs = train_one(base, network, make_optimizer(network), epochs=9, total_steps=3)
    assert [(one.epoch, one.step) for one in epochs] == [(1, 3)]
